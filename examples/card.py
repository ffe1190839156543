"""How the pictures look: a dark card, which suits light and dark pages and does not glare.

Text is sized to be read on a screen that is 390 pixels wide.
"""

from typing import Any

BACKGROUND, TEXT, GRID = "#24292f", "#e6e8eb", "#454c54"
# Okabe and Ito's palette for the colour-blind, lightened for the background.
COLOURS = ("#ff9e4a", "#56b4e9", "#2fc39a", "#f0e442", "#e39bc5", "#e6e8eb")

# The settings of matplotlib, for ``matplotlib.rc_context(STYLE)``.
STYLE: dict[Any, Any] = {
    "font.size": 13.0,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.facecolor": BACKGROUND,
    "figure.facecolor": BACKGROUND,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": "small",
}
