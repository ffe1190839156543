"""The time of a call on a CUDA device, by events around it.

Calls are queued one behind the other without waiting, so a call that keeps the device busy for
longer than the CPU takes to launch it is charged for the device alone, and a shorter one also for
what its launches keep the device waiting. Between calls a buffer larger than the L2 cache is
overwritten, outside the events: every call finds its inputs in main memory.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

_LEAST_BUFFER_BYTES = 2**28
# Of calls in the queue at once: events are cheap, but not without end.
_MOST_CALLS = 1000


def event_seconds(
    call: Callable[[], object], *, expected: float, block_seconds: float, least_calls: int
) -> float:
    """The median time of one call, in seconds.

    Args:
        call: has run before, so that nothing is compiled or tuned here.
        expected: about how long it takes, in seconds.
        block_seconds: for all calls together, unless ``least_calls`` take longer.
        least_calls: how often it runs at least.
    """
    calls = min(max(int(block_seconds / expected), least_calls), max(_MOST_CALLS, least_calls))
    buffer = _buffer()
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(calls)] for _ in range(2))
    torch.cuda.synchronize()
    for start, end in zip(starts, ends, strict=True):
        buffer.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    milliseconds = (start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))
    return statistics.median(milliseconds) / 1000


def _buffer() -> Tensor:
    """Twice as large as the L2 cache, at least."""
    cache_bytes = torch.cuda.get_device_properties().L2_cache_size
    return torch.empty(max(2 * cache_bytes, _LEAST_BUFFER_BYTES), dtype=torch.uint8, device="cuda")
