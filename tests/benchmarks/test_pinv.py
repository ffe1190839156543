"""The benchmark of the inverses."""

import pytest
import torch

from benchmarks.pinv.measurements import Errors, gram_matrices
from benchmarks.pinv.methods import METHODS, shifted


def test_errors_shrink_with_the_spread_and_figures_are_written(run_benchmark):
    sizes = "--spreads 1 0.1 --matrices 2 --max-steps 4 --rounds 1 --seconds-per-cell 0.05"
    content, output, figures = run_benchmark(f"pinv {sizes}")
    easy, hard = content["spreads"]
    assert easy["condition"] < hard["condition"]
    assert easy["methods"]["minimax"]["error"]["worst"] < 1e-5
    assert len(easy["worst_error_after_steps"]["soft"]) == 5
    assert set(figures) == {"pinv", "pinv_condition", "pinv_steps", "pinv_time"}
    assert all(name in output for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_methods_invert_the_same_matrix(name):
    torch.manual_seed(0)
    a = gram_matrices(1.0, matrices=3, size=8, features=8, dtype=torch.float64, device="cpu")
    inverse = METHODS[name](a, 0.01)
    identity = torch.eye(8, dtype=torch.float64).expand(3, 8, 8)
    torch.testing.assert_close(inverse @ shifted(a, 0.01), identity, atol=1e-6, rtol=0)


def test_a_matrix_with_nan_has_an_infinite_error():
    truth = torch.eye(2).expand(3, 2, 2).double()
    inverse = truth.clone()
    inverse[1, 0, 0] = torch.nan
    assert Errors.of(inverse, truth) == Errors(median=0.0, worst=torch.inf)
