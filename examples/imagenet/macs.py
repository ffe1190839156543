"""Multiply-adds of a classifier, with its inverses apart from the rest."""

from collections import Counter
from dataclasses import dataclass

import timm
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from softattn import NewtonPinv


@dataclass(frozen=True)
class Macs:
    """What one image costs.

    rest: multiply-adds of all matrix products and convolutions but those of the inverses.
    grams: how many matrices of each size are inverted.
    """

    rest: int
    grams: Counter[int]

    def inverses(self, method: str) -> int:
        """Multiply-adds of all inverses by a method of ``softattn.newton_pinv``."""
        return sum(count * _inverse_macs(method, size) for size, count in self.grams.items())


def count_macs(name: str, image_size: tuple[int, int] = (224, 224)) -> Macs:
    """Counts without computing anything.

    Args:
        name: of a model of ``timm``.
        image_size: height and width.
    """
    grams: Counter[int] = Counter()

    def record(gram: Tensor) -> Tensor:
        """Stands for the inverse, and costs nothing."""
        *batch, size, _ = gram.shape
        grams[size] += torch.Size(batch).numel()
        return gram

    with FakeTensorMode(), torch.no_grad():
        model = timm.create_model(name, pinv=record).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *image_size))
    return Macs(counter.get_total_flops() // 2, grams)


def _inverse_macs(method: str, size: int) -> int:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        NewtonPinv(method, ridge=0.01, impl="eager")(torch.empty(1, size, size))
    return counter.get_total_flops() // 2
