"""How many launches a call takes."""

import pytest
import torch
from support.strategies import NORMALIZATIONS, normal

from benchmarks.kernels.overhead_worker import CountedOperations
from softattn import softmax_free_attention
from softattn.kernels import launching
from softattn.triton.recording import forget_recordings

# Forward, and with backward. The weights of the keys take two launches forward and two backward.
MOST = {"none": (4, 10), "landmark": (4, 10), "token": (4, 10), "softmax": (6, 14)}
# The median of the landmarks, in float32.
MORE = (1, 2)


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched. None is run."""
    names = []

    def launch(kernel, grid, arguments, configuration, *, fuse=True):
        if 0 not in grid:
            names.append(kernel.fn.__name__)

    monkeypatch.setattr(launching, "launch", launch)
    forget_recordings()
    yield names
    forget_recordings()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_few_launches(device, launched, normalization, dtype):
    tokens, value, landmarks, grad = (
        normal(1, 2, n, 5, seed=seed).to(device, dtype).requires_grad_()
        for seed, n in enumerate((20, 20, 7, 20))
    )

    def forward():
        return softmax_free_attention(
            tokens, None, value, landmarks, normalization=normalization, impl="triton"
        )

    def with_backward():
        torch.autograd.grad(forward(), (tokens, value, landmarks), grad)

    for call, most, more in zip((forward, with_backward), MOST[normalization], MORE, strict=True):
        most += more if dtype == torch.float32 else 0
        launched.clear()
        with CountedOperations() as operations:
            call()
        number = len(launched) + operations.counts.total()
        assert number <= most, (launched, operations.counts)
