"""Peak memory of one call of one rival over its inputs: one JSON line on stdout.

On the CPU this is the growth of the peak resident memory, in a process of its own whose rival has
run at a tiny size before, so that what libraries set up at their first call does not count. What
torch.compile takes to compile the real size cannot be told apart from it: compiled rivals have no
figure there. On CUDA it is the growth of the allocator's peak in a call that has run before, which
is exact in any process.
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.arguments import parse, positive_int
from benchmarks.rivals import OURS, RIVALS
from benchmarks.workload import (
    MODES,
    Workload,
    fill_in_defaults,
    workload_of,
    workload_parser,
)

_WARM_UP_TOKENS = 64


def has_cpu_figure(rival: str) -> bool:
    """Whether the peak memory of a rival can be told on the CPU."""
    return not RIVALS[rival].compiled


def peak_bytes_in_process(rival: str, workload: Workload, mode: str) -> int:
    """The peak memory of a rival's call, measured in a fresh process.

    Raises:
        subprocess.CalledProcessError: the process failed, for lack of memory perhaps.
    """
    words = [sys.executable, "-m", "benchmarks.memory", "--rival", rival, "--mode", mode]
    words += [*workload.arguments(), "--threads", str(torch.get_num_threads())]
    finished = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(json.loads(finished.stdout)["peak_bytes"])


def peak_bytes(rival: str, workload: Workload, mode: str) -> int:
    """The peak memory of a rival's call, measured in this process."""
    prepare = RIVALS[rival].prepare
    if workload.device == "cuda":
        call = prepare(workload)
        call.run(mode)
    else:
        prepare(replace(workload, tokens=max(_WARM_UP_TOKENS, workload.landmarks))).run(mode)
        call = prepare(workload)
    return peak_bytes_of_call(lambda: call.run(mode), workload.device)


def peak_bytes_of_call(call: Callable[[], object], device: str) -> int:
    """How far the peak in a call lies above what is in use before it."""
    before = _start_peak(device)
    call()
    return max(_peak(device) - before, 0)


def _start_peak(device: str) -> int:
    """Forgets earlier peaks where the system allows it; the bytes in use, or the earlier peak."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _peak(device)


def _peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    # Linux hands a child its parent's ru_maxrss, under which a smaller peak would be lost.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(argv: list[str] | None = None) -> None:
    """Measures one cell and prints its bytes."""
    parser = workload_parser(__doc__.partition("\n")[0])
    parser.add_argument("--rival", choices=tuple(RIVALS), default=OURS, help="who is measured")
    parser.add_argument("--mode", choices=MODES, default="forward", help="what is called")
    parser.add_argument("--tokens", type=positive_int, default=4096, help="the size n")
    args = parse(parser, argv)
    fill_in_defaults(args)
    workload = workload_of(args, args.tokens)
    print(json.dumps({"peak_bytes": peak_bytes(args.rival, workload, args.mode)}))


if __name__ == "__main__":
    main()
