"""The steps of one run, the most valuable first."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PYTHON = sys.executable
# Verbose, so that the log of a run that is cut off names what failed. pytest-benchmark, where it is
# installed, warns beside xdist, and warnings are errors.
_TESTS = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:benchmark")


@dataclass(frozen=True)
class Machine:
    """Where a run is: ``cpu`` shows that all steps start, with tiny sizes."""

    device: str
    folder: Path

    @property
    def tiny(self) -> bool:
        """Whether sizes are tiny."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Step:
    """A command with a time limit.

    name: what ``--only`` and ``--skip`` call it.
    purpose: what it shows.
    seconds: its limit.
    command: its words, for a machine.
    obstacle: why it cannot run on a machine, or None where it can.
    environment: variables that it is given.
    """

    name: str
    purpose: str
    seconds: int
    command: Callable[[Machine], list[str]]
    obstacle: Callable[[Machine], str | None] = lambda machine: None
    environment: Callable[[Machine], dict[str, str]] = lambda machine: {}


def _module(name: str, *options: str) -> Callable[[Machine], list[str]]:
    return lambda machine: [_PYTHON, "-m", name, "--device", machine.device, *options]


def _tests(*arguments: str, tiny: tuple[str, ...] = ()) -> Callable[[Machine], list[str]]:
    def command(machine: Machine) -> list[str]:
        chosen = tiny if machine.tiny and tiny else arguments
        return [_PYTHON, *_TESTS, *chosen, "--device", machine.device]

    return command


def _times(machine: Machine) -> list[str]:
    sizes = ["1x2x64"] if machine.tiny else ["8x8x65536", "8x8x16384", "8x8x3136", "1x2x1024"]
    out = str(machine.folder / "times.json")
    options = ("--sizes", *sizes, "--out", out)
    return [_PYTHON, "-m", "benchmarks.gpu.times", "--device", machine.device, *options]


def _parts(machine: Machine) -> list[str]:
    sizes = ("8x8x65536", "8x8x3136")
    options = ("--sizes", *sizes, "--out", str(machine.folder / "parts.json"))
    return [_PYTHON, "-m", "benchmarks.gpu.parts", "--device", machine.device, *options]


def _candidates(machine: Machine) -> list[str]:
    out = str(machine.folder / "candidates.json")
    return [_PYTHON, "-m", "benchmarks.gpu.candidates", "--device", machine.device, "--out", out]


def _scaling(machine: Machine) -> list[str]:
    tokens = ("64", "128") if machine.tiny else ("512", "1024", "3136", "16384", "65536", "131072")
    options = ("--tokens", *tokens, "--out", str(machine.folder / "scaling"))
    return [_PYTHON, "-m", "benchmarks.scaling", "--device", machine.device, *options]


def _throughput(machine: Machine) -> list[str]:
    options = ("--out", str(machine.folder / "throughput"))
    return [_PYTHON, "-m", "examples.imagenet.throughput", *options]


def _memcheck(machine: Machine) -> list[str]:
    times = ("-m", "benchmarks.gpu.times", "--device", "cuda", "--sizes", "1x2x1000", "--once")
    out = ("--out", str(machine.folder / "memcheck.json"))
    return [
        "compute-sanitizer",
        "--tool",
        "memcheck",
        "--error-exitcode",
        "1",
        _PYTHON,
        *times,
        *out,
    ]


def _needs_cuda(machine: Machine) -> str | None:
    return "needs CUDA" if machine.device == "cpu" else None


def _needs_other_ptxas(machine: Machine) -> str | None:
    return None if os.environ.get("TRITON_PTXAS_PATH") else "TRITON_PTXAS_PATH is not set"


def _needs_sanitizer(machine: Machine) -> str | None:
    missing = None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed"
    return _needs_cuda(machine) or missing


def _own_ptxas(machine: Machine) -> dict[str, str]:
    # An empty cache: kernels compiled by another assembler must not be found.
    return {"TRITON_PTXAS_PATH": "", "TRITON_CACHE_DIR": str(machine.folder / "cache_own")}


def _other_ptxas(machine: Machine) -> dict[str, str]:
    return {"TRITON_CACHE_DIR": str(machine.folder / "cache_other")}


_MATRIX = "tests/triton/test_matrix_units.py"
STEPS = (
    Step(
        "machine",
        "versions, the assembler, and the bandwidth of a copy",
        120,
        lambda machine: [
            *_module("benchmarks.gpu.machine")(machine),
            *("--out", str(machine.folder / "machine.json")),
        ],
    ),
    Step(
        "correctness",
        "sizes that use the matrix units, and Newton's iteration, against float64",
        480,
        _tests(
            *(_MATRIX, "tests/triton/test_newton.py", "-n", "auto"),
            tiny=(_MATRIX, "-k", "64-49-bfloat16 and none"),
        ),
        environment=_own_ptxas,
    ),
    Step(
        "other_ptxas",
        "the same with the assembler of TRITON_PTXAS_PATH",
        480,
        _tests(_MATRIX, "-n", "auto"),
        obstacle=lambda machine: _needs_cuda(machine) or _needs_other_ptxas(machine),
        environment=_other_ptxas,
    ),
    Step(
        "determinism",
        "200 runs that give the same bits",
        120,
        _tests("tests/triton/test_large.py", "-k", "every_run"),
        obstacle=_needs_cuda,
    ),
    Step("times", "kernels and layer, eager and as graphs, beside softmax attention", 600, _times),
    Step(
        "tests",
        "all tests of the kernels, but for those that compile for other devices",
        1200,
        _tests(
            *("tests/triton", "--ignore", "tests/triton/test_compilation.py", "-n", "auto"),
            tiny=("tests/triton/test_launches.py",),
        ),
    ),
    Step("parts", "what each kernel takes, by the profiler", 300, _parts, _needs_cuda),
    Step("scaling", "time over the number of tokens, beside rivals", 900, _scaling),
    Step("throughput", "classifiers and their softmax twins", 900, _throughput, _needs_cuda),
    Step("candidates", "tiles that may be better, by graph replay", 900, _candidates, _needs_cuda),
    Step("memcheck", "compute-sanitizer on every kernel", 900, _memcheck, _needs_sanitizer),
)
