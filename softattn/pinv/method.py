"""What the methods of ``newton_pinv`` have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor


class Problem(NamedTuple):
    """Matrices to invert.

    matrices: A, (matrices, rows, columns), not empty, in float32 or float64.
    target: A + ε I, the matrices whose inverse is wanted.
    ridge: ε.
    on_triton: whether a kernel takes the steps.
    """

    matrices: Tensor
    target: Tensor
    ridge: float
    on_triton: bool


class Method(ABC):
    """A way to the inverse: where it starts, which steps it takes, and when it stops.

    name: what users call it.
    layer_ridge: the ridge that an attention layer gives it.
    takes_rectangular: whether it inverts matrices that are not square.
    obstacle_to_triton: why no kernel takes its steps, or None where one does.
    converges: whether it runs until it has converged where no number of steps is given.
    """

    name: ClassVar[str]
    layer_ridge: ClassVar[float] = 0.0
    takes_rectangular: ClassVar[bool] = False
    obstacle_to_triton: ClassVar[str | None] = None
    converges: ClassVar[bool]

    def check(self, ridge: float) -> None:  # noqa: B027
        """Raises ValueError where the method does not take the ridge, which is 0 or above."""

    @abstractmethod
    def solve(self, problem: Problem, iterations: int | None) -> tuple[Tensor, Tensor]:
        """The inverses and the steps that each matrix took.

        Args:
            problem: the matrices.
            iterations: the number of steps, or None for what the method chooses.

        Returns:
            (matrices, columns, rows) and (matrices,), int64. The inverses have their gradient:
            that of the pseudo-inverse where they have converged, that of the steps otherwise.
        """
