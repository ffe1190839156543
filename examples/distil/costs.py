"""Time and memory of a forward pass of the original and of the swapped encoder."""

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.table import Table
from transformers import AutoModel, PreTrainedConfig

from examples.distil.encoder import IMPLEMENTATION, load_config, register
from examples.distil.recipe import Recipe
from examples.training.interruption import leave_interruption_to_parent
from examples.training.screen import Screen

ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """A forward pass of one sequence.

    seconds: median over rounds.
    memory: most bytes beyond those of the model; None where they cannot be read.
    """

    seconds: float
    memory: int | None


@dataclass(frozen=True)
class Costs:
    """Both encoders at one length."""

    tokens: int
    original: Cost
    swapped: Cost


def measure_costs(
    name: str, recipe: Recipe, lengths: Sequence[int], device: torch.device, screen: Screen
) -> list[Costs]:
    """Measures both encoders at each length, each time in a process of its own.

    Neither time nor memory depends on the weights, so they are random. A model whose positions are
    limited gets as many as the longest sequence needs.

    Args:
        name: of the pretrained encoder.
        recipe: of the swapped attention.
        lengths: numbers of tokens.
        device: to measure on.
        screen: for a bar.
    """
    config = load_config(name)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None:
        # Some models leave out the first positions.
        config.max_position_embeddings = max(limit, max(lengths) + 8)
    results = []
    with screen.bar("measuring time and memory", len(lengths), "lengths") as advance:
        for tokens in lengths:
            original, swapped = (
                _in_own_process(config, implementation, recipe, tokens, device)
                for implementation in (None, IMPLEMENTATION)
            )
            results.append(Costs(tokens, original, swapped))
            advance()
    return results


def table_of_costs(costs: Sequence[Costs]) -> Table:
    """A row for each length."""
    drawn = Table(title="a forward pass of one sequence", title_justify="left")
    for heading in ("tokens", "original", "softattn", "ratio", "memory", "softattn"):
        drawn.add_column(heading, justify="right")
    for row in costs:
        drawn.add_row(
            f"{row.tokens:,}",
            f"{row.original.seconds:.3f} s",
            f"{row.swapped.seconds:.3f} s",
            f"{row.original.seconds / row.swapped.seconds:.2f}×",
            _mebibytes(row.original),
            _mebibytes(row.swapped),
        )
    return drawn


def _mebibytes(cost: Cost) -> str:
    return "" if cost.memory is None else f"{cost.memory / 2**20:.0f} MiB"


def _in_own_process(
    config: PreTrainedConfig,
    implementation: str | None,
    recipe: Recipe,
    tokens: int,
    device: torch.device,
) -> Cost:
    """The memory of a process never shrinks, so every measurement has a new one."""
    with get_context("spawn").Pool(1, initializer=leave_interruption_to_parent) as pool:
        arguments = (config, implementation, recipe, tokens, device, torch.get_num_threads())
        return pool.apply(_measure, arguments)


def _measure(
    config: PreTrainedConfig,
    implementation: str | None,
    recipe: Recipe,
    tokens: int,
    device: torch.device,
    threads: int,
) -> Cost:
    torch.set_num_threads(threads)
    register(recipe)
    model = AutoModel.from_config(config, attn_implementation=implementation).to(device).eval()
    words = torch.randint(config.vocab_size, (1, tokens), device=device)
    seconds = []
    with torch.inference_mode():
        # The first call loads libraries, which take memory.
        model(words[:, :16])
        before = _restart_peak(device)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            model(words).last_hidden_state.sum().item()
            seconds.append(time.perf_counter() - start)
    peak = _peak(device)
    memory = None if peak is None or before is None else peak - before
    return Cost(statistics.median(seconds), memory)


def _restart_peak(device: torch.device) -> int | None:
    """Makes ``_peak`` start from the memory in use, and returns that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if device.type == "cpu" and Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if device.type != "cpu" or not status.exists():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return None if found is None else int(found[1]) * 1024
