"""Compiles the kernels for any target, without a GPU, and reads the resources they take.

Triton's compiler needs no device, and its package brings NVIDIA's assembler and ``cuobjdump``. The
launchers of ``softattn.kernels`` are called with tensors that have no memory; what they would
launch is compiled instead. ``compile_cases`` does so in processes of its own: a process whose
kernels are interpreted cannot compile them, and compiling takes every core that there is.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.kernels.cases import Case

# Triton and softattn.kernels are imported in functions: ``_without_interpreter`` must run first.


@dataclass(frozen=True)
class Target:
    """What kernels are compiled for.

    architecture: as Triton's GPUTarget has it.
    shared_memory: bytes that one program may have.
    """

    name: str
    backend: str
    architecture: int | str
    warp_size: int
    shared_memory: int
    precision: str

    @property
    def generation(self) -> int:
        """The first number of a compute capability; 0 for AMD."""
        return int(self.architecture) // 10 if self.backend == "cuda" else 0


# sm_80 stands for 8.6 and 8.9 too, which have the same matrix units and the least shared memory.
TARGETS = {
    "sm_80": Target("sm_80", "cuda", 80, 32, 99 * 1024, "tf32x3"),
    "sm_90": Target("sm_90", "cuda", 90, 32, 99 * 1024, "tf32x3"),
    "sm_100": Target("sm_100", "cuda", 100, 32, 99 * 1024, "tf32x3"),
    "gfx942": Target("gfx942", "hip", "gfx942", 64, 64 * 1024, "ieee"),
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    kernel: its name.
    tile: tokens and landmarks of a tile, where it has them.
    warps: of a program.
    stages: of its pipelines.
    registers: of a thread; on AMD vector registers, with those for accumulators.
    stack: bytes of a thread in memory, where registers did not suffice.
    shared_memory: bytes of a program.
    matrix_instructions: mma, wgmma and tcgen05.mma, on AMD mfma.
    """

    kernel: str
    tile: tuple[int, ...]
    warps: int
    stages: int
    registers: int
    stack: int
    shared_memory: int
    matrix_instructions: int


@dataclass(frozen=True)
class Launch:
    """What a launcher would run."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, object]
    warps: int
    stages: int
    fuse: bool

    @property
    def tile(self) -> tuple[int, ...]:
        """Tokens and landmarks of a tile."""
        sizes = (self.arguments.get(name) for name in ("BLOCK_N", "BLOCK_M", "TILE"))
        return tuple(size for size in sizes if isinstance(size, int))


@contextmanager
def compiler_processes(processes: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes for ``submit``, one for each core, with a compiler cache that they start empty."""
    with (
        tempfile.TemporaryDirectory(prefix="kernel_compilation_") as cache,
        ProcessPoolExecutor(
            processes or len(os.sched_getaffinity(0)),
            mp_context=get_context("spawn"),
            initializer=_without_interpreter,
            initargs=(cache,),
        ) as executor,
    ):
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


def submit(
    executor: ProcessPoolExecutor, case: Case, target: Target, tile: tuple[int, ...] | None = None
) -> "Future[list[Resources]]":
    """The resources of all kernels that ``case`` launches.

    Args:
        executor: of ``compiler_processes``.
        case: what is launched.
        target: what for.
        tile: a ``Configuration`` to take instead of the table's.
    """
    return executor.submit(compile_case, case, target, tile)


def compile_case(
    case: Case, target: Target, tile: tuple[int, ...] | None = None
) -> list[Resources]:
    """What ``submit`` does, in this process, whose kernels must not be interpreted."""
    return [
        _resources(launch, _compiled(launch, target)) for launch in launches(case, target, tile)
    ]


def variants(cases: Iterable[Case], target: Target) -> dict[str, int]:
    """How often the cases make Triton compile each kernel. Nothing is compiled.

    To be called in one of ``compiler_processes``.
    """
    from triton import knobs

    found: dict[str, set[str]] = {}

    def record(*, fn: Any, key: object, **_: object) -> bool:
        found.setdefault(fn.name.lstrip("_"), set()).add(str(key))
        return True

    knobs.runtime.jit_cache_hook = record
    try:
        for case in cases:
            for launch in launches(case, target):
                _compiled(launch, target)
    finally:
        knobs.runtime.jit_cache_hook = None
    return {name: len(keys) for name, keys in found.items()}


def launches(case: Case, target: Target, tile: tuple[int, ...] | None = None) -> list[Launch]:
    """What ``case`` would launch on the target."""
    from softattn.kernels import devices, launching

    device = devices.Device(
        multiprocessors=132,
        shared_memory=target.shared_memory,
        precision=target.precision,
        generation=target.generation,
    )
    recorded: list[Launch] = []

    def record(
        kernel: Any,
        grid: tuple[int, ...],
        arguments: dict[str, object],
        configuration: tuple[int, int, int, int],
        *,
        fuse: bool = True,
    ) -> None:
        *_, warps, stages = configuration
        recorded.append(Launch(kernel, grid, arguments, warps, stages, fuse))

    replaced: list[tuple[Any, str, object]] = [
        (launching, "launch", record),
        (devices, "device_of", lambda _: device),
    ]
    with _replaced(replaced), nullcontext() if tile is None else with_tile(tile):
        case.call()()
    return recorded


@contextmanager
def with_tile(tile: tuple[int, ...]) -> Iterator[None]:
    """A context in which every kernel takes ``tile``, a ``Configuration``, for the table's."""
    from softattn.kernels import configurations

    chosen = configurations.Configuration(*tile)
    with _replaced([(configurations, "choose", lambda *_: chosen)]):
        yield


@contextmanager
def _replaced(attributes: Iterable[tuple[Any, str, object]]) -> Iterator[None]:
    before = [(module, name, getattr(module, name)) for module, name, _ in attributes]
    for module, name, value in attributes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _without_interpreter(cache: str) -> None:
    """Prepares a process; comes before anything that imports Triton."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache


class _AbsentDevice:
    """What Triton's compiler asks a driver, answered for a device that is not there."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_device(self) -> str:
        return self.target.name

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        target = self.target
        return GPUTarget(target.backend, target.architecture, target.warp_size)


def absent_device(target: Target) -> Any:
    """A driver for Triton on a machine without the target."""
    return _AbsentDevice(target)


def _compiled(launch: Launch, target: Target) -> Any:
    from triton.runtime import driver

    driver.set_active(_AbsentDevice(target))
    return launch.kernel.warmup(
        grid=(1,),
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=launch.fuse,
        **launch.arguments,
    )


def _resources(launch: Launch, compiled: Any) -> Resources:
    read = _of_nvidia if "cubin" in compiled.asm else _of_amd
    registers, stack, matrix_instructions = read(compiled.asm)
    return Resources(
        kernel=launch.kernel.__name__.lstrip("_"),
        tile=launch.tile,
        warps=launch.warps,
        stages=launch.stages,
        registers=registers,
        stack=stack,
        shared_memory=compiled.metadata.shared,
        matrix_instructions=matrix_instructions,
    )


def _of_nvidia(asm: dict[str, Any]) -> tuple[int, int, int]:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    instructions = re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", asm["ptx"])
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage), len(instructions)


def _of_amd(asm: dict[str, Any]) -> tuple[int, int, int]:
    text = asm["amdgcn"]
    instructions = re.findall(r"\bv_mfma", text)
    return (
        _number(r"\.vgpr_count:\s*(\d+)", text),
        _number(r"\.private_segment_fixed_size:\s*(\d+)", text),
        len(instructions),
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{pattern} is not in the compiler's output:\n{text[-1000:]}")
    return int(found[1])
