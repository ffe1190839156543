"""Semantic segmentation: UperNet on SOFT backbones."""

from examples.segmentation.models import create_model as create_model
