"""The versions and the copy bandwidth of a machine, as JSON."""

import argparse
import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from benchmarks.common.environment import describe_environment
from benchmarks.common.timing import copy_bandwidth


def main(argv: list[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="to measure")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    found = {
        "environment": asdict(describe_environment(args.device, dtype)),
        "ptxas": ptxas_version(),
        "driver": _driver_version() if args.device == "cuda" else None,
        "copy_bytes_per_second": copy_bandwidth(args.device),
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def ptxas_version() -> str | None:
    """The last line of what Triton's assembler says of itself; None where there is none."""
    from triton import knobs

    try:
        path = knobs.nvidia.ptxas.path
    except RuntimeError:
        return None
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return text.strip().splitlines()[-1]


def _driver_version() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
