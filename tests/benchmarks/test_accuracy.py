"""The benchmark of accuracy."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.accuracy import __main__ as accuracy
from benchmarks.accuracy.comparisons import COMPARISONS, Measurement, Setting, errors_of
from benchmarks.accuracy.samplers import SAMPLERS
from benchmarks.accuracy.tables import least_landmarks

EXACT = Measurement(head_dim=8, rows=20, dtype="float64", device="cpu", seed=0)


def test_every_table_and_figure_is_made(run_benchmark):
    sizes = "--sides 6 9 --side 6 --landmarks 9 4 --sharpness 1 --rows 10"
    content, output, figures = run_benchmark(f"accuracy {sizes}")
    assert len(content["samplers"]) == 3 * 3 * 2
    assert len(content["sizes"]) == 3 * 2 * 2
    assert len(content["sharpness"]) == len(COMPARISONS) * 2
    assert all(0 < entry["error"] for study in ("samplers", "sizes") for entry in content[study])
    assert set(figures) == {
        f"accuracy{name}" for name in ("", "_photograph", "_texture", "_normal")
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


@pytest.mark.parametrize("comparison", ["token", "softmax", "none"])
def test_all_tokens_as_landmarks_leave_the_error_of_the_ridge(comparison):
    setting = Setting("normal", 6, comparison, samplers=("random subset",))
    few, all_tokens = errors_of(setting, [9, 36], EXACT)
    assert all_tokens.error < 0.05
    assert few.error > 2 * all_tokens.error


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
