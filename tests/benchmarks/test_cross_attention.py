"""The benchmark of cross-attention."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.cross_attention import __main__ as cross_attention
from benchmarks.cross_attention.inputs import SOURCES, Case, inputs_of
from benchmarks.cross_attention.measurements import METHODS, fixed_floor, outcomes_of, scaled_range
from softattn import softmax_free_attention, softmax_log_weight_range

SMALL = Case("photographs", queries=20, keys=48, query_spread=0.5, key_spread=0.5)


def outcomes(case, inputs, method):
    found = outcomes_of(case, inputs, torch.float64, "cpu")
    return [outcome for outcome in found if outcome.method == method]


def test_every_case_is_measured(run_benchmark):
    sizes = "--queries 20 --keys 48 --latents 9 --latent-keys 60 --head-dim 8 --landmarks 9"
    content, output, figures = run_benchmark(f"cross_attention {sizes} --spreads 0.5 2")
    assert len(content["spread"]) == 3 * 2 * len(METHODS) * 2 * 2
    assert len(content["latents"]) == 3 * len(METHODS) * 2 * 2
    assert all(0 <= outcome["at_floor"] <= 1 for outcome in content["spread"])
    sources = ("independent", "photographs", "two_projections")
    assert set(figures) == {"cross_attention", *(f"cross_attention_{name}" for name in sources)}
    assert "0.02 over 1" in output and "extremes over all cases" in output


@pytest.mark.parametrize("finished", [0, 1])
def test_ctrl_c_keeps_what_is_finished(finished, tmp_path, monkeypatch, capsys):
    cases = []

    def interrupted(case, *arguments):
        if len(cases) == finished:
            raise KeyboardInterrupt
        cases.append(case)
        return list(outcomes_of(case, *arguments))

    monkeypatch.setattr(cross_attention, "outcomes_of", interrupted)
    sizes = ["--queries", "20", "--keys", "48", "--head-dim", "4", "--landmarks", "4"]
    cross_attention.main([*sizes, "--out", str(tmp_path)])
    if not finished:
        assert "wrote nothing" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())
        return
    (report,) = (tmp_path / "measurements").iterdir()
    content = json.loads(report.read_text())
    assert content["interrupted"] is True
    assert (len(content["spread"]), content["latents"]) == (len(METHODS) * 2 * 2, [])


@pytest.mark.parametrize("source", SOURCES)
def test_inputs_have_the_spread_and_the_landmarks(source):
    case = replace(SMALL, source=source, query_spread=2.0, key_spread=3.0)
    inputs = inputs_of(case, head_dim=8, number=9, seed=0)
    assert inputs.query.shape == (1, 1, 20, 8) and inputs.key.shape == (1, 1, 48, 8)
    assert inputs.query.var(2).mean() == pytest.approx(4)
    assert inputs.key.var(2).mean() == pytest.approx(9)
    assert inputs.values["linear"].var(2).mean() == pytest.approx(1)
    of_keys, of_both = inputs.landmarks["keys"], inputs.landmarks["queries and keys"]
    assert of_keys.shape[2] == 9
    assert 6 <= of_both.shape[2] <= 9
    again = inputs_of(case, head_dim=8, number=9, seed=0)
    assert torch.equal(inputs.query, again.query) and torch.equal(inputs.key, again.key)


def test_the_projection_is_shared_or_not():
    def queries(source):
        return inputs_of(replace(SMALL, source=source), head_dim=8, number=9, seed=0).query

    def keys(source):
        return inputs_of(replace(SMALL, source=source), head_dim=8, number=9, seed=0).key

    assert torch.equal(keys("photographs"), keys("two projections"))
    assert not torch.equal(queries("photographs"), queries("two projections"))


def test_linear_values_are_a_map_of_the_keys_and_a_constant():
    inputs = inputs_of(SMALL, head_dim=8, number=9, seed=0)
    key = inputs.key[0, 0]
    columns = torch.cat([key, torch.ones_like(key[:, :1])], -1)
    values = inputs.values["linear"][0, 0]
    solution = torch.linalg.lstsq(columns, values).solution
    torch.testing.assert_close(columns @ solution, values)
    assert solution[-1].abs().mean() > 0.1
    noise = inputs.values["independent"][0, 0]
    assert (columns @ torch.linalg.lstsq(columns, noise).solution - noise).abs().max() > 0.1


@pytest.mark.parametrize("method", ["token", "fixed floor", "softmax"])
def test_each_method_meets_its_exact_attention_with_all_keys_as_landmarks(method):
    inputs = inputs_of(SMALL, head_dim=8, number=9, seed=0)
    few = outcomes(SMALL, inputs, method)
    exact = outcomes(SMALL, replace(inputs, landmarks={"keys": inputs.key}), method)
    assert all(outcome.error < 0.03 for outcome in exact if outcome.values == "linear")
    assert all(outcome.norm == pytest.approx(1, abs=0.03) for outcome in exact)
    assert max(outcome.error for outcome in few) > 2 * max(outcome.error for outcome in exact)


def test_token_is_also_compared_with_softmax():
    inputs = inputs_of(replace(SMALL, key_spread=1.0), head_dim=8, number=9, seed=0)
    inputs = replace(inputs, landmarks={"keys": inputs.key})
    ours, _ = outcomes(SMALL, inputs, "softmax")
    token, _ = outcomes(SMALL, inputs, "token to softmax")
    assert token.error > 2 * ours.error


def test_the_fixed_floor_is_token_until_denominators_are_small():
    inputs = inputs_of(SMALL, head_dim=8, number=9, seed=0)
    value = torch.cat([inputs.values["linear"], torch.ones_like(inputs.key[..., :1])], -1)
    arguments = (inputs.query, inputs.key, value, inputs.landmarks["keys"])
    torch.testing.assert_close(fixed_floor(*arguments), softmax_free_attention(*arguments))
    far = (inputs.query + 20, *arguments[1:])
    assert fixed_floor(*far).abs().max() < 1e-3
    assert softmax_free_attention(*far).abs().max() > 0.1


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_softmax_without_landmarks_is_what_all_keys_as_landmarks_approach(spread):
    case = replace(SMALL, source="independent", query_spread=spread, key_spread=spread)
    inputs = inputs_of(case, head_dim=8, number=9, seed=0)
    arguments = (inputs.query, inputs.key, inputs.values["linear"])
    landmarks = torch.cat([inputs.key, inputs.query + inputs.key.mean(2, keepdim=True)], 2)
    pinv = partial(torch.linalg.pinv, hermitian=True)
    ours = softmax_free_attention(*arguments, landmarks, normalization="softmax", pinv=pinv)
    torch.testing.assert_close(scaled_range(*arguments, landmarks), ours, rtol=1e-5, atol=1e-5)
    exact = torch.nn.functional.scaled_dot_product_attention(*arguments)
    is_softmax = (ours - exact).abs().max() < 1e-5
    assert is_softmax == (softmax_log_weight_range(*arguments[:2]) <= 8).all()
    assert is_softmax == (spread == 0.5)


@pytest.mark.parametrize(("row_sum", "expected"), [(5e-4, 0.5), (2e-3, 1.0)])
def test_the_fixed_floor_is_a_thousandth(row_sum, expected):
    # One key, which is the landmark: the row sum is exp(−q² / 2) / 1.01.
    key = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    query = torch.full_like(key, (-2 * math.log(1.01 * row_sum)) ** 0.5)
    assert fixed_floor(query, key, key + 1, key).item() == pytest.approx(expected)


def test_rows_at_the_floor_are_counted():
    inputs = inputs_of(SMALL, head_dim=8, number=9, seed=0)
    far = inputs.query.clone()
    far[:, :, :5] += 20
    outcome, *_ = outcomes(SMALL, replace(inputs, query=far), "fixed floor")
    assert outcome.at_floor == 5 / 20
    assert outcomes(SMALL, inputs, "fixed floor")[0].at_floor == 0
