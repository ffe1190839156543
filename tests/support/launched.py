"""What compiled kernels are launched with, seen without a GPU, in a process of its own."""

import os
from typing import Any

import torch
from torch import Tensor

import softattn
from benchmarks.kernels.cases import DTYPES
from benchmarks.kernels.compilation import TARGETS, absent_device

CALLS = 4


def launches_of_calls(normalization: str, dtype: str) -> list[list[tuple[Any, ...]]]:
    """What the launches of each of ``CALLS`` calls with other tensors were given.

    Tensors are numbered as they come among the inputs and the arguments of a call.
    """
    from triton.compiler import CompiledKernel
    from triton.runtime import driver

    from softattn.kernels import launching  # before Triton is told to interpret kernels

    launched: list[tuple[Any, ...]] = []

    def load(kernel: Any) -> None:
        kernel._run = lambda *arguments: launched.append(arguments)

    CompiledKernel._init_handles = load
    driver.set_active(absent_device(TARGETS["sm_90"]))
    # With it softattn takes tensors on the CPU for Triton's.
    os.environ["TRITON_INTERPRET"] = "1"
    found = []
    for seed in range(CALLS):
        if seed > 1:
            launching.launch = None  # the first call is recorded by the second, and then repeated
        generator = torch.Generator().manual_seed(seed)
        inputs = [
            torch.randn(2, 3, n, 64, generator=generator).to(DTYPES[dtype]).requires_grad_()
            for n in (100, 100, 16, 100)
        ]
        tokens, value, landmarks, grad = inputs
        output = softattn.softmax_free_attention(
            tokens, None, value, landmarks, normalization=normalization, impl="triton"
        )
        torch.autograd.grad(output, (tokens, value, landmarks), grad)
        numbers = {x.data_ptr(): number for number, x in enumerate(inputs)}
        found.append([tuple(_described(x, numbers) for x in launch) for launch in launched])
        launched.clear()
    return found


def _described(argument: Any, numbers: dict[int, int]) -> Any:
    if isinstance(argument, Tensor):
        number = numbers.setdefault(argument.data_ptr(), len(numbers))
        return str(argument.dtype), number
    plain = argument is None or isinstance(argument, (bool, int, float, str, tuple))
    return argument if plain else type(argument).__name__
