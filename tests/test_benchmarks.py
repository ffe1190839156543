"""The benchmarks run from end to end on small sizes, and say what they measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COMMANDS = {
    "scaling": "--tokens 64 128 --rounds 2 --seconds-per-cell 0.2",
    "pinv": "--spreads 1 0.1 --matrices 2 --max-steps 4 --seconds-per-cell 0.05",
    "accuracy": "--side 12 --landmarks 4 9 --sharpness 1",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_benchmark(name, tmp_path):
    options = COMMANDS[name].split()
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options, "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (report,) = tmp_path.glob("*.json")
    content = json.loads(report.read_text())
    assert f"python -m benchmarks.{name}" in json.dumps(content)
    assert "torch" in json.dumps(content)
    (picture,) = tmp_path.glob("*.png")
    assert picture.stat().st_size > 10_000
