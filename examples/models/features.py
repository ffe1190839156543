"""The feature maps of a backbone, which timm's ``features_only=True`` returns."""

from typing import Any

from timm.models._features import FeatureGetterNet


class FeatureMaps(FeatureGetterNet):
    """timm's wrapper, whose backbone can also save memory in training."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass computes blocks again instead of storing their activations."""
        backbone: Any = self.model
        backbone.set_grad_checkpointing(enable)
