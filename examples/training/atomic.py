"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write; ``path`` becomes that file when the block ends without an error.

    Until then, and after an error, a crash or a power cut, ``path`` is what it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, by which some libraries choose a format.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        # Some libraries write files that nobody else may read.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
