"""Stopping where nothing is lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether the run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_status(self) -> int:
        """What a shell expects of a program that a signal ended."""
        return 128 + (self.signal or signal.SIGTERM)


@contextmanager
def noticing_interruption() -> Iterator[Interruption]:
    """Notes SIGINT (Ctrl-C) and SIGTERM (a scheduler's warning) in place of ending the program.

    Launchers of several processes pass on what their terminal got too, so repeated signals are
    noted no more than the first.
    """
    interruption = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        interruption.signal = interruption.signal or signal.Signals(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_interruption_to_parent(worker: int = 0) -> None:
    """For worker processes: Ctrl-C reaches them too, and they end when their parent ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
