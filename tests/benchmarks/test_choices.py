"""The benchmark of the layer's options."""

import pytest

from benchmarks.common.calls import MODES


def test_choices_are_compared_with_the_first(run_benchmark):
    command = "choices --side 8 --rounds 1 --seconds-per-cell 0.01"
    content, output, _ = run_benchmark(command)
    first, *others = content["choices"]
    for mode in MODES:
        assert first[mode]["ratio"] == 1
        for choice in others:
            ratio = choice[mode]["median_seconds"] / first[mode]["median_seconds"]
            assert choice[mode]["ratio"] == pytest.approx(ratio)
    assert all(choice["name"] in output for choice in content["choices"])
