"""One run: a network of one attention layer is trained on the task and then asked anew."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.recall.attentions import ATTENTIONS, EMBED_DIM
from benchmarks.recall.task import (
    KEY_FEATURES,
    NO_TARGET,
    NO_VALUE,
    VALUES,
    Sequences,
    draw,
    tokens_of,
)


@dataclass(frozen=True)
class Recipe:
    """What all runs have in common, see the options of the same names."""

    steps: int
    landmarks: int
    batch_tokens: int
    learning_rate: float
    test_batches: int


@dataclass(frozen=True)
class Run:
    """The result of one run.

    attention: a name in ``ATTENTIONS``.
    accuracy: the share of queries of new sequences that get their value.
    seconds: of the training.
    """

    attention: str
    pairs: int
    seed: int
    accuracy: float
    parameters: int
    seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells runs of one recipe apart."""
        return self.attention, self.pairs, self.seed


class Network(nn.Module):
    """Embedded keys and values, the attention, a norm, and a logit for each value."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.keys = nn.Linear(KEY_FEATURES, EMBED_DIM)
        self.values = nn.Embedding(VALUES + 1, EMBED_DIM)
        self.attention = attention
        self.norm = nn.LayerNorm(EMBED_DIM)
        self.head = nn.Linear(EMBED_DIM, VALUES)

    def forward(self, sequences: Sequences) -> Tensor:
        """Logits (batch, n, VALUES)."""
        x = self.keys(sequences.keys) + self.values(sequences.values)
        logits: Tensor = self.head(self.norm(self.attention(x)))
        return logits


def train(
    attention: str, pairs: int, seed: int, recipe: Recipe, done: Callable[[int], None]
) -> Run:
    """Trains with AdamW and one cycle of the learning rate; ``done`` is called after each step."""
    torch.manual_seed(seed)
    network = Network(ATTENTIONS[attention].make(recipe.landmarks))
    generator = torch.Generator().manual_seed(seed)
    batch = max(recipe.batch_tokens // tokens_of(pairs), 1)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps
    )
    start = time.perf_counter()
    for step in range(recipe.steps):
        sequences = draw(batch, pairs, generator)
        logits = network(sequences)
        loss = F.cross_entropy(
            logits.flatten(0, 1), sequences.targets.flatten(), ignore_index=NO_TARGET
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        done(step + 1)
    seconds = time.perf_counter() - start
    parameters = sum(parameter.numel() for parameter in network.attention.parameters())
    # Sequences that the training has not seen: the generator goes on.
    right = _right(network, [draw(batch, pairs, generator) for _ in range(recipe.test_batches)])
    return Run(attention, pairs, seed, right, parameters, seconds)


@torch.no_grad()
def _right(network: Network, batches: list[Sequences]) -> float:
    """The share of queries whose largest logit is that of their value."""
    network.eval()
    found = []
    for sequences in batches:
        is_query = sequences.values == NO_VALUE
        found.append((network(sequences).argmax(-1) == sequences.targets)[is_query])
    return float(torch.cat(found).double().mean())
