"""Draws where four places of a photograph attend to, and how much attention each place receives.

Run ``python -m examples.attention_maps``; the pictures go to docs/figures/, one for each panel.
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

import softattn
from examples import card
from examples.quickstart.photograph import PLACES, kernel_scale, photograph, photograph_tokens
from examples.quickstart.pictures import photograph_with_places
from softattn import plots

FIGURES = Path("docs/figures")
GRID = (107, 160)
NUM_LANDMARKS = 196


def main() -> None:
    """Draws all pictures."""
    height, width = GRID
    tokens = photograph_tokens(GRID)
    landmarks = softattn.AvgPoolLandmarks(NUM_LANDMARKS)(tokens, GRID)
    factors = softattn.attention_factors(tokens, None, landmarks, scale=kernel_scale(tokens))
    with matplotlib.rc_context(card.STYLE):
        _save(photograph_with_places(photograph((427, 640)), PLACES), "photograph")
        for number, (name, (y, x)) in enumerate(PLACES.items(), 1):
            query = int(y * height) * width + int(x * width)
            labels = [f"{number}  {name}"]
            _save(plots.rows_on_grid(factors, [query], GRID, labels=labels), name)
        _save(plots.received_on_grid(factors, GRID), "received")


def _save(figure: Figure, name: str) -> None:
    figure.savefig(FIGURES / f"attention_maps_{name}.png", dpi=130)


if __name__ == "__main__":
    main()
