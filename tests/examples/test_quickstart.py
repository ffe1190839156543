"""The quickstart runs from end to end, and an interrupt loses nothing that is finished."""

import json
import signal
import subprocess
import sys

from support.paths import ROOT

COMMAND = [sys.executable, "-m", "examples.quickstart", "--quick", "--out"]


def test_quickstart(tmp_path):
    run = subprocess.run(
        [*COMMAND, tmp_path],
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
        "kmeans",
        "near_field",
        "none",
        "softmax",
    }
    for picture in ("attention_rows_photograph.png", "attention_rows_sky.png", "digits.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    run = subprocess.Popen([*COMMAND, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        if line.startswith("Four rows"):
            break
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "Stopped." in said
    assert json.loads((tmp_path / "results.json").read_text()).keys() >= {"costs", "attention_rows"}
    assert (tmp_path / "attention_rows_shore.png").exists()
