"""Stopping at a point where nothing is lost."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A launcher forwards a signal that the terminal has already sent to every process.
SECONDS_OF_ONE_REQUEST = 2.0


class Interrupted(Exception):
    """The run was asked to stop, and has saved its work.

    Args:
        exit_status: what the program should end with.
    """

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class Interruption:
    """Whether the run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_status(self) -> int:
        """What a shell expects of a program that a signal ended."""
        return 128 + (self.signal or signal.SIGTERM)


@contextmanager
def noticing_interruption(say: Callable[[str], None]) -> Iterator[Interruption]:
    """Notes SIGINT (Ctrl-C) and SIGTERM (a scheduler's warning) instead of ending the program.

    A signal that comes some seconds after the first ends the program as usual.

    Args:
        say: is called with a message for the user at the first signal.
    """
    interruption = Interruption()
    since = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if interruption.signal is None:
            interruption.signal, since = signal.Signals(number), time.monotonic()
            say(f"{interruption.signal.name}: stopping soon, and saving; again to stop at once")
        elif time.monotonic() - since > SECONDS_OF_ONE_REQUEST:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_interruption_to_parent(worker: int = 0) -> None:
    """Makes a worker process ignore signals that reach its whole group; it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
