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

# How images are prepared for any of them.
IMAGES = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "first_conv": "stages.0.patch_embed.0.conv",
    "classifier": "head",
}

# timm reads this by its name.
default_cfgs = generate_default_cfgs({name: IMAGES for name in MODELS})


def build(
    model: type[SoftmaxFreeTransformer], name: str, pretrained: bool, **options: Any
) -> SoftmaxFreeTransformer:
    """A model of the size that its name ends in; ``options`` go before the size's."""
    return build_model_with_cfg(
        model,
        name,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**SIZES[name.rpartition("_")[2]], **options},
    )


def _create(name: str, pretrained: bool, **options: Any) -> SoftmaxFreeTransformer:
    normalization = NORMALIZATIONS[name.rpartition("_")[0]]
    return build(
        SoftmaxFreeTransformer, name, pretrained, **{"normalization": normalization, **options}
    )


@register_model
def soft_tiny(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Tiny: 13 M parameters."""
    return _create("soft_tiny", pretrained, **options)


@register_model
def soft_small(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Small: 24 M parameters."""
    return _create("soft_small", pretrained, **options)


@register_model
def soft_medium(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Medium: 45 M parameters."""
    return _create("soft_medium", pretrained, **options)


@register_model
def soft_large(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Large: 64 M parameters."""
    return _create("soft_large", pretrained, **options)


@register_model
def soft_huge(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Huge: 87 M parameters."""
    return _create("soft_huge", pretrained, **options)


@register_model
def soft_norm_tiny(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Tiny: 13 M parameters."""
    return _create("soft_norm_tiny", pretrained, **options)


@register_model
def soft_norm_small(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Small: 24 M parameters."""
    return _create("soft_norm_small", pretrained, **options)


@register_model
def soft_norm_medium(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Medium: 45 M parameters."""
    return _create("soft_norm_medium", pretrained, **options)


@register_model
def soft_norm_large(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Large: 64 M parameters."""
    return _create("soft_norm_large", pretrained, **options)


@register_model
def soft_norm_huge(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
    """SOFT-Norm-Huge: 87 M parameters."""
    return _create("soft_norm_huge", pretrained, **options)
