"""What the pictures of attention matrices show is what the matrices hold."""

import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from support.strategies import normal

from softattn import SoftmaxFreeAttention, plots

GRID = (4, 6)
N = 24


def factors_of(prefix=0, normalization="token", n=N, context=None):
    torch.manual_seed(1)
    attention = SoftmaxFreeAttention(6, 2, normalization=normalization, dtype=torch.float64)
    x = normal(2, prefix + n, 6, seed=0, spread=2)
    with torch.no_grad():
        return attention.attention_factors(x, context, num_prefix_tokens=prefix)


def heat_of(axes):
    return axes.images[-1].get_array().data


def marks_of(axes):
    return {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}


def bar_of(figure):
    (bar,) = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    return bar


def drawn(figure, tmp_path):
    """Draws the figure whole, and returns its text."""
    figure.savefig(tmp_path / "figure.svg")
    return {text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))}


@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("normalization", ["token", "none"])
def test_rows_on_grid_are_the_rows(head, prefix, normalization, tmp_path):
    factors = factors_of(prefix, normalization)
    queries = [prefix + 7, -1, 0]
    figure = plots.rows_on_grid(
        factors, queries, GRID, num_prefix_tokens=prefix, sample=1, head=head
    )
    rows = factors.rows(queries)[1]
    rows = rows.mean(0) if head is None else rows[head]
    unit = prefix + N if normalization == "token" else 1
    for axes, row in zip(figure.axes, rows, strict=False):
        np.testing.assert_allclose(heat_of(axes).ravel(), row[prefix:] * unit, rtol=1e-12)
    places = [{(1, 1)}, {(5, 3)}, set() if prefix else {(0, 0)}]
    assert [marks_of(axes) for axes in figure.axes[:3]] == places
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    first = "prefix token 0" if prefix else "row 0, column 0"
    assert titles == ["row 1, column 1", "row 3, column 5", first]
    bar = bar_of(figure)
    assert bar.get_ylabel() == ("weight × n" if normalization == "token" else "weight")
    scales = {axes.images[-1].get_clim() for axes in figure.axes[:3]}
    expected = np.quantile(rows[:, prefix:] * unit, 0.995, axis=1).max()
    assert len(scales) == 1 and scales.pop() == pytest.approx((0, expected))
    text = drawn(figure, tmp_path)
    if prefix and normalization == "token":
        assert f"to prefix tokens {100 * float(rows[1, :2].sum()):.1f} %" in text


def test_rows_on_grid_beside_an_image(tmp_path):
    factors, image = factors_of(1), torch.rand(40, 60, 3)
    figure = plots.rows_on_grid(
        factors, [0, 1, 9], GRID, image=image, labels=["class", "a", "b"], num_prefix_tokens=1
    )
    photo, *maps, _ = figure.axes
    np.testing.assert_array_equal(photo.images[0].get_array(), image)
    assert photo.images[0].get_extent() == [-0.5, 5.5, 3.5, -0.5]
    assert marks_of(photo) == {(0, 0), (2, 1)}
    assert {(t.get_text(), tuple(t.xy)) for t in photo.texts} == {("2", (0, 0)), ("3", (2, 1))}
    assert [axes.get_title(loc="left") for axes in maps] == ["1  class", "2  a", "3  b"]
    drawn(figure, tmp_path)


def test_queries_of_cross_attention_are_not_marked():
    factors = factors_of(n=3, context=normal(2, N, 6, seed=1))
    figure = plots.rows_on_grid(factors, [0, 2], GRID, mark_queries=False)
    assert [marks_of(axes) for axes in figure.axes[:2]] == [set(), set()]
    assert figure.axes[1].get_title(loc="left") == "query 2"
    curves = plots.rows_of_sequence(factors, [0, 2], mark_queries=False)
    assert [text.get_text() for text in curves.axes[0].get_legend().texts] == ["0", "2"]


def test_many_queries_go_on_several_lines(tmp_path):
    figure = plots.rows_on_grid(factors_of(), range(8), GRID)
    drawn(figure, tmp_path)
    tops = {round(axes.get_position().y0, 3) for axes in figure.axes[:8]}
    assert len(tops) == 2


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("image", [None, torch.randint(256, (8, 12, 3), dtype=torch.uint8)])
def test_received_on_grid_is_the_column_sums(prefix, image, tmp_path):
    factors = factors_of(prefix)
    figure = plots.received_on_grid(factors, GRID, image=image, num_prefix_tokens=prefix)
    sums = factors.column_sums()[0].mean(0)
    panel = figure.axes[0 if image is None else 1]
    np.testing.assert_allclose(heat_of(panel).ravel(), sums[prefix:], rtol=1e-12)
    assert bar_of(figure).get_ylabel() == "weight received / average"
    assert float(sums.mean()) == pytest.approx(1)
    text = drawn(figure, tmp_path)
    if prefix:
        assert f"prefix tokens {float(sums[0]):.3g}" in text
    if image is not None:
        np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), image)


