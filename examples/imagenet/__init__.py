"""Image classification: data, recipes, training, evaluation and the authors' checkpoints."""

from examples import models as models  # registers them with timm
