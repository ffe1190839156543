"""What each kernel of a call takes on the device, by PyTorch's profiler."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.calls import MODES, Call
from benchmarks.gpu.times import calls

_RUNS = 10


def main(argv: list[str] | None = None) -> None:
    """Profiles all calls and writes each before the next begins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda",), default="cuda", help="to measure")
    parser.add_argument("--sizes", nargs="+", required=True, help="batch x heads x tokens")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)
    found: list[dict[str, Any]] = []
    for size in args.sizes:
        for name, call in calls(size, args.device, torch.bfloat16):
            for mode in MODES:
                found.append(
                    {"size": size, "call": name, "mode": mode, "kernels": parts(call, mode)}
                )
                print(found[-1], flush=True)
                args.out.write_text(json.dumps(found, indent=1) + "\n")


def parts(call: Call, mode: str) -> dict[str, dict[str, float]]:
    """Seconds and launches of every kernel in one call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    call.run(mode)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_RUNS):
            call.run(mode)
        torch.cuda.synchronize()
    kernels = {
        event.key: {
            "seconds": event.self_device_time_total / 1e6 / _RUNS,
            "launches": event.count / _RUNS,
        }
        for event in profiler.key_averages()
        if event.self_device_time_total > 0
    }
    return dict(sorted(kernels.items(), key=lambda item: -item[1]["seconds"]))


if __name__ == "__main__":
    main()
