"""Object detection and instance segmentation: RetinaNet and Mask R-CNN on SOFT backbones."""

from examples.detection.models import create_model as create_model
