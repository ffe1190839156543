"""Progress on the terminal, and Ctrl-C that keeps what is finished."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


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


class Interruption:
    """A context that Ctrl-C ends quietly, and that remembers it."""

    def __init__(self) -> None:
        self.happened = False

    def __enter__(self) -> "Interruption":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.happened = self.happened or interrupted
        return interrupted
