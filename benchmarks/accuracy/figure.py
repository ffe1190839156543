"""The figure of ``benchmarks.accuracy``: a row for each comparison, a column for each sharpness."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.accuracy_comparisons import COMPARISONS, Error
from benchmarks.figure_style import COLOURS, MARKERS, figure_with_panels, head_and_foot, name_ticks


def accuracy_figure(errors: list[Error], tokens: str, foot: str) -> Figure:
    """Error over the number of landmarks, a line for each way of choosing them."""
    names = [name for name in COMPARISONS if any(error.comparison == name for error in errors)]
    sharpnesses = sorted({error.sharpness for error in errors})
    landmarks = sorted({error.landmarks for error in errors})
    samplers = list(dict.fromkeys(error.sampler for error in errors))
    size = (3.1 * len(sharpnesses) + 1.6, 2.7 * len(names) + 1.3)
    figure, rows = figure_with_panels(len(names), len(sharpnesses), size=size, share=True)
    for name, row in zip(names, rows, strict=True):
        for sharpness, panel in zip(sharpnesses, row, strict=True):
            for i, sampler in enumerate(samplers):
                points = sorted(
                    (error.landmarks, error.shown)
                    for error in errors
                    if (error.comparison, error.sharpness, error.sampler)
                    == (name, sharpness, sampler)
                )
                if points:
                    panel.plot(
                        *zip(*points, strict=True),
                        color=COLOURS[i],
                        marker=MARKERS[i],
                        label=sampler,
                    )
            panel.set(xscale="log", yscale="log")
            name_ticks(panel, landmarks, [str(m) for m in landmarks])
            panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        first, second, *_ = [*COMPARISONS[name].title.split(" to "), ""]
        row[0].set_ylabel(f"{first}\nto {second}", fontsize=9)
    for sharpness, panel in zip(sharpnesses, rows[0], strict=True):
        panel.set_title(f"tokens × {sharpness:g}")
    for panel in rows[-1]:
        panel.set_xlabel("landmarks m")
    title = f"Relative error against the exact answer, {tokens}"
    head_and_foot(figure, title, foot, legend_of=rows[0][0])
    return figure
