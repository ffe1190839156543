"""The published SOFT backbones and their softmax twins; importing this registers them with timm."""

from examples.models import registry as registry
