"""Peak memory of one call of one rival, in a process of its own: one JSON line on stdout.

On the CPU this is the growth of the peak resident memory over what was resident once the inputs
were made, on CUDA that of the allocator's peak. The rival has run at a tiny size before, so that
what libraries set up at their first call does not count.
"""

import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.arguments import DTYPES, common_parser, parse, positive_int
from benchmarks.rivals import RIVALS
from benchmarks.workload import MODES, Workload, add_workload_options, workload_of

_WARM_UP_TOKENS = 64


def peak_bytes_of_cell(rival: str, workload: Workload, mode: str) -> int:
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
    prepare(replace(workload, tokens=max(_WARM_UP_TOKENS, workload.landmarks))).run(mode)
    call = prepare(workload)
    before = _start_peak(workload.device)
    call.run(mode)
    return max(_peak(workload.device) - before, 0)


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
    parser = common_parser(__doc__.partition("\n")[0], tuple(DTYPES))
    parser.add_argument("--rival", choices=tuple(RIVALS), default="softattn")
    parser.add_argument("--mode", choices=MODES, default="forward")
    parser.add_argument("--tokens", type=positive_int, default=4096)
    add_workload_options(parser)
    args = parse(parser, argv)
    workload = workload_of(args, args.tokens)
    print(json.dumps({"peak_bytes": peak_bytes(args.rival, workload, args.mode)}))


if __name__ == "__main__":
    main()
