"""What the launchers must know of a device."""

import functools
from typing import NamedTuple

import torch
import triton


class Device(NamedTuple):
    """Properties that decide how a kernel is launched.

    multiprocessors: how many.
    shared_memory: bytes that one program may have.
    precision: how its matrix units multiply float32 without losing its digits.
    generation: the first number of its compute capability, 0 for AMD.
    """

    multiprocessors: int
    shared_memory: int
    precision: str
    generation: int


@functools.cache
def device_of(device: torch.device) -> Device:
    """The device's properties; for the interpreter those of the smallest card that is supported."""
    if device.type != "cuda":
        return Device(multiprocessors=1, shared_memory=99 * 1024, precision="tf32x3", generation=8)
    properties = triton.runtime.driver.active.utils.get_device_properties(
        torch.cuda.current_device() if device.index is None else device.index
    )
    return Device(
        multiprocessors=properties["multiprocessor_count"],
        shared_memory=properties["max_shared_mem"],
        precision="ieee" if torch.version.hip else "tf32x3",
        generation=0 if torch.version.hip else torch.cuda.get_device_capability(device)[0],
    )
