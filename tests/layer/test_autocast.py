"""Autocast over the layer on inputs that half precision takes badly."""

import pytest
import torch
from support.strategies import NORMALIZATIONS

from softattn import NewtonPinv, SoftmaxFreeAttention

N, DIM = 40, 16


def hostile_tokens(kind: str) -> torch.Tensor:
    points = torch.randn(2, N, DIM)
    return {
        "collapsed": points[:, :1] + 1e-6 * points,
        "norm of 1e4": 1e4 * torch.nn.functional.normalize(points, dim=-1),
        "equal": torch.full_like(points, 30.0),
        "one-hot": torch.eye(DIM).repeat(2, 3, 1)[:, :N].contiguous(),
    }[kind]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["collapsed", "norm of 1e4", "equal", "one-hot"])
def test_outputs_and_gradients_stay_finite(dtype, normalization, kind):
    layer = SoftmaxFreeAttention(DIM, 2, normalization=normalization)
    x = hostile_tokens(kind).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        output = layer(x)
    assert output.dtype == dtype
    assert output.isfinite().all()
    output.float().mean().backward()
    for gradient in (x.grad, *(parameter.grad for parameter in layer.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrix_and_inverse_are_in_float32(dtype):
    seen = []

    class Recorded(NewtonPinv):
        def forward(self, a):
            inverse = super().forward(a)
            seen.append((a, inverse))
            return inverse

    layer = SoftmaxFreeAttention(DIM, 2, pinv=Recorded("minimax", ridge=0.01))
    with torch.autocast("cpu", dtype=dtype):
        layer(hostile_tokens("collapsed"))
    ((a, inverse),) = seen
    assert a.dtype == inverse.dtype == torch.float32
    identity = torch.eye(a.shape[-1])
    exact = torch.linalg.inv((a + 0.01 * identity).double())
    # Half precision keeps 2 to 3 digits, and would lose all of them at this condition number.
    error = (inverse - exact).norm() / exact.norm()
    assert error < 1e-3
