"""How close the embeddings of one encoder are to those of another."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef


@dataclass(frozen=True)
class Agreement:
    """Agreement of two encoders on some windows of text.

    cosine: mean cosine of the two embeddings of a window.
    rank: Spearman's rank correlation of the similarities of all pairs of windows.
    """

    cosine: float
    rank: float


@torch.no_grad()
def embed(model: nn.Module, windows: Tensor, batch_size: int) -> Tensor:
    """Embeddings of windows: the mean of the last hidden states, of norm 1, (count, features).

    Args:
        model: an encoder, in evaluation.
        windows: (count, tokens).
        batch_size: windows at a time.
    """
    means = [model(batch).last_hidden_state.mean(1) for batch in windows.split(batch_size)]
    return nn.functional.normalize(torch.cat(means), dim=-1)


def agreement(embeddings: Tensor, originals: Tensor) -> Agreement:
    """Compares two embeddings, (count, features) of norm 1, of the same windows."""
    pairs = torch.triu_indices(len(originals), len(originals), 1).unbind()
    similarities = ((each @ each.mT)[pairs] for each in (embeddings, originals))
    return Agreement(
        float((embeddings * originals).sum(-1).mean()), float(spearman_corrcoef(*similarities))
    )
