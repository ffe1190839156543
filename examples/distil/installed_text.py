"""Writes the docstrings of installed packages into text files: English to distil on, offline.

python -m examples.distil.installed_text FOLDER PACKAGE [PACKAGE ...]
"""

import argparse
import ast
import importlib.util
import sys
from pathlib import Path

from rich.progress import track

from examples.training.errors import InputError

# Shorter docstrings are mostly lists of names.
LEAST_CHARACTERS = 400


def write(package: str, folder: Path) -> int:
    """Writes ``folder/PACKAGE.txt`` and returns its number of characters.

    Raises:
        InputError: there is no such package.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"no package {package!r} is installed")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
    # Functions that share a docstring count once.
    docstrings = dict.fromkeys(text for file in files for text in _docstrings(file))
    text = "\n\n".join(docstrings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{package}.txt").write_text(text, encoding="utf-8")
    return len(text)


def _docstrings(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates and tests of parsers
        return []
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes))
    return [text for text in found if text and len(text) >= LEAST_CHARACTERS]


def main() -> None:
    """Writes a file for each package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="+")
    arguments = parser.parse_args()
    try:
        for package in track(arguments.packages, "reading"):
            print(f"{package}: {write(package, arguments.folder):,} characters")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
