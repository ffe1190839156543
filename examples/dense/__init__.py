"""What detection and segmentation share: backbones, samples, training, pictures and scenes."""

from examples import models as models  # registers them with timm
