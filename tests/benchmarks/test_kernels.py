"""The tools for kernels run without a GPU."""

import pytest
import torch

from benchmarks.common.calls import MODES
from benchmarks.kernels import cases, expected, resources, search, trial


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalization", ["none", "landmark", "token"])
def test_expected_work_grows_as_the_operator_does(normalization, mode):
    d, m = 8, 5
    work = expected.Work.of(normalization, mode, d, m)
    twice_d = expected.Work.of(normalization, mode, 2 * d, m)
    twice_m = expected.Work.of(normalization, mode, d, 2 * m)
    assert (twice_d.bytes, twice_m.bytes) == (2 * work.bytes, work.bytes)
    assert twice_m.exponentials == 2 * work.exponentials
    # Only the exact diagonal of "token" is a product with m × m arrays, quadratic in m.
    squares = twice_m.operations - 2 * work.operations
    assert (squares > 0) == (normalization == "token")
    assert twice_d.operations == pytest.approx(2 * work.operations - squares / 2)


def test_expected_prints_every_normalization(capsys):
    expected.main(["--total-tokens", "1000"])
    printed = capsys.readouterr().out
    assert "derived, not measured" in printed
    for normalization in ("none", "landmark", "token"):
        assert printed.count(f"│ {normalization} ") == 2


def test_search_ranks_tiles_without_a_gpu(capsys):
    search.main(
        "--variant sums --features 16 --landmarks 16 --tokens 16 32 --tile-landmarks 16 --warps 4 "
        "--stages 1".split()
    )
    printed = capsys.readouterr().out
    assert "sums-D16-m16-bfloat16 on sm_90" in printed
    assert len([line for line in printed.splitlines() if line.startswith("│")]) == 2


def test_tiles_are_compared_with_the_smallest(monkeypatch):
    from softattn.kernels import configurations

    def fault():
        case = cases.Case("output, quotient", 16, 16)
        return trial.fault(case, (32, 16, 4, 1), device="cpu", tokens=100)

    assert fault() is None

    def tokens_of_tile(_):
        return torch.tensor(float(configurations.choose().tokens))

    monkeypatch.setitem(cases.VARIANTS, "output, quotient", tokens_of_tile)
    assert fault() == "differs by 1 of the largest entry"
    monkeypatch.setitem(cases.VARIANTS, "output, quotient", lambda _: 1 / 0)
    assert fault() == "ZeroDivisionError: division by zero"


def test_resources_are_written_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{resources.BEGIN}\nold\n{resources.END}\nafter\n")
    small = tuple(resources.Case(variant, 16, 16) for variant in ("sums", "block gradient"))
    monkeypatch.setattr(resources, "CASES", small)
    resources.main(["--page", str(page), "--variants", "sums"])
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("after\n")
    assert "old" not in written
    (row,) = [line for line in written.splitlines() if line.startswith("| sums, D = 16")]
    assert row.count(" KiB / ") == 4
    assert "block gradient" not in written
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold"):
        resources.write(page, [])
