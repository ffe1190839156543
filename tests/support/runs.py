"""Trainings of the examples: started, interrupted and compared."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from support.paths import ROOT

TIMINGS = {"images_per_second", "seconds_per_image"}


def arguments(data: Path, out: Path, recipe: dict, *options: str) -> list[str]:
    config = out.parent / f"{out.name}.yaml"
    config.write_text(yaml.safe_dump(recipe))
    return [*("--data", str(data), "--config", str(config), "--out", str(out)), *options]


def metrics(out: Path) -> list[dict[str, str]]:
    rows = csv.DictReader((out / "metrics.csv").read_text().splitlines())
    return [{key: row[key] for key in row if key not in TIMINGS} for row in rows]


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def interrupt_after(updates: int, monkeypatch) -> None:
    """Sends this process a signal in the middle of an update."""
    # Examples are no part of the installation; what is installed goes before what lies here.
    from examples.training.state import Training

    update = Training.update

    def interrupted(self, batches):
        if self.updates == updates:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, batches)

    monkeypatch.setattr(Training, "update", interrupted)


def launch(module: str, *options: str) -> subprocess.Popen:
    """Two processes under torchrun."""
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2"
    return subprocess.Popen(
        [*launcher.split(), "-m", module, *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
