"""Describes the machine and the versions of a measurement."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import softattn


@dataclass(frozen=True)
class Environment:
    """The machine and the versions behind a number."""

    device: str
    device_name: str
    dtype: str
    threads: int
    cpus: int
    torch: str
    softattn: str
    python: str
    system: str
    cuda: str | None
    triton: str | None
    float32_matmul_precision: str

    def line(self) -> str:
        """One line for the terminal and for the metadata of figures."""
        threads = (
            f" · {self.threads} CPU thread{'s' if self.threads > 1 else ''}"
            if self.device == "cpu"
            else f" · CUDA {self.cuda}"
        )
        return (
            f"{self.device_name}{threads} · {self.dtype} · torch {self.torch} · "
            f"softattn {self.softattn}"
        )


def describe_environment(device: str, dtype: str) -> Environment:
    """The environment of measurements on ``device`` in ``dtype``."""
    return Environment(
        device=device,
        device_name=torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        dtype=dtype,
        threads=torch.get_num_threads(),
        cpus=os.cpu_count() or 1,
        torch=torch.__version__,
        softattn=softattn.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cuda=torch.version.cuda if device == "cuda" else None,
        triton=_installed_version("triton"),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
    )


def memory_bytes(device: str) -> int:
    """The memory of the device, or the limit of the container."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return physical if text == "max" else min(physical, int(text))


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
