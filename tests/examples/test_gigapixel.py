"""The picture whose rows several processes share."""

import torch

from examples.gigapixel import PATCH, TILE, mosaic


def test_processes_make_the_rows_of_one_picture():
    whole = mosaic(0, 2 * TILE[0], 2)
    assert whole.shape == (1, 2 * TILE[0], 2 * TILE[1], 3 * PATCH**2)
    parts = [mosaic(first, last, 2) for first, last in ((0, 40), (40, 60), (60, 106))]
    assert torch.equal(torch.cat(parts, 1), whole)
