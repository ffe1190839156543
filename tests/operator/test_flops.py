"""FlopCounterMode over softattn, against plain formulas whose products PyTorch counts itself."""

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


def plain_landmark_attention(query, key, value, landmarks, middle, quotient):
    """The products of the operator, without its exponentials and quotients."""
    p_q = query @ landmarks.mT
    p_k = p_q if key is None else key @ landmarks.mT
    sums = p_k.mT @ value
    if quotient:
        sums = torch.cat([sums, p_k.mT @ torch.ones_like(value[..., :1]).detach()], -1)
    output = p_q @ (middle @ sums)
    if quotient and key is None:
        output = output + ((p_q @ middle) * p_q).sum(-1, keepdim=True)
    return output


def gradient_flops(function):
    """The products of autograd's backward pass alone."""
    output = function()
    return flops(output.sum().backward)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("quotient", [False, True])
def test_landmark_attention(crossed, quotient):
    query, key, value, landmarks = tensors(crossed, "meta")
    middle = torch.zeros(BATCH, HEADS, M, M, device="meta", requires_grad=True)

    def plain():
        return plain_landmark_attention(query, key, value, landmarks, middle, quotient)

    def operator():
        arguments = (query, key, value, landmarks, middle, None, None, 0.5, quotient)
        return operators.landmark_attention(*arguments)[0]

    p_q, p_k = product(query.shape[2], D, M), product(N, D, M)
    # In self-attention P is computed again for the second pass.
    assert flops(operator) == flops(plain) + (0 if crossed else p_q)
    # The backward passes compute P again, and M S once.
    again = 2 * p_q + (p_k if crossed else 0) + product(M, M, D_V + quotient)
    assert gradient_flops(operator) == gradient_flops(plain) + again


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("normalization", ["none", "token"])
def test_eager_forward_and_the_inverse(crossed, normalization):
    query, key, value, landmarks = tensors(crossed)
    pinv = softattn.NewtonPinv("soft", ridge=0.01, iterations=STEPS)
    quotient = normalization == "token"
    gram = softattn.gaussian_kernel(landmarks, landmarks)

    def attend():
        return softmax_free_attention(
            query, key, value, landmarks, normalization=normalization, pinv=pinv, impl="eager"
        )

    def plain():
        return plain_landmark_attention(query, key, value, landmarks, gram, quotient)

    # The floor of the quotient needs one more column.
    absolute_terms = product(query.shape[2], M, 1) if quotient else 0
    assert flops(attend) == flops(plain) + flops(lambda: pinv(gram)) + absolute_terms


def test_middle_factor_and_its_gradient():
    """Elimination takes no products, and its closed-form gradient three."""
    landmarks = torch.empty(BATCH, HEADS, M, D, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        _, middle, _ = operators.middle_factor(landmarks, None, 0.5, 0.01, False)
        assert counter.get_total_flops() == 0
        torch.autograd.grad(middle.sum(), landmarks)
    assert counter.get_total_flops() == 2 * product(M, M, M) + product(M, M, D)


def test_near_field():
    query, _, value, landmarks = tensors(crossed=False)
    run, runs = 4, 3

    def attend(near_field):
        softmax_free_attention(query, None, value, landmarks, near_field=near_field, impl="eager")

    # The nearest landmarks, the places on the main direction, and the power iteration for it.
    order = product(N, D, M) + product(N, D, 1) + product(1, D, 1) + 4 * 2 * product(1, D, M)
    # k(X, X) and P M Pᵀ within runs; R [V, 1] and |R| 1.
    blocks = product(run, D, run) + product(run, M, run) + product(run, run, D_V + 2)
    added = flops(lambda: attend(run)) - flops(lambda: attend(1))
    assert added == order + runs * blocks


def test_operator_with_a_near_field():
    """In runs of one token it computes the diagonal, by products that the other operator spares."""
    query, _, value, landmarks = tensors(False, "meta")
    middle = torch.zeros(BATCH, HEADS, M, M, device="meta", requires_grad=True)
    order = torch.zeros(BATCH, HEADS, N, dtype=torch.long, device="meta")

    def without():
        arguments = (query, None, value, landmarks, middle, None, None, 0.5, True)
        return operators.landmark_attention(*arguments)[0]

    def attend(near_field):
        arguments = (query, value, landmarks, middle, order, None, 0.5, near_field)
        return operators.near_field_attention(*arguments)[0]

    p, p_middle = product(N, D, M), product(N, M, M)
    # k(X, X), P M Pᵀ and R [V, 1].
    near = product(N, D, 1) + product(N, M, 1) + product(N, D_V + 1, 1)
    assert flops(lambda: attend(1)) == flops(without) + p + near
    assert flops(lambda: attend(3)) - flops(lambda: attend(1)) == 2 * near
    # Twice k(X, X), P M Pᵀ, G Vᵀ, F X and dR P, for queries and keys; Rᵀ G.
    near = 2 * (2 * product(N, D, 1) + 2 * product(N, M, 1) + product(N, D_V, 1))
    near += product(N, D_V, 1)
    # The gradient of the diagonal has P once for both, and P (M + Mᵀ) and Pᵀ diag(dc) P.
    more = 3 * p + 2 * product(N, M, D) + 3 * p_middle
    assert gradient_flops(lambda: attend(1)) == gradient_flops(without) + more + near


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

    def plain():
        return (query @ (query if key is None else key).mT) @ value

    def operator():
        return operators.gaussian_attention(query, key, value, None, 0.5, True)[0]

    assert flops(operator) == flops(plain)
    # Two kernels, of which each computes P again.
    again = 2 * product(query.shape[2], D, N)
    assert gradient_flops(operator) == gradient_flops(plain) + again


def test_a_step_of_k_means():
    query, _, _, landmarks = tensors(False, "meta")
    labels = torch.zeros(BATCH, HEADS, N, dtype=torch.long, device="meta")
    one_hot = torch.zeros(BATCH, HEADS, M, N, device="meta")
    nearest = flops(lambda: operators.nearest_landmarks(query, landmarks, None, None))
    assert nearest == flops(lambda: query @ landmarks.mT) > 0
    line = torch.zeros(BATCH, HEADS, 1, D, device="meta")
    arguments = (query, landmarks, line, line, None, None)
    with_places = flops(lambda: operators.labels_and_places(*arguments))
    assert with_places == nearest + flops(lambda: query @ line.mT)
    assert flops(lambda: operators.cluster_sums(query, labels, M)) == flops(lambda: one_hot @ query)


def test_newton():
    target, start = (torch.zeros(PAIRS, M, M, device="meta", requires_grad=True) for _ in range(2))

    def plain():
        inverse = start
        for _ in range(STEPS):
            inverse = 2 * inverse - (inverse @ target) @ inverse
        return inverse

    def operator():
        return operators.newton(target, start, 1.0, STEPS)

    assert flops(operator) == flops(plain)
    # The steps again, and one product more in each: (V A)ᵀ G as Aᵀ (Vᵀ G).
    again = flops(plain) + STEPS * product(M, M, M)
    assert gradient_flops(operator) == gradient_flops(plain) + again
