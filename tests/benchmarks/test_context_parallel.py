"""The benchmark of one sequence over several processes."""

import pytest

from benchmarks.context_parallel.derived import LINKS, Layer, derive


def test_bytes_do_not_grow_with_the_tokens(run_benchmark):
    content, output, _ = run_benchmark("context_parallel --tokens 256 1024 --ranks 2 --rounds 1")
    short, long = content["cells"]
    assert (short["tokens"], long["tokens"]) == (256, 1024)
    assert short["given_bytes"] == long["given_bytes"] > 0
    assert long["ring_bytes"] == 4 * short["ring_bytes"] > long["given_bytes"]
    assert "derived, not measured" in output


def test_derived_times():
    few, many = (derive(Layer(), LINKS[1], ranks) for ranks in (8, 1024))
    assert many.tokens == pytest.approx(few.tokens / 128)
    # Steps grow with the logarithm of the ranks, bytes hardly.
    assert many.sums_latency == pytest.approx(few.sums_latency * 10 / 3)
    assert many.sums_bytes < 1.2 * few.sums_bytes
    # The ring's bytes grow with the tokens alone.
    assert many.ring_bytes == pytest.approx(few.ring_bytes * (3 - 2 / 1024) / (3 - 2 / 8))
