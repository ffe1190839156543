"""Peak memory of one call over its inputs.

On the CPU this is the growth of the peak resident memory, in a process of its own. The process
first runs the attention at a tiny size, so that what libraries set up at their first call does not
count. Compiled attentions have no figure there: memory for compiling the real size would count.
On CUDA it is the growth of the allocator's peak in a call that has run before, which is exact in
any process.
"""

import ctypes
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.scaling.rivals import RIVALS
from benchmarks.scaling.workload import Workload

_WARM_UP_TOKENS = 64


def peak_bytes_in_process(rival: str, workload: Workload, mode: str) -> int | None:
    """The peak memory of an attention on the CPU, measured in a fresh process.

    None where it cannot be told: the attention is compiled, or the system ended the process.
    """
    if RIVALS[rival].compiled:
        return None
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
    ) as executor:
        try:
            return executor.submit(_peak_bytes_on_cpu, rival, workload, mode).result()
        except BrokenProcessPool:
            return None


def peak_bytes_of_call(call: Callable[[], object], device: str) -> int:
    """The growth of the peak memory during a call."""
    before = _start_peak(device)
    call()
    return max(_peak(device) - before, 0)


def _peak_bytes_on_cpu(rival: str, workload: Workload, mode: str) -> int:
    prepare = RIVALS[rival].prepare
    prepare(replace(workload, tokens=max(_WARM_UP_TOKENS, workload.landmarks))).run(mode)
    call = prepare(workload)
    return peak_bytes_of_call(lambda: call.run(mode), workload.device)


def _start_peak(device: str) -> int:
    """Resets the peak where the system allows it; returns the bytes in use, or the old peak.

    Freed memory that the C library holds back is released first: a call that takes it again counts.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    # On Linux a child inherits its parent's ru_maxrss, which would hide a smaller peak.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
