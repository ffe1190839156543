"""Each room of the examples imports only from the rooms that it builds on."""

import pytest
from support.imports import imports_of
from support.paths import ROOT

EXAMPLES = ROOT / "examples"

# What each room may import from the others.
ALLOWED: dict[str, set[str]] = {
    "card": set(),
    "models": set(),
    "training": set(),
    "dense": {"card", "models", "training"},
    "detection": {"dense", "training"},
    "distil": {"training"},
    "imagenet": {"card", "models", "training"},
    "quickstart": {"card"},
    "segmentation": {"dense", "models", "training"},
    "attention_maps": {"card", "quickstart"},
    "gigapixel": {"card"},
}


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
