"""Imports point one way, and importing softattn costs little and no Triton."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from support.imports import imports_of, private_imports_of
from support.paths import ROOT

import softattn

PACKAGE = Path(softattn.__file__).parent

# What each room, a folder or a file, may import from the package.
ALLOWED = {
    "common": set(),
    "reference": set(),
    "eager": {"common"},
    "triton": {"common", "kernels"},
    "backends": {"common", "eager", "triton"},
    "landmarks": {"backends", "common"},
    "pinv": {"backends", "common", "triton"},
    "gaussian": {"backends", "common"},
    "attention": {"backends", "common", "pinv"},
    "factors": {"backends", "common", "eager", "pinv"},
    "layer": {"attention", "common", "factors", "landmarks", "pinv"},
    "distributed": {"common"},
    "integrations": {"attention", "common", "factors", "landmarks", "layer", "pinv"},
    "plots": {"common", "factors"},
    "flops": {"eager", "triton"},
}


def test_every_room_has_its_layer():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"kernels"}
    assert files | folders == set(ALLOWED)


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_point_one_way(name):
    single = PACKAGE / f"{name}.py"
    files = [single] if single.exists() else list((PACKAGE / name).glob("*.py"))
    imported = set().union(*map(imports_of, files))
    ours = {
        parts[1]
        for module in imported
        if (parts := module.split("."))[0] == "softattn" and len(parts) > 1
    }
    assert ours & {*ALLOWED, "kernels"} <= ALLOWED[name] | {name}
    assert "triton" not in {module.split(".")[0] for module in imported}


def test_kernels_import_nothing_else_of_softattn():
    (folder,) = importlib.util.find_spec("softattn.kernels").submodule_search_locations
    files = list(Path(folder).glob("*.py"))
    assert files
    for path in files:
        ours = {name for name in imports_of(path) if name.split(".")[0] == "softattn"}
        assert all(name.startswith("softattn.kernels") for name in ours)


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_benchmarks_and_examples_use_the_public_interface_only(folder):
    paths = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")]
    assert paths
    private = {str(path): private_imports_of(ROOT / path) for path in paths}
    kernels = "benchmarks/kernels/"
    assert {name for name in private if private[name] and not name.startswith(kernels)} == set()


def in_fresh_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_softattn_works_where_triton_cannot_be_imported():
    in_fresh_process(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, softattn\n"
        "layer = softattn.SoftmaxFreeAttention(8, 2)\n"
        "layer(torch.randn(1, 5, 5, 8)).sum().backward()\n"
        "assert not any(name.startswith('softattn.kernels') for name in sys.modules)\n"
    )


def test_integrations_are_imported_where_they_are_asked_for():
    in_fresh_process(
        "import sys\n"
        "import softattn\n"
        "assert not any(name.startswith('softattn.integrations') for name in sys.modules)\n"
        "import softattn.integrations.torch\n"
        "assert not {'timm', 'transformers'} & set(sys.modules)\n"
    )


def test_import_adds_little_to_that_of_torch():
    seconds = [
        float(
            in_fresh_process(
                "import time, torch\n"
                "start = time.process_time()\n"  # which a busy machine does not lengthen
                "import softattn\n"
                "print(time.process_time() - start)\n"
            )
        )
        for _ in range(3)
    ]
    assert min(seconds) <= 0.1
