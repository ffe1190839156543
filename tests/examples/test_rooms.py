"""Each room of the examples imports only from the rooms that it builds on."""

import ast
from pathlib import Path

import pytest
from support.paths import ROOT

EXAMPLES = ROOT / "examples"

# What each room may import from the others.
ALLOWED: dict[str, set[str]] = {
    "models": set(),
    "training": set(),
    "imagenet": {"models", "training"},
    "quickstart": set(),
    "attention_maps": {"quickstart"},
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_room_is_listed():
    files = {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in EXAMPLES.glob("*/__init__.py")}
    assert files | folders == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_those_that_they_build_on(room):
    files = [*EXAMPLES.glob(f"{room}.py"), *EXAMPLES.glob(f"{room}/*.py")]
    imported = set().union(*map(imports_of, files))
    rooms = {name.split(".")[1] for name in imported if name.startswith("examples.")}
    assert rooms <= ALLOWED[room] | {room}


def test_examples_use_the_public_interface_only():
    modules = {"plots", "integrations", "flops", "reference"}
    for path in EXAMPLES.glob("**/*.py"):
        for name in imports_of(path):
            package, *parts = name.split(".")
            # All other public names are imported from the package itself.
            if package == "softattn" and len(parts) > 1:
                assert parts[0] in modules, (path, name)
