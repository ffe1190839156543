"""Pictures of attention matrices, drawn from their factors with matplotlib.

Each function returns a ``matplotlib.figure.Figure``, and none touches pyplot's state: a notebook
shows it, and ``figure.savefig("attention.pdf")`` keeps it. Figures are up to 7 inches wide, as a
page of two columns. Text and background follow matplotlib's style; text is of its sizes "small" and
"x-small", 8 and 7 points by default.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from softattn.common.validation import check_choice
from softattn.factors import AttentionFactors

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
except ImportError as error:
    raise ImportError(
        "softattn.plots draws with matplotlib; install it by pip install 'softattn[plots]'"
    ) from error

_WIDTH = 7.0
_PANELS_IN_A_LINE = 5
_TEXT, _SMALL_TEXT = "small", "x-small"
# Of marks on pictures, whose colours do not follow the style.
_INK = "#24292f"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_HEAT = "magma"
# A query's own place may outweigh all others: the colours end where this share of them does.
_SHARE_WITHIN_COLOURS = 0.995
_MOST_LABELS = 60


def rows_on_grid(
    factors: AttentionFactors,
    queries: Sequence[int],
    grid: tuple[int, int],
    *,
    image: Tensor | None = None,
    labels: Sequence[str] | None = None,
    num_prefix_tokens: int = 0,
    mark_queries: bool = True,
    sample: int = 0,
    head: int | None = None,
) -> Figure:
    """What some queries attend to, as one heat map each over an image's grid, on one scale.

    Of ``"token"`` the weights are drawn as multiples of 1/n, n the number of keys. Entries above
    the end of the colour bar are few, at most one in 200; entries below 0 are drawn as 0.

    Args:
        factors: of the call, see ``SoftmaxFreeAttention.attention_factors``.
        queries: rows of the matrix, prefix tokens first; negative ones count from the end.
        grid: height and width of the keys after their prefix tokens, whose product is their number.
        image: (height, width) or (height, width, 3), of any size, colours in [0, 1] or uint8. It
            is drawn before the maps, with the queries marked; None leaves it out.
        labels: a name for each query; by default its row and column.
        num_prefix_tokens: how many keys before the grid, such as a class token. What they are
            given is written under each map.
        mark_queries: whether queries are the tokens of the grid, so that they are marked; not so
            in cross-attention.
        sample: of the batch.
        head: of the layer; None is the mean over all.

    Raises:
        IndexError: there is no such query, sample or head.
        ValueError: the grid does not hold the keys, or labels are not one for each query.
    """
    rows, unit = _rows(factors, queries, sample, head)
    n = rows.shape[1]
    _check_grid(grid, n, num_prefix_tokens)
    places = [query % factors.query_side.shape[2] - num_prefix_tokens for query in queries]
    if labels is None:
        labels = [_name_of(place, grid, num_prefix_tokens, mark_queries) for place in places]
    _check_labels("labels", labels, len(rows), "queries")
    figure, panels = _panels(len(rows) + (image is not None), grid[0] / grid[1])
    if image is not None:
        _show_image(panels[0], image, grid)
        for i, place in enumerate(places, 1):
            if mark_queries and place >= 0:
                row, column = divmod(place, grid[1])
                panels[0].plot(column, row, "o", ms=9, mfc="white", mec=_INK, mew=0.8)
                panels[0].annotate(
                    str(i), (column, row), ha="center", va="center_baseline", size=6.5, color=_INK
                )
    most = float(rows[:, num_prefix_tokens:].quantile(_SHARE_WITHIN_COLOURS, dim=1).max())
    maps = panels[len(panels) - len(rows) :]
    for i, (panel, row_of_matrix, label, place) in enumerate(
        zip(maps, rows, labels, places, strict=True), 1
    ):
        heat = _show_heat(panel, row_of_matrix[num_prefix_tokens:].view(grid), most)
        numbered = label if image is None else f"{i}  {label}"
        panel.set_title(numbered, fontsize=_TEXT, loc="left", pad=3)
        if mark_queries and place >= 0:
            row, column = divmod(place, grid[1])
            panel.plot(column, row, "o", ms=5, mfc="none", mec="white", mew=1.8)
            panel.plot(column, row, "o", ms=5, mfc="none", mec="#0090c0", mew=0.9)
        if num_prefix_tokens:
            given = float(row_of_matrix[:num_prefix_tokens].sum())
            share = (
                f"{100 * given / n:.1f} %" if factors.denominator is not None else f"{given:.3g}"
            )
            panel.set_xlabel(f"to prefix tokens {share}", fontsize=_SMALL_TEXT)
    _colour_bar(figure, heat, maps, unit, rows[:, num_prefix_tokens:], most)
    return figure


def received_on_grid(
    factors: AttentionFactors,
    grid: tuple[int, int],
    *,
    image: Tensor | None = None,
    num_prefix_tokens: int = 0,
    sample: int = 0,
    head: int | None = None,
) -> Figure:
    """What each token of an image's grid receives from all queries, over the image.

    Of ``"token"`` it is drawn as a multiple of what a key receives on average.

    Args:
        factors: see ``rows_on_grid``.
        grid: see ``rows_on_grid``.
        image: see ``rows_on_grid``; it is drawn alone and, in grey, under the map.
        num_prefix_tokens: see ``rows_on_grid``; what they receive is written under the map.
        sample: see ``rows_on_grid``.
        head: see ``rows_on_grid``.

    Raises:
        IndexError: there is no such sample or head.
        ValueError: the grid does not hold the keys.
    """
    received = _of_one(factors.column_sums(), sample, head)
    unit = "weight received"
    if factors.denominator is not None:
        received = received * len(received) / factors.query_side.shape[2]
        unit = "weight received / average"
    _check_grid(grid, len(received), num_prefix_tokens)
    prefix, weights = received[:num_prefix_tokens], received[num_prefix_tokens:]
    figure, panels = _panels(1 + (image is not None), grid[0] / grid[1], in_a_line=2)
    if image is not None:
        _show_image(panels[0], image, grid)
        grey = image if image.ndim == 2 else image.float().mean(-1).to(image.dtype)
        _show_image(panels[1], grey, grid)
    most = float(weights.quantile(_SHARE_WITHIN_COLOURS))
    heat = _show_heat(panels[-1], weights.view(grid), most)
    if image is not None:
        heat.set_alpha(0.75)
    if num_prefix_tokens:
        each = ", ".join(f"{weight:.3g}" for weight in prefix.tolist())
        panels[-1].set_xlabel(f"prefix tokens {each}", fontsize=_SMALL_TEXT)
    _colour_bar(figure, heat, panels[-1:], unit, weights, most)
    return figure


def rows_of_sequence(
    factors: AttentionFactors,
    queries: Sequence[int],
    *,
    tokens: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    mark_queries: bool = True,
    kind: str = "curves",
    sample: int = 0,
    head: int | None = None,
) -> Figure:
    """What some queries attend to, over the positions of a sequence.

    Of ``"token"`` the weights are drawn as multiples of 1/n, n the number of keys.

    Args:
        factors: see ``rows_on_grid``.
        queries: rows of the matrix; negative ones count from the end.
        tokens: a name for each key, for sequences of at most 60; positions otherwise.
        labels: a name for each query; by default its token or position.
        mark_queries: whether queries are keys too, so that they are marked; not so in
            cross-attention.
        kind: ``"curves"``, for up to six queries, or ``"bars"``: one line of colours each.
        sample: see ``rows_on_grid``.
        head: see ``rows_on_grid``.

    Raises:
        IndexError: there is no such query, sample or head.
        ValueError: names do not fit, or there are too many for what they are to be drawn in.
    """
    check_choice("kind", kind, ("curves", "bars"))
    rows, unit = _rows(factors, queries, sample, head)
    n = rows.shape[1]
    places = [query % factors.query_side.shape[2] for query in queries]
    if tokens is not None:
        _check_labels("tokens", tokens, n, "keys")
        if n > _MOST_LABELS:
            raise ValueError(f"tokens are legible for up to {_MOST_LABELS} keys, got {n}")
    if labels is None:
        named = tokens if tokens is not None and mark_queries else range(max(places, default=0) + 1)
        labels = [str(named[place]) for place in places]
    _check_labels("labels", labels, len(rows), "queries")
    if kind == "curves":
        figure, panel = _draw_curves(rows, places, labels, unit, mark_queries)
    else:
        figure, panel = _draw_bars(rows, places, labels, unit, mark_queries)
    panel.tick_params(labelsize=_SMALL_TEXT)
    if tokens is not None:
        panel.set_xticks(range(n), tokens, rotation=90 if max(map(len, tokens)) > 2 else 0)
        panel.tick_params(axis="x", length=0)
    else:
        panel.set_xlabel("position", fontsize=_TEXT)
    return figure


def _draw_curves(
    rows: Tensor, places: list[int], labels: Sequence[str], unit: str, mark: bool
) -> tuple[Figure, Axes]:
    if len(rows) > len(_COLOURS):
        raise ValueError(
            f"curves are told apart for up to {len(_COLOURS)} queries, got {len(rows)}; use "
            "kind='bars'"
        )
    figure = Figure(figsize=(_WIDTH, 2.2), layout="constrained")
    panel = figure.add_subplot()
    for row, place, label, colour in zip(rows, places, labels, _COLOURS, strict=False):
        panel.plot(row.numpy(), color=colour, lw=1.2, label=label)
        if mark:
            panel.plot(place, float(row[place]), "o", ms=5, mfc="white", mec=colour, mew=1.2)
    panel.axhline(0, color="gray", lw=0.6, alpha=0.5, zorder=0)
    panel.margins(x=0.01)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_ylabel(unit, fontsize=_TEXT)
    panel.legend(
        title="query", fontsize=_SMALL_TEXT, title_fontsize=_SMALL_TEXT, frameon=False,
        loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.2,
    )  # fmt: skip
    return figure, panel


def _draw_bars(
    rows: Tensor, places: list[int], labels: Sequence[str], unit: str, mark: bool
) -> tuple[Figure, Axes]:
    height = 0.8 + 0.2 * len(rows)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panel = figure.add_subplot()
    most = float(rows.quantile(_SHARE_WITHIN_COLOURS))
    heat = _show_heat(panel, rows, most)
    panel.set_aspect("auto")
    panel.set_yticks(range(len(rows)), labels)
    panel.set_ylabel("query", fontsize=_TEXT, color=_INK)
    panel.tick_params(axis="y", length=0)
    if mark:
        panel.plot(places, range(len(rows)), "o", ms=3.5, mfc="white", mec=_INK, mew=0.6, ls="")
    _colour_bar(figure, heat, [panel], unit, rows, most)
    return figure, panel


def _rows(
    factors: AttentionFactors, queries: Sequence[int], sample: int, head: int | None
) -> tuple[Tensor, str]:
    """Rows [queries, n_k] of one sample, and what they are measured in."""
    if not len(queries):
        raise ValueError("queries must name at least one row of the matrix, got none")
    rows = _of_one(factors.rows(queries), sample, head)
    if factors.denominator is None:
        return rows, "weight"
    return rows * rows.shape[1], "weight × n"


def _of_one(weights: Tensor, sample: int, head: int | None) -> Tensor:
    """Weights (batch, heads, …) of one sample, and of one head or the mean over all."""
    of_sample = weights.detach()[sample].double().cpu()
    return of_sample.mean(0) if head is None else of_sample[head]


def _check_grid(grid: tuple[int, int], n: int, num_prefix_tokens: int) -> None:
    if len(grid) != 2 or math.prod(grid) != n - num_prefix_tokens or n == num_prefix_tokens:
        raise ValueError(
            "grid must be the (height, width) of the keys after their prefix tokens, got "
            f"{tuple(grid)} for {n} keys, {num_prefix_tokens} of them prefix tokens"
        )


def _check_labels(name: str, labels: Sequence[str], count: int, what: str) -> None:
    if len(labels) != count:
        raise ValueError(f"{name} must name each of the {count} {what}, got {len(labels)}")


def _name_of(place: int, grid: tuple[int, int], num_prefix_tokens: int, on_grid: bool) -> str:
    if not on_grid:
        return f"query {place + num_prefix_tokens}"
    if place < 0:
        return f"prefix token {place + num_prefix_tokens}"
    return "row {}, column {}".format(*divmod(place, grid[1]))


def _panels(
    count: int, aspect: float, in_a_line: int = _PANELS_IN_A_LINE
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels whose height is ``aspect`` times their width."""
    lines = math.ceil(count / in_a_line)
    columns = math.ceil(count / lines)
    # The colour bar takes the width of a third of a panel.
    width = min(_WIDTH / (columns + 0.35), 3.0)
    figure = Figure(
        figsize=(width * (columns + 0.35), lines * (width * aspect + 0.3)), layout="compressed"
    )
    panels = [figure.add_subplot(lines, columns, i + 1) for i in range(count)]
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    return figure, panels


def _show_image(panel: Axes, image: Tensor, grid: tuple[int, int]) -> None:
    height, width = grid
    # In the coordinates of the grid, whatever the image's own size.
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    white = 1 if image.is_floating_point() else 255
    panel.imshow(image.cpu().numpy(), extent=extent, cmap="gray", vmin=0, vmax=white)
    panel.spines[:].set_visible(False)


def _show_heat(panel: Axes, weights: Tensor, most: float) -> AxesImage:
    panel.spines[:].set_visible(False)
    return panel.imshow(weights.numpy(), cmap=_HEAT, vmin=0, vmax=most, interpolation="nearest")


def _colour_bar(
    figure: Figure, heat: AxesImage, panels: list[Axes], unit: str, weights: Tensor, most: float
) -> None:
    extend = "max" if bool((weights > most).any()) else "neither"
    bar = figure.colorbar(heat, ax=panels, extend=extend, aspect=25, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_SMALL_TEXT, length=2)
    bar.set_label(unit, fontsize=_TEXT)
