"""Backbones by name: ``timm.create_model("soft_tiny")``, and so on.

There are five sizes, tiny, small, medium, large and huge, of three families: ``soft`` and
``soft_norm`` as published, and ``softmax``, their twins.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from examples.models.features import FeatureMaps
from examples.models.transformer import PyramidTransformer, SoftmaxFreeTransformer
from examples.models.twins import SoftmaxTwin

# Features and depths of the stages. The published table gives SOFT-Small 24 M parameters, which
# these depths have; those in the authors' code, 1, 3, 20, 4, have 38.9 M.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dims": (64, 128, 320, 512), "depths": (1, 2, 3, 2)},
    "small": {"embed_dims": (64, 128, 320, 512), "depths": (1, 3, 7, 4)},
    "medium": {"embed_dims": (64, 128, 288, 512), "depths": (1, 3, 29, 5)},
    "large": {"embed_dims": (64, 128, 320, 512), "depths": (1, 3, 40, 5)},
    "huge": {"embed_dims": (64, 128, 352, 512), "depths": (1, 5, 49, 5)},
}
NORMALIZATIONS = {"soft": "none", "soft_norm": "landmark"}
FAMILIES: dict[str, Callable[..., PyramidTransformer]] = {
    **{
        family: partial(SoftmaxFreeTransformer, normalization=normalization)
        for family, normalization in NORMALIZATIONS.items()
    },
    "softmax": SoftmaxTwin,
}
MODELS = [f"{family}_{size}" for family in NORMALIZATIONS for size in SIZES]
TWINS = [f"softmax_{size}" for size in SIZES]

# How images are prepared for each of them.
IMAGES = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "first_conv": "stages.0.patch_embed.0.conv",
    "classifier": "head",
}

# timm looks for this name.
default_cfgs = generate_default_cfgs({name: IMAGES for name in MODELS + TWINS})


def _register(name: str) -> None:
    family, _, size = name.rpartition("_")

    def create(pretrained: bool = False, **options: Any) -> PyramidTransformer:
        features: dict[str, Any] = {"out_indices": (0, 1, 2, 3), "feature_cls": FeatureMaps}
        if options.get("features_only"):
            features |= {key: options.pop(key) for key in ("norm", "output_fmt") if key in options}
        return build_model_with_cfg(
            FAMILIES[family],
            name,
            pretrained,
            feature_cfg=features,
            **{**SIZES[size], **options},
        )

    create.__name__ = name
    register_model(create)


for _name in MODELS + TWINS:
    _register(_name)
