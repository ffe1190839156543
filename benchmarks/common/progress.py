"""Progress on the terminal, and Ctrl-C that keeps what is finished."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_WIDTH_OF_FILES = 160


def terminal() -> Console:
    """The console to print on; output into a file is wide."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_FILES)


class Steps:
    """A bar that counts finished steps and names the current one.

    interrupted: whether Ctrl-C ended the block.
    """

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self.interrupted = False
        self._progress = progress
        self._task = progress.add_task("", total=total, stage=stage)

    def describe(self, step: str) -> None:
        """Names the step that begins."""
        self._progress.update(self._task, description=step)

    def advance(self, step: str = "") -> None:
        """Counts a finished step; its name is ignored, so that this can be a callback."""
        self._progress.advance(self._task)


@contextmanager
def counted_steps(console: Console, stage: str, total: int) -> Iterator[Steps]:
    """Shows progress; Ctrl-C ends the block quietly and sets ``interrupted``."""
    with Progress(
        TextColumn("{task.fields[stage]}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", style="dim"),
        console=console,
    ) as progress:
        steps = Steps(progress, stage, total)
        try:
            yield steps
        except KeyboardInterrupt:
            steps.interrupted = True
