"""Each streaming kernel alone: what it computes in float32 keeps its digits in half precision."""

import math

import pytest
import torch
from support.strategies import normal

from softattn import kernels, reference
from softattn.common.quotient import FLOOR

pytestmark = pytest.mark.usefixtures("kernel_tiles", "poisoned_memory")

SCALE = 0.5
RATE = SCALE * math.log2(math.e) / 2
# Rounding relative to the sum of the absolute terms: two pieces hold 16 bits in bfloat16 and 22 in
# float16, one piece of it would hold 8 and 11.
ROUNDING = {torch.float32: 2.0**-20, torch.float16: 2.0**-18, torch.bfloat16: 2.0**-14}


def assert_keeps_digits(actual, truth, terms, dtype):
    """Asserts that the error is within rounding of ``terms``, the sum of absolute terms."""
    assert actual.shape == truth.shape
    assert actual.isfinite().all()
    assert (actual.cpu() - truth).abs().amax() <= ROUNDING[dtype] * terms.abs().amax()


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def problem(request, device):
    """Tensors of one problem by their names in the kernels' page, and the same in float64."""
    shapes = {"x": (40, 5), "l": (20, 5), "v": (40, 3), "g": (40, 3)}
    given = {
        name: normal(2, 2, *shape, seed=seed).to(request.param)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    wide = {name: t.double() for name, t in given.items()}
    wide["p"] = reference.gaussian_kernel(wide["x"], wide["l"], SCALE)
    gram = reference.gaussian_kernel(wide["l"], wide["l"], SCALE)
    wide["m"] = torch.linalg.inv(gram + 0.01 * torch.eye(20, dtype=torch.float64)).float().double()
    wide["s"] = wide["p"].mT @ torch.cat([wide["v"], torch.ones_like(wide["v"][..., :1])], -1)
    wide["s"] = wide["s"].float().double()
    wide["w"] = (wide["m"] @ wide["s"]).float().double()
    on_device = {name: t.to(device) for name, t in given.items()}
    on_device |= {name: wide[name].to(device, torch.float32) for name in ("m", "s", "w")}
    return request.param, on_device, wide


def key_weights(weighted):
    """w of 40 keys in float32's numbers, or ones; and the kernels' argument for them."""
    if not weighted:
        return torch.ones(2, 2, 40, dtype=torch.float64), None
    weights = normal(2, 2, 40, seed=20).sigmoid().float()
    return weights.double(), weights


@pytest.mark.parametrize("weighted", [False, True])
def test_tokens_to_landmarks(problem, weighted):
    dtype, on, wide = problem
    weights, argument = key_weights(weighted)
    partial = kernels.tokens_to_landmarks(
        on["l"],
        on["x"],
        on["v"],
        rate=RATE,
        key_weights=argument if argument is None else argument.to(on["m"]),
        with_ones=True,
    )
    values = torch.cat([wide["v"], torch.ones_like(wide["v"][..., :1])], -1) * weights[..., None]
    sums = kernels.add_stretches(partial)
    assert_keeps_digits(sums, wide["p"].mT @ values, wide["p"].mT @ values.abs(), dtype)


@pytest.mark.parametrize("unit", [1.0, 2.0**20])
def test_landmarks_to_tokens(problem, unit):
    dtype, on, wide = problem
    # float16 itself ends at 65,504.
    w = unit * on["w"][..., :-1].contiguous()
    result = kernels.landmarks_to_tokens(on["x"], on["l"], w, rate=RATE, dtype=torch.float32)
    truth = wide["p"] @ wide["w"][..., :-1]
    terms = wide["p"] @ wide["w"][..., :-1].abs()
    assert_keeps_digits(result.output / unit, truth, terms, dtype)


def last_bit(numbers):
    return (numbers.cpu().view(torch.int32) & 1) == 1


def with_last_bit(numbers, flag):
    return ((numbers.view(torch.int32) & -2) | flag.to(numbers.device).int()).view(torch.float32)


@pytest.mark.parametrize(("diagonal", "weighted"), [(False, False), (True, False), (True, True)])
def test_landmarks_to_tokens_with_the_quotient(problem, diagonal, weighted):
    dtype, on, wide = problem
    weights, argument = key_weights(weighted)
    argument = argument if argument is None else argument.to(on["m"])
    p, w = wide["p"].clone(), wide["w"].clone()
    # With z of one sign no row is at the floor; with these signs some are, and some sums are
    # negative.
    w[..., -1] *= torch.tensor([1.0, -0.9]).repeat(10)
    result = kernels.landmarks_to_tokens(
        on["x"],
        on["l"],
        w.to(on["w"]),
        rate=RATE,
        dtype=torch.float32,
        floor=FLOOR,
        diagonal=kernels.Diagonal(on["v"], on["m"], argument) if diagonal else None,
    )
    form = ((p @ wide["m"]) * p).sum(-1)
    c = (1 - form).clamp(0, 1) if diagonal else torch.zeros_like(form)
    shift = p.amax(-1).log2()
    if not diagonal:
        p = p / p.amax(-1, keepdim=True)
        assert_keeps_digits(result.row_shift, shift, 1 + shift.abs(), dtype)
    denominator = (p @ w[..., -1:])[..., 0] + c * weights
    lowest = FLOOR * ((p @ w[..., -1:].abs())[..., 0] + c * weights)
    at_floor = denominator.abs() < lowest
    assert at_floor.any() and not at_floor.all() and (denominator < 0).any()
    magnitude = torch.maximum(denominator.abs(), lowest)
    denominator = torch.where(denominator < 0, -magnitude, magnitude)
    terms = (p @ w.abs()).amax() + ((p @ wide["m"].abs()) * p).sum(-1).amax()
    assert_keeps_digits(result.denominator, denominator, terms, dtype)
    assert torch.equal(last_bit(result.denominator), at_floor)
    numerator = p @ w[..., :-1]
    if diagonal:
        assert_keeps_digits(result.diagonal, c, terms, dtype)
        numerator = numerator + (c * weights)[..., None] * wide["v"]
    output = numerator / denominator[..., None]
    terms = terms * (1 + output.abs().amax()) / magnitude.amin()
    assert_keeps_digits(result.output, output, terms, dtype)


def test_output_is_zero_where_all_terms_underflow(problem):
    _, on, _ = problem
    w = on["w"].clone()
    w[:1] *= 2.0**-120
    result = kernels.landmarks_to_tokens(
        on["x"], on["l"], w, rate=RATE, dtype=torch.float32, floor=FLOOR, underflow=1e-30
    )
    assert (result.output[0] == 0).all() and (result.denominator[0] == 1).all()
    assert (result.output[1] != 0).all()


@pytest.mark.parametrize(("diagonal", "weighted"), [(False, False), (True, False), (True, True)])
def test_quotient_gradient(problem, diagonal, weighted):
    dtype, on, wide = problem
    weights, argument = key_weights(weighted)
    p, g, v, z = wide["p"], wide["g"], wide["v"], wide["w"][..., -1].clone()
    signs = torch.where(torch.arange(40) % 4 == 0, -1.0, 1.0)
    z[..., ::3] *= -1
    denominator = (1 + p.sum(-1)).float().double() * signs
    shift = p.amax(-1).log2().float().double()
    p = p if diagonal else p / shift.exp2()[..., None]
    at_floor = torch.arange(40) % 7 == 0
    c = normal(2, 2, 40, seed=9).float().double().sigmoid().float().double()
    c[..., 1], c[..., 2] = 0, 1
    output = normal(2, 2, 40, 3, seed=10).to(dtype).double()
    through = kernels.quotient_gradient(
        on["x"],
        on["l"],
        on["g"],
        output.to(on["x"]),
        z.to(on["m"]),
        with_last_bit(denominator.to(on["m"]), at_floor),
        rate=RATE,
        floor=FLOOR,
        row_shift=None if diagonal else shift.to(on["m"]),
        values=on["v"] if diagonal else None,
        diagonal=c.to(on["m"]) if diagonal else None,
        key_weights=argument if argument is None else argument.to(on["m"]),
    )
    of_divisor = -(g * output).sum(-1) / denominator
    assert_keeps_digits(
        through.denominator, of_divisor, g.abs().amax() * output.abs().amax(), dtype
    )
    dd = of_divisor.masked_fill(at_floor, 0)
    dt = FLOOR * signs * of_divisor.masked_fill(~at_floor, 0)
    # A diagonal at 0 or 1 is clamped: it has no gradient.
    of_own_weight = (g * v).sum(-1) / denominator + dd + dt
    dc = (weights * of_own_weight).masked_fill((c <= 0) | (c >= 1), 0)
    columns = torch.cat([g / denominator[..., None], dd[..., None]], -1)
    of_weights = p.mT @ columns
    of_weights[..., -1] += z.sign() * (p.mT @ dt[..., None])[..., 0]
    actual = kernels.add_stretches(through.weights)
    assert_keeps_digits(actual, of_weights, p.mT @ columns.abs(), dtype)
    if not diagonal:
        assert through.diagonal is None and through.middle is None
        return
    assert_keeps_digits(through.diagonal, dc, of_own_weight, dtype)
    if weighted:
        assert_keeps_digits(through.key_weights, c * of_own_weight, of_own_weight, dtype)
    middle = p.mT @ (dc[..., None] * p)
    actual = kernels.add_stretches(through.middle)
    assert_keeps_digits(actual, middle, p.mT @ (dc[..., None].abs() * p), dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_token_gradient_of_the_landmarks(problem, weighted):
    dtype, on, wide = problem
    weights, argument = key_weights(weighted)
    at_floor = torch.arange(40) % 7 == 0
    p, x, landmarks, g, v, w, m = (wide[name] for name in "pxlgvwm")
    signs = torch.where(torch.arange(40) % 4 == 0, -1.0, 1.0)
    share = signs / (1 + p.sum(-1)).float().double()
    dd, dc, c, own = (normal(2, 2, 40, seed=seed).float().double() for seed in (11, 12, 13, 15))
    ds = normal(2, 2, 20, 4, seed=14).float().double()
    numbers = {"dtype": torch.float32, "device": on["x"].device}
    queries = kernels.QueryTerms(
        on["g"],
        on["w"],
        with_last_bit((1 / share).to(**numbers), at_floor),
        dd.to(**numbers),
        c.to(**numbers),
        dc.to(**numbers),
        (m + m.mT).to(**numbers),
        floor=FLOOR,
    )
    keys = kernels.KeyTerms(on["v"], ds.to(**numbers))
    if weighted:
        keys = keys._replace(key_weights=argument.to(**numbers), grad_key_weights=own.to(**numbers))
    of_tokens = kernels.token_gradient(
        on["x"], on["l"], queries=queries, keys=keys, rate=RATE, scale=SCALE
    )

    def slopes(absolute):
        f = torch.abs if absolute else lambda t: t
        z = w[..., -1:].mT
        z = torch.where(at_floor[:, None], FLOOR * signs[:, None] * z.abs(), z)
        dp = f(share)[..., None] * (f(g) @ f(w[..., :-1]).mT) + f(dd)[..., None] * f(z)
        through = f(dc)[..., None] * (p @ f(m + m.mT))
        keys = weights[..., None] * (f(v) @ f(ds[..., :-1]).mT + f(ds[..., -1:]).mT)
        return SCALE * p * (dp + through + keys) if absolute else -SCALE * p * (dp - through + keys)

    w_ij, terms = slopes(False), slopes(True)
    truth = w_ij.sum(-2)[..., None] * landmarks - w_ij.mT @ x
    most = terms.sum(-2)[..., None] * landmarks.abs() + terms.mT @ x.abs()
    assert_keeps_digits(kernels.add_stretches(of_tokens.landmarks), truth, most, dtype)
    of_sums = p @ ds
    if weighted:
        of_weights = (v * of_sums[..., :-1]).sum(-1) + of_sums[..., -1] + own
        most = (v.abs() * (p @ ds[..., :-1].abs())).sum(-1) + (p @ ds[..., -1:].abs())[..., 0]
        assert_keeps_digits(of_tokens.key_weights, of_weights, most + own.abs(), dtype)
    values = weights[..., None] * (of_sums[..., :-1] + (c * share)[..., None] * g)
    most = p @ ds[..., :-1].abs() + ((c * share)[..., None] * g).abs()
    rounding = torch.finfo(dtype).eps * values.abs().amax() + ROUNDING[dtype] * most.amax()
    assert (of_tokens.values.cpu().double() - values).abs().amax() <= rounding
