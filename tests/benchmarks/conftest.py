"""Benchmarks are not part of the installation, and the installed package must come first."""

import json
import runpy
import sys

import pytest
import torch
from support.paths import ROOT

sys.path.append(str(ROOT))


@pytest.fixture
def run_benchmark(tmp_path, monkeypatch, capsys):
    """Runs a command as ``python -m`` does; returns its JSON file, output and figures.

    It runs in this process, since a new one takes seconds for its imports.
    """

    def run(command):
        name, *options = command.split()
        options += ["--threads", "1", "--out", str(tmp_path)]
        threads = torch.get_num_threads()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [name, *options])
            # Another test may have imported what runs here.
            patch.delitem(sys.modules, f"benchmarks.{name}.__main__", raising=False)
            try:
                runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
            finally:
                torch.set_num_threads(threads)
        output = capsys.readouterr().out
        (report,) = (tmp_path / "measurements").glob(f"{name}_cpu_float32.json")
        content = json.loads(report.read_text())
        assert content["command"].startswith(f"python -m benchmarks.{command}")
        assert "torch" in content["environment"]
        figures = {path.stem: path for path in (tmp_path / "figures").glob("*.png")}
        return content, " ".join(output.split()), figures

    return run
