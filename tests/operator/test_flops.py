"""FlopCounterMode over the eager path and over the operators, against products counted by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import softattn.flops
from softattn import softmax_free_attention
from softattn import triton as operators
from softattn.eager import product as product_module

BATCH, HEADS, N, N_CROSS, M, D, D_V = 2, 3, 11, 7, 5, 4, 6
PAIRS = BATCH * HEADS
STEPS = 6


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def product(rows, inner, columns):
    return 2 * PAIRS * rows * inner * columns


def tensors(crossed, device="cpu"):
    def zeros(n, d):
        return torch.zeros(BATCH, HEADS, n, d, device=device, requires_grad=True)

    n_q = N_CROSS if crossed else N
    return zeros(n_q, D), zeros(N, D) if crossed else None, zeros(N, D_V), zeros(M, D)


def forward_by_hand(crossed, quotient):
    n_q, columns = N_CROSS if crossed else N, D_V + quotient
    total = product(N, D, M) + product(M, N, columns)  # P_k, S
    total += product(M, M, columns)  # W
    total += product(n_q, D, M) + product(n_q, M, columns)  # P_q, O
    return total + (product(n_q, M, M) if quotient and not crossed else 0)


def gradient_by_hand(crossed, quotient):
    n_q, columns = N_CROSS if crossed else N, D_V + quotient
    total = 3 * product(M, M, columns)  # W, dS, dM
    total += product(n_q, D, M) + product(M, n_q, columns)  # P_q, dW
    for n in (n_q, N) if crossed else (N,):
        total += product(n, D, M) + product(n, M, D) + product(M, n, D)  # P, w L, wᵀ X
    total += product(n_q, columns, M)  # G Wᵀ
    total += product(N, columns, M) + product(N, M, D_V)  # V dSᵀ, dV
    if quotient and not crossed:
        total += product(M, n_q, M) + product(n_q, M, M)  # Pᵀ diag(dc) P, P (M + Mᵀ)
    return total


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("quotient", [False, True])
def test_landmark_attention(crossed, quotient):
    query, key, value, landmarks = tensors(crossed, "meta")
    middle = torch.zeros(BATCH, HEADS, M, M, device="meta", requires_grad=True)
    arguments = (query, key, value, landmarks, middle, None, 0.5, quotient)
    assert flops(lambda: operators.landmark_attention(*arguments)) == forward_by_hand(
        crossed, quotient
    )
    output = operators.landmark_attention(*arguments)[0].sum()
    assert flops(output.backward) == gradient_by_hand(crossed, quotient)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("normalization", ["none", "token"])
def test_eager_forward_and_the_inverse(crossed, normalization):
    query, key, value, landmarks = tensors(crossed)
    pinv = softattn.NewtonPinv("soft", ridge=0.01, iterations=STEPS)

    def attend():
        return softmax_free_attention(
            query, key, value, landmarks, normalization=normalization, pinv=pinv, impl="eager"
        )

    inverse = 2 * STEPS * product(M, M, M)
    quotient = normalization == "token"
    absolute_terms = product(query.shape[2], M, 1) if quotient else 0
    kept = 0 if crossed else product(N, D, M)  # P is computed once
    expected = forward_by_hand(crossed, quotient) + inverse + absolute_terms - kept
    assert flops(attend) == expected


@pytest.mark.parametrize("with_form", [False, True])
def test_operator_of_the_compiled_eager_path_counts_what_it_runs(with_form):
    query, _, _, landmarks = tensors(crossed=False)
    weights = torch.ones(BATCH, HEADS, M, D_V, requires_grad=True)
    form = torch.ones(BATCH, HEADS, M, M, requires_grad=True) if with_form else None

    operands = (query, landmarks, weights, form, None)

    def traced():
        return product_module.gaussian_product(query, landmarks, weights, form=form, scale=0.5)

    product, quadratic = traced()
    grads = (torch.ones_like(product), torch.ones_like(quadratic) if with_form else None)
    ones = [grad for grad in grads if grad is not None]
    outputs = [output for output in (product, quadratic) if output is not None]
    assert flops(lambda: torch.ops.softattn.gaussian_product(*operands, 0.5)) == flops(traced) > 0
    assert (
        flops(lambda: torch.ops.softattn.gaussian_product_gradient(*operands, *grads, 0.5))
        == flops(lambda: torch.autograd.backward(outputs, ones))
        > 0
    )


@pytest.mark.parametrize("crossed", [False, True])
def test_gaussian_attention(crossed):
    query, key, value, _ = tensors(crossed, "meta")
    n_q = N_CROSS if crossed else N
    arguments = (query, key, value, None, 0.5, True)
    forward = product(n_q, D, N) + product(n_q, N, D_V)
    assert flops(lambda: operators.gaussian_attention(*arguments)) == forward
    output = operators.gaussian_attention(*arguments)[0].sum()
    # P twice, G Vᵀ, dV, w K and wᵀ Q.
    gradient = 2 * product(n_q, D, N) + product(n_q, D_V, N) + product(N, n_q, D_V)
    gradient += product(n_q, N, D) + product(N, n_q, D)
    assert flops(output.backward) == gradient


def test_newton():
    target, start = (torch.zeros(PAIRS, M, M, device="meta", requires_grad=True) for _ in range(2))
    assert flops(lambda: operators.newton(target, start, 1.0, STEPS)) == 2 * STEPS * product(
        M, M, M
    )
    output = operators.newton(target, start, 1.0, STEPS).sum()
    # The steps again, and in each Vᵀ G, that times Vᵀ, G Vᵀ, that times Aᵀ, and Aᵀ (Vᵀ G).
    assert flops(output.backward) == 7 * STEPS * product(M, M, M)
