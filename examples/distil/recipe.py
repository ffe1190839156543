"""What determines the result of a distillation."""

from dataclasses import dataclass

from examples.training.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """A distillation, apart from its model and its text.

    Args:
        landmarks: number of landmarks of each attention.
        landmarks_from: ``"queries"`` or ``"keys"``, see ``register_attention``.
        normalization: see ``register_attention``.
        tokens: length of a window of text, special tokens included.
        batch_size: windows in an update, for each process.
        updates: number of updates in an epoch, which ends with an evaluation.
        epochs: number of epochs.
        lr: largest learning rate; the first tenth of the updates warms up to it, and a cosine falls
            to 0.
        held_out: number of windows of held-out text.
        seed: of the choice of windows.

    Raises:
        InputError: a number is too small.
    """

    landmarks: int = 64
    landmarks_from: str = "queries"
    normalization: str = "softmax"
    tokens: int = 512
    batch_size: int = 8
    updates: int = 100
    epochs: int = 4
    lr: float = 2e-4
    held_out: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("landmarks", "tokens", "batch_size", "updates", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.held_out < 3:
            raise InputError(
                f"held_out must be at least 3, so that similarities have ranks: {self.held_out}"
            )
        if not self.lr > 0:
            raise InputError(f"lr must be positive, got {self.lr}")
