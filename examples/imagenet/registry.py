"""The ten published classifiers by name: ``timm.create_model("soft_tiny")``, and so on."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from examples.imagenet.model import SoftmaxFreeTransformer

# Features and depths of the stages. The published table gives SOFT-Small 24 M parameters, which is
# what these depths make; those in the authors' code, 1, 3, 20, 4, make 38.9 M.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dims": (64, 128, 320, 512), "depths": (1, 2, 3, 2)},
    "small": {"embed_dims": (64, 128, 320, 512), "depths": (1, 3, 7, 4)},
    "medium": {"embed_dims": (64, 128, 288, 512), "depths": (1, 3, 29, 5)},
    "large": {"embed_dims": (64, 128, 320, 512), "depths": (1, 3, 40, 5)},
    "huge": {"embed_dims": (64, 128, 352, 512), "depths": (1, 5, 49, 5)},
}
NORMALIZATIONS = {"soft": "none", "soft_norm": "landmark"}
MODELS = [f"{family}_{size}" for family in NORMALIZATIONS for size in SIZES]

# timm reads this by its name, for how images are to be prepared.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 224, 224),
            "num_classes": 1000,
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "first_conv": "stages.0.patch_embed.0.conv",
            "classifier": "head",
        }
        for name in MODELS
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> SoftmaxFreeTransformer:
    family, _, size = name.rpartition("_")
    return build_model_with_cfg(
        SoftmaxFreeTransformer,
        name,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{"normalization": NORMALIZATIONS[family], **SIZES[size], **kwargs},
    )


@register_model
def soft_tiny(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Tiny: 13 M parameters."""
    return _create("soft_tiny", pretrained, **kwargs)


@register_model
def soft_small(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Small: 24 M parameters."""
    return _create("soft_small", pretrained, **kwargs)


@register_model
def soft_medium(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Medium: 45 M parameters."""
    return _create("soft_medium", pretrained, **kwargs)


@register_model
def soft_large(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Large: 64 M parameters."""
    return _create("soft_large", pretrained, **kwargs)


@register_model
def soft_huge(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Huge: 87 M parameters."""
    return _create("soft_huge", pretrained, **kwargs)


@register_model
def soft_norm_tiny(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Tiny: 13 M parameters."""
    return _create("soft_norm_tiny", pretrained, **kwargs)


@register_model
def soft_norm_small(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Small: 24 M parameters."""
    return _create("soft_norm_small", pretrained, **kwargs)


@register_model
def soft_norm_medium(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Medium: 45 M parameters."""
    return _create("soft_norm_medium", pretrained, **kwargs)


@register_model
def soft_norm_large(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Large: 64 M parameters."""
    return _create("soft_norm_large", pretrained, **kwargs)


@register_model
def soft_norm_huge(pretrained: bool = False, **kwargs: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Huge: 87 M parameters."""
    return _create("soft_norm_huge", pretrained, **kwargs)
