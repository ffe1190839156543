"""The published SOFT classifiers for ImageNet; importing this registers them with timm."""

from examples.imagenet import registry as registry
from examples.imagenet import twins as twins
