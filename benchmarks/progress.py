"""Progress on the terminal, and Ctrl-C that keeps what is finished."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_WIDTH_OF_FILES = 160


def terminal() -> Console:
    """The console to print on; what is no terminal, such as a file, is wide."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_FILES)


def progress_bar(console: Console) -> Progress:
    """A bar that counts cells and names the one at work."""
    return Progress(
        TextColumn("{task.fields[stage]:<7}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", style="dim"),
        console=console,
    )


@contextmanager
def until_interrupted() -> Iterator[Event]:
    """A context that Ctrl-C ends quietly; its event is then set."""
    interrupted = Event()
    try:
        yield interrupted
    except KeyboardInterrupt:
        interrupted.set()
