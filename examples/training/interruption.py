"""Stopping where nothing is lost."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Launchers of several processes pass on at once what their terminal sent to all of them too.
SECONDS_OF_ONE_REQUEST = 2.0


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
    """Notes SIGINT (Ctrl-C) and SIGTERM (a scheduler's warning) in place of ending the program.

    One that comes some seconds after the first ends it as usual.

    Args:
        say: is told what a person should know at the first.
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
    """For worker processes, which signals to a group reach too: they end when their parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