def test_what_cross_attention_gives_is_measured_by_its_average():
    factors = factors_of(n=3, context=normal(2, N, 6, seed=1))
    figure = plots.received_on_grid(factors, GRID)
    assert heat_of(figure.axes[0]).mean() == pytest.approx(1)
    unnormalised = plots.received_on_grid(factors_of(normalization="none"), GRID)
    assert bar_of(unnormalised).get_ylabel() == "weight received"


def test_curves_of_a_sequence_are_the_rows(tmp_path):
    factors = factors_of(n=5)
    tokens = ["a", "b", "c", "d", "e"]
    figure = plots.rows_of_sequence(factors, [1, -1], tokens=tokens, head=0)
    (panel,) = figure.axes
    rows = 5 * factors.rows([1, -1])[0, 0]
    curves = [line for line in panel.lines if len(line.get_ydata()) == 5]
    np.testing.assert_allclose([curve.get_ydata() for curve in curves], rows, rtol=1e-12)
    marks = [line for line in panel.lines if line.get_marker() == "o"]
    assert [float(mark.get_ydata()[0]) for mark in marks] == [float(rows[0, 1]), float(rows[1, 4])]
    for curve, mark in zip(curves, marks, strict=True):
        assert to_rgba(curve.get_color()) == to_rgba(mark.get_markeredgecolor())
    assert [text.get_text() for text in panel.get_legend().texts] == ["b", "e"]
    assert [text.get_text() for text in panel.get_xticklabels()] == tokens
    drawn(figure, tmp_path)


def test_bars_of_a_sequence_are_the_rows(tmp_path):
    factors = factors_of()
    figure = plots.rows_of_sequence(
        factors, range(N), kind="bars", labels=[f"q{i}" for i in range(N)]
    )
    panel = figure.axes[0]
    np.testing.assert_allclose(heat_of(panel), N * factors.rows(range(N))[0].mean(0), rtol=1e-12)
    (marks,) = panel.lines
    np.testing.assert_array_equal(marks.get_xydata(), np.repeat(np.arange(N), 2).reshape(N, 2))
    assert [text.get_text() for text in panel.get_yticklabels()][:2] == ["q0", "q1"]
    assert "position" in drawn(figure, tmp_path)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda f: plots.rows_on_grid(f, [0], (4, 5)), r"grid must be .* got \(4, 5\) for 24 keys"),
        (lambda f: plots.rows_on_grid(f, [0], (24,)), r"grid must be the \(height, width\)"),
        (lambda f: plots.received_on_grid(f, GRID, num_prefix_tokens=1), "1 of them prefix"),
        (lambda f: plots.rows_on_grid(f, [], GRID), "queries must name at least one row"),
        (lambda f: plots.rows_on_grid(f, [0], GRID, labels=[]), "each of the 1 queries, got 0"),
        (lambda f: plots.rows_of_sequence(f, [0], tokens=["a"]), "each of the 24 keys, got 1"),
        (lambda f: plots.rows_of_sequence(f, range(7)), "up to 6 queries, got 7; use kind='bars'"),
        (lambda f: plots.rows_of_sequence(f, [0], kind="pie"), "kind must be one of 'curves'"),
    ],
)
def test_bad_calls(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(factors_of())


def test_names_of_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="legible for up to 60 keys, got 61"):
        plots.rows_of_sequence(factors_of(n=61), [0], tokens=["a"] * 61)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "softattn.plots")
    with pytest.raises(ImportError, match=r"pip install 'softattn\[plots\]'"):
        import softattn.plots  # noqa: F401


def test_tensors_with_gradients_are_drawn():
    attention = SoftmaxFreeAttention(6, 2)
    factors = attention.attention_factors(torch.randn(1, N, 6, requires_grad=True))
    assert heat_of(plots.received_on_grid(factors, GRID).axes[0]).shape == GRID


def test_pyplot_knows_of_no_figure():
    assert plots.rows_on_grid(factors_of(), [0], GRID).canvas.manager is None


def test_text_and_background_follow_the_style():
    style = {"text.color": "red", "axes.labelcolor": "red", "figure.facecolor": "black"}
    with matplotlib.rc_context({**style, "font.size": 20}):
        figure = plots.rows_on_grid(factors_of(), [0], GRID)
    (title,) = figure.axes[0].findobj(lambda a: getattr(a, "get_text", str)() == "row 0, column 0")
    label = bar_of(figure).yaxis.label
    assert {to_rgba(text.get_color()) for text in (title, label)} == {to_rgba("red")}
    assert to_rgba(figure.get_facecolor()) == to_rgba("black")
    assert label.get_fontsize() > 15
