"""Benchmarks are not part of the installation, and the installed package must come first."""

import json
import subprocess
import sys

import pytest
from support.paths import ROOT

sys.path.append(str(ROOT))


@pytest.fixture
def run_benchmark(tmp_path):
    """Runs a command in a process of its own; returns its JSON file, output and figures."""

    def run(command):
        name, *options = command.split()
        options += ["--threads", "1", "--out", tmp_path]
        process = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        (report,) = (tmp_path / "measurements").glob(f"{name}_cpu_float32.json")
        content = json.loads(report.read_text())
        assert content["command"].startswith(f"python -m benchmarks.{command}")
        assert "torch" in content["environment"]
        figures = {path.stem: path for path in (tmp_path / "figures").glob("*.png")}
        return content, " ".join(process.stdout.split()), figures

    return run
