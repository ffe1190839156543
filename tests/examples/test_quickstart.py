"""The quick start runs from end to end."""

import json
import subprocess
import sys

from support.paths import ROOT


def test_quickstart(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "examples.quickstart", "--quick", "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["attention_rows"]["layer_mismatch"] < 1e-3
    assert {training["variant"] for training in numbers["digits"]} == {
        "landmark",
        "token",
        "none",
        "softmax",
    }
    for picture in ("attention_rows.png", "digits.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
