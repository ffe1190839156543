"""The benchmark of sequences of different lengths."""

from argparse import Namespace

import pytest
import torch

from benchmarks.ragged.__main__ import calls_of

SIZES = "--sequences 3 --longest 400 --embed-dim 8 --heads 2 --rounds 1 --seconds-per-cell 0.01"


def test_every_batch_is_timed_in_every_way(run_benchmark):
    content, output, _ = run_benchmark(f"ragged {SIZES}")
    cells = content["cells"]
    assert len(cells) == 8
    assert all(set(cell["timings"]) == {"packed", "padded", "one by one"} for cell in cells)
    waste = {cell["batch"]: cell["waste"] for cell in cells}
    assert waste["one long"] == pytest.approx(2)
    assert "one long" in output


def test_all_ways_compute_the_same():
    torch.manual_seed(0)
    args = Namespace(device="cpu", dtype="float64", embed_dim=8, heads=2)
    calls = calls_of([5, 60, 7], args)
    packed, padded, one_by_one = (calls[way].run("forward") for way in calls)
    torch.testing.assert_close(packed, one_by_one)
    torch.testing.assert_close(torch.cat([padded[0, :5], padded[1], padded[2, :7]]), packed)
