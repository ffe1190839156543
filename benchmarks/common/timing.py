"""Times of calls that take turns, so that noise of the machine affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.benchmark import Timer

from benchmarks.common.calls import Call

_SECONDS_PER_ROUND = 0.2
# What a round of a slow call runs, to choose the size of a block and to measure it: PyTorch's Timer
# twice, Triton's do_bench eight times.
_LEAST_CALLS_PER_ROUND = {"cpu": 2, "cuda": 8}


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, the median of each round it took part in."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile over the rounds."""
        if len(self.rounds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third

    def relative_spread(self) -> float:
        """The interquartile range over the median."""
        first, third = self.quartiles
        return (third - first) / self.median


@dataclass(frozen=True)
class WarmCall:
    """A call that has run before on its device, and the seconds it then took."""

    call: Callable[[], object]
    seconds: float
    device: str


def least_calls(device: str) -> int:
    """How often a call runs at least: for the warm-up and for one round."""
    return 1 + _LEAST_CALLS_PER_ROUND[device]


def warm_up(call: Callable[[], object], device: str, *, compiled: bool = False) -> WarmCall:
    """Runs a call once, and before that once untimed if its first call compiles or tunes.

    Every call on CUDA is assumed to do so; on the CPU ``compiled`` tells.
    """
    if compiled or device == "cuda":
        call()
        _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return WarmCall(call, time.perf_counter() - start, device)


def time_in_turns(
    calls: Mapping[str, WarmCall],
    *,
    rounds: int,
    seconds: float,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Times all calls in rounds: A B C, A B C and so on.

    A round repeats a call for up to a fifth of a second and keeps the median. Times are wall-clock
    times on the CPU, and times between events, with the L2 cache cleared before each call, on CUDA.

    Args:
        calls: what to time.
        rounds: how many. A slow call takes part in the first of them only, in one at least.
        seconds: the limit for one call, with its warm-up; one round is run even if it takes longer.
        done: called with the name of each call after its last round.
    """
    turns = {
        name: min(
            max(int((seconds / call.seconds - 1) / _LEAST_CALLS_PER_ROUND[call.device]), 1), rounds
        )
        for name, call in calls.items()
    }
    medians: dict[str, list[float]] = {name: [] for name in calls}
    block_seconds = min(_SECONDS_PER_ROUND, seconds / rounds / 2)
    for turn in range(rounds):
        for name in (name for name in calls if turn < turns[name]):
            medians[name].append(_median_seconds(calls[name], block_seconds))
            if turn + 1 == turns[name]:
                done(name)
    return {name: Timing(tuple(values)) for name, values in medians.items()}


def time_calls(
    calls: Mapping[str, Call],
    mode: str,
    device: str,
    *,
    rounds: int,
    seconds: float,
    done: Callable[[str], None],
) -> dict[str, Timing]:
    """Warms all calls up in one mode, and times them with ``time_in_turns``."""
    warm = {name: warm_up(partial(call.run, mode), device) for name, call in calls.items()}
    return time_in_turns(warm, rounds=rounds, seconds=seconds, done=done)


def paired_ratio(numerator: Timing, denominator: Timing) -> float:
    """The median over rounds of the ratio within a round."""
    pairs = zip(numerator.rounds, denominator.rounds, strict=False)
    return statistics.median(a / b for a, b in pairs)


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy too large for any cache."""
    source = torch.ones(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy = warm_up(lambda: target.copy_(source), device)
    timing = time_in_turns({"copy": copy}, rounds=5, seconds=5)
    return 2 * source.numel() / timing["copy"].median


def _median_seconds(warm: WarmCall, block_seconds: float) -> float:
    if warm.device == "cuda":
        from triton.testing import do_bench

        block = 1e3 * block_seconds
        return float(do_bench(warm.call, warmup=0, rep=block, return_mode="median")) / 1e3
    timer = Timer("call()", globals={"call": warm.call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=block_seconds).median


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
