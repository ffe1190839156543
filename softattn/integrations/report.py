"""What a swap of attention did to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SwapReport:
    """Which attention was swapped, and which was not; ``print`` writes it out.

    swapped: the names of the modules that were swapped, with what was left out of each, or "".
    left_alone: the names of those that were not, with the reason.
    notes: what holds for all that were swapped.
    """

    swapped: Mapping[str, str]
    left_alone: Mapping[str, str]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """A line for each note and each module."""
        lines = [f"swapped {len(self.swapped)}, left alone {len(self.left_alone)}"]
        lines += [f"  {note}" for note in self.notes]
        lines += [
            f"  {name}: swapped" + (rest and f" {rest}") for name, rest in self.swapped.items()
        ]
        lines += [f"  {name}: left alone, {reason}" for name, reason in self.left_alone.items()]
        return "\n".join(lines)
