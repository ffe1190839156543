"""Messages and progress bars of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from examples.training.errors import UnreadableFile

# Its keyword ``description`` replaces the text beside the bar.
Advance = Callable[..., None]


class Screen:
    """Messages and bars of the first process. Other processes report unreadable files only.

    Args:
        shown: whether this is the first process.
        skip_unreadable: whether to skip files that cannot be read, instead of raising.
        option: of the command that sets ``skip_unreadable``, for the message.
    """

    def __init__(
        self, shown: bool, skip_unreadable: bool, option: str = "--skip_unreadable"
    ) -> None:
        self._shown = shown
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (shown and self._console.is_terminal),
        )
        self._skip_unreadable = skip_unreadable
        self._option = option
        self.unreadable = 0

    def print(self, line: str) -> None:
        """Prints a line above the bars, in the first process."""
        if self._shown:
            self._console.print(line, markup=False)

    @contextmanager
    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Shows a bar while the block runs; calling what it yields advances the bar by one."""
        self._progress.start()
        task = self._progress.add_task(description, total=total, completed=done, unit=unit)
        try:
            yield partial(self._progress.update, task, advance=1)
        finally:
            self._progress.remove_task(task)
            if not self._progress.tasks:
                self._progress.stop()

    def note_unreadable(self, messages: list[str]) -> None:
        """Counts and prints files that could not be read, in every process.

        Args:
            messages: one for each file.

        Raises:
            UnreadableFile: such files are not to be skipped.
        """
        if messages and not self._skip_unreadable:
            raise UnreadableFile(f"{messages[0]}; {self._option} skips such files")
        self.unreadable += len(messages)
        for message in messages:
            self._console.print(f"skipped {message}", markup=False)
