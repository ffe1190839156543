"""Token maps, figures and times that several benchmarks share."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common.calls import Call
from benchmarks.common.figures import write_panels
from benchmarks.common.quantities import bytes_text, percent_text, seconds_text
from benchmarks.common.timing import Timing, paired_ratio, time_calls
from benchmarks.common.token_maps import (
    INPUTS,
    PICTURES,
    exact_rows,
    grid_of,
    queries_and_values,
    relative_error,
    sampled_rows,
)
from softattn import reference


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("grid", [(7, 9), (1, 4), (40, 3)])
def test_inputs_are_standardised_and_repeatable(name, grid):
    def draw():
        generator = torch.Generator().manual_seed(3)
        return queries_and_values(name, grid, heads=2, head_dim=5, generator=generator)

    query, value = draw()
    assert query.shape == value.shape == (1, 2, grid[0] * grid[1], 5)
    assert not torch.equal(query, value)
    assert query.isfinite().all() and value.isfinite().all()
    if name in PICTURES:
        assert query.var(2).mean() == pytest.approx(1)
    assert all(torch.equal(x, y) for x, y in zip(draw(), (query, value), strict=True))


def test_neighbours_are_alike_in_the_photograph_and_unlike_in_the_texture():
    def share(name):
        image = PICTURES[name]((64, 64))
        return (image[1:] - image[:-1]).square().mean() / (2 * image.var((0, 1)).mean())

    assert share("photograph") < 0.1
    assert share("texture") > 0.5


@given(st.integers(1, 5000))
def test_a_grid_has_the_tokens_and_is_the_most_nearly_square(tokens):
    height, width = grid_of(tokens)
    assert height * width == tokens and height <= width
    assert not any(tokens % h == 0 for h in range(height + 1, width) if h * h <= tokens)


@pytest.mark.parametrize("normalize", [False, True])
def test_exact_rows_are_those_of_the_whole_output(normalize):
    generator = torch.Generator().manual_seed(0)
    query, value = torch.randn(2, 1, 2, 150, 4, generator=generator)
    rows = sampled_rows(150, 100, generator)
    assert len(set(rows.tolist())) == 100
    whole = reference.gaussian_attention(
        query.double(), query.double(), value.double(), normalize=normalize
    )
    found = exact_rows(query, value, rows, normalize=normalize)
    torch.testing.assert_close(found, whole[:, :, rows])


def test_relative_error_is_that_of_the_norm():
    truth = torch.tensor([3.0, 4.0]).double()
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert torch.tensor(relative_error(torch.tensor([3.0, torch.nan]), truth)).isnan()


def test_calls_are_timed_by_how_long_they_take():
    def call(seconds):
        return Call(lambda: time.sleep(seconds) or torch.zeros(1), ())

    timings = time_calls(
        {"short": call(0.002), "long": call(0.02)},
        "forward",
        "cpu",
        rounds=3,
        seconds=0.5,
        done=lambda name: None,
    )
    assert timings["short"].median >= 0.002
    assert timings["long"].median >= 0.02
    assert paired_ratio(timings["long"], timings["short"]) > 1


def test_a_slow_call_takes_part_in_one_round():
    slow = Call(lambda: time.sleep(0.05) or torch.zeros(1), ())
    finished = []
    options = {"rounds": 5, "seconds": 0.01, "done": finished.append}
    timings = time_calls({"slow": slow}, "forward", "cpu", **options)
    assert len(timings["slow"].rounds) == 1
    assert finished == ["slow"]


def test_ratios_are_taken_within_rounds():
    assert paired_ratio(Timing((2.0, 40.0, 6.0)), Timing((1.0, 20.0, 2.0))) == 2
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).quartiles == (2, 4)
    assert Timing((7.0,)).quartiles == (7, 7)


def test_gradients_are_taken_to_all_inputs():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    call = Call(lambda: x.square(), (x,))
    assert call.run("forward").tolist() == [4, 9]
    assert call.run("forward+backward")[0].tolist() == [4, 6]
    weighted = Call(lambda: x.square(), (x,), torch.tensor([1.0, 0.0]))
    assert weighted.run("forward+backward")[0].tolist() == [4, 0]


def test_every_panel_is_a_file_and_the_main_ones_stand_side_by_side(tmp_path):
    from matplotlib.image import imread

    panels = {name: lambda panel: panel.plot([1, 2], [3, 4]) for name in ("a", "b", "c")}
    paths = write_panels(panels, ["a", "b"], tmp_path / "x", description="machine")
    assert {path.name for path in paths} == {"x_a.png", "x_b.png", "x_c.png", "x.png"}
    alone, together = (imread(tmp_path / name) for name in ("x_a.png", "x.png"))
    assert together.shape[1] == 2 * alone.shape[1]
    # Opaque and dark: the card looks the same on a light and on a dark page.
    assert alone[0, 0, 3] == 1 and alone[0, 0, :3].max() < 0.25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (seconds_text(1.25), "1.25 s"),
        (seconds_text(0.0125), "12.5 ms"),
        (seconds_text(2e-9), "0.002 µs"),
        (bytes_text(1536), "1.5 KiB"),
        (bytes_text(3 * 2**30), "3 GiB"),
        (percent_text(0.0123), "1.2 %"),
        (percent_text(6.83), "683 %"),
    ],
)
def test_quantities_have_units(text, expected):
    assert text == expected
