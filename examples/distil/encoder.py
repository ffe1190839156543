"""The original encoder, and its copy with softmax-free attention."""

import copy

from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from examples.distil.recipe import Recipe
from examples.training.errors import InputError
from softattn import AvgPoolLandmarks
from softattn.integrations.transformers import register_attention, set_attention

IMPLEMENTATION = "softattn"


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model without dropout.

    Softmax-free attention cannot drop weights that it never forms, and the copy shall compute what
    the original computes without dropout.

    Raises:
        InputError: there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is no model of transformers: {error}") from error
    for option, value in config.to_dict().items():
        if "drop" in option and isinstance(value, float):
            setattr(config, option, 0.0)
    return config


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained encoder in float32 and in evaluation, and its tokenizer.

    Raises:
        InputError: there is no such model.
    """
    config = load_config(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, config=config, dtype="float32")
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be loaded: {error}") from error
    return model.eval(), tokenizer


def swapped(original: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """A copy of ``original`` with softmax-free attention.

    Raises:
        InputError: its attention cannot be swapped.
    """
    register(recipe)
    model = copy.deepcopy(original)
    try:
        set_attention(model, IMPLEMENTATION)
    except ValueError as error:
        raise InputError(str(error)) from error
    return model


def register(recipe: Recipe) -> None:
    """Registers the attention of a recipe with transformers."""
    register_attention(
        IMPLEMENTATION,
        landmarks=AvgPoolLandmarks(recipe.landmarks),
        landmarks_from=recipe.landmarks_from,
        normalization=recipe.normalization,
    )
