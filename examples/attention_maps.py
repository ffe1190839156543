"""Draws where four places of a photograph attend to, and how much attention each place receives.

Run ``python -m examples.attention_maps``; the two pictures go to docs/figures/.
"""

from pathlib import Path

import softattn
from examples.quickstart.photograph import PLACES, kernel_scale, photograph, photograph_tokens
from softattn import plots

FIGURES = Path("docs/figures")
GRID = (107, 160)
NUM_LANDMARKS = 196


def main() -> None:
    """Draws both pictures."""
    height, width = GRID
    tokens = photograph_tokens(GRID)
    landmarks = softattn.AvgPoolLandmarks(NUM_LANDMARKS)(tokens, GRID)
    factors = softattn.attention_factors(tokens, None, landmarks, scale=kernel_scale(tokens))
    queries = [int(y * height) * width + int(x * width) for y, x in PLACES.values()]
    image = photograph((427, 640))
    rows = plots.rows_on_grid(factors, queries, GRID, image=image, labels=list(PLACES))
    rows.savefig(FIGURES / "attention_maps.png", dpi=200)
    received = plots.received_on_grid(factors, GRID, image=image)
    received.savefig(FIGURES / "attention_received.png", dpi=120)


if __name__ == "__main__":
    main()
