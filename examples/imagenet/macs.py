"""Multiply-adds of a classifier, those of its inverses separately."""

from collections import Counter
from dataclasses import dataclass

import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from softattn import NewtonPinv


@dataclass(frozen=True)
class Macs:
    """The cost of one image.

    rest: multiply-adds of all matrix products and convolutions, except those of the inverses.
    grams: number of matrices that are inverted, by their size.
    """

    rest: int
    grams: Counter[int]

    def inverses(self, method: str) -> int:
        """Multiply-adds of all inverses by a method of ``softattn.newton_pinv``."""
        return sum(count * _inverse_macs(method, size) for size, count in self.grams.items())


def count_macs(name: str, image_size: tuple[int, int] = (224, 224)) -> Macs:
    """Counts the multiply-adds of a model on the meta device, which computes nothing.

    Args:
        name: of a model of ``timm``.
        image_size: height and width.
    """
    grams: Counter[int] = Counter()

    def record(gram: Tensor) -> Tensor:
        """Replaces the inverse, at no cost."""
        *batch, size, _ = gram.shape
        grams[size] += torch.Size(batch).numel()
        return gram

    model = timm.create_model(name, pinv=record, device="meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *image_size, device="meta"))
    return Macs(counter.get_total_flops() // 2, grams)


def _inverse_macs(method: str, size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        NewtonPinv(method, ridge=0.01, impl="eager")(torch.empty(1, size, size, device="meta"))
    return counter.get_total_flops() // 2
