"""The benchmark of accuracy."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks.accuracy import __main__ as accuracy
from benchmarks.accuracy.comparisons import (
    COMPARISONS,
    TO_SOFTMAX,
    Error,
    Measurement,
    Setting,
    errors_of,
)
from benchmarks.accuracy.samplers import SAMPLERS
from benchmarks.accuracy.tables import least_landmarks, softmax_aims_table, softmax_pairs
from benchmarks.common.token_maps import queries_and_values

EXACT = Measurement(head_dim=8, rows=20, dtype="float64", device="cpu", seed=0)


def test_every_table_and_figure_is_made(run_benchmark):
    sizes = "--sides 6 9 --side 6 --landmarks 9 4 --sharpness 1 --rows 10"
    content, output, figures = run_benchmark(f"accuracy {sizes}")
    assert len(content["samplers"]) == 3 * len(SAMPLERS) * 2
    assert len(content["sizes"]) == 3 * 2 * 2
    assert len(content["sharpness"]) == (len(COMPARISONS) - len(TO_SOFTMAX)) * 2
    assert len(content["softmax"]) == 3 * len(TO_SOFTMAX) * 2 * 2
    studies = ("samplers", "sizes", "softmax")
    assert all(0 < entry["error"] for study in studies for entry in content[study])
    assert set(figures) == {
        f"accuracy{name}" for name in ("", "_photograph", "_texture", "_normal", "_softmax")
    }
    assert "81 tokens" in output and "m for 2 %" in output and "9 × 9" in output


def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    def interrupted(setting, numbers, measurement):
        yield from itertools.islice(errors_of(setting, numbers, measurement), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "errors_of", interrupted)
    accuracy.main(["--sides", "6", "--rows", "5", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "measurements" / "accuracy_cpu_float32.json").read_text())
    assert content["interrupted"] is True
    assert (len(content["samplers"]), len(content["sizes"])) == (2, 0)
    monkeypatch.setattr(accuracy, "errors_of", lambda *_: _raise())
    accuracy.main(["--sides", "6", "--out", str(tmp_path / "none")])
    assert "wrote nothing" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def _raise():
    raise KeyboardInterrupt


@pytest.mark.parametrize("comparison", ["token", "token, one norm", "none", "softmax to softmax"])
def test_all_tokens_as_landmarks_leave_the_error_of_the_ridge(comparison):
    setting = Setting("normal", 6, comparison, samplers=("random subset",))
    few, all_tokens = errors_of(setting, [9, 36], EXACT)
    assert all_tokens.error < 0.05
    assert few.error > 2 * all_tokens.error


def test_token_is_compared_with_softmax_on_the_same_tokens():
    setting = Setting("normal", 6, "token to softmax", samplers=("random subset",))
    (error,) = errors_of(setting, [36], EXACT)
    assert 0.1 < error.error < 1
    generator = torch.Generator().manual_seed(EXACT.seed)
    query, _ = queries_and_values("normal", (6, 6), heads=1, head_dim=8, generator=generator)
    log_weights = query.square().sum(-1) / (2 * 8**0.5)
    assert error.log_weight_range == pytest.approx(float(log_weights.max() - log_weights.min()))


def test_the_aims_of_softmax_are_counted(capsys):
    def error(comparison, landmarks, size, log_weight_range):
        place = ("normal", 6, comparison, 1.0, "k-means")
        return Error(*place, landmarks, size, log_weight_range)

    softmax, token = TO_SOFTMAX
    errors = [
        *(error(softmax, 4, 0.06, 7.9), error(token, 4, 0.05, 7.9)),
        *(error(softmax, 9, 0.04, 7.9), error(token, 9, 0.05, 7.9)),
        *(error(softmax, 25, 0.90, 8.1), error(token, 25, 0.30, 8.1)),
    ]
    pairs = [tuple(errors[i : i + 2]) for i in (0, 2, 4)]
    assert softmax_pairs(errors) == pairs
    assert softmax_pairs(errors[:5]) == pairs[:2]
    Console(width=200).print(softmax_aims_table(errors))
    row = capsys.readouterr().out.splitlines()[-2]
    assert [cell.strip() for cell in row.split("│")[3:-1]] == ["3", "1", "3", "2", "1", "6 %"]


def test_landmark_is_compared_after_the_best_factor(monkeypatch):
    setting = Setting("photograph", 10, "landmark")
    best = list(errors_of(setting, [4, 9, 25], EXACT))
    unscaled = replace(COMPARISONS["landmark"], best_scale=False)
    monkeypatch.setitem(COMPARISONS, "landmark", unscaled)
    plain = list(errors_of(setting, [4, 9, 25], EXACT))
    assert all(b.error < p.error for b, p in zip(best, plain, strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_return_as_many_landmarks_as_asked_for(sampler):
    tokens = torch.randn(1, 1, 36, 3, dtype=torch.float64)
    landmarks = SAMPLERS[sampler](tokens, 6, 9, 0)
    assert landmarks.shape == (1, 1, 9, 3)
    assert landmarks.dtype == tokens.dtype


def test_the_least_number_of_landmarks_within_the_target():
    by_landmarks = {9: 0.05, 25: 0.02, 49: 0.01}
    assert least_landmarks(by_landmarks, 0.02) == 25
    assert least_landmarks(by_landmarks, 0.001) is None
