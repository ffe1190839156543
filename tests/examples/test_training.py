"""What any training needs: whole files, signals that lose nothing, snapshots, the best epoch."""

import os
import signal

import pytest
import torch

# Examples are no part of the installation; what is installed goes before what lies here.
from examples.training import atomic, history, interruption, randomness, snapshot
from examples.training.errors import InputError
from examples.training.interruption import noticing_interruption


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with atomic.replacing(path) as partial:
        partial.write_text("old")
    with pytest.raises(RuntimeError), atomic.replacing(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_handlers_of_signals_come_back():
    before = signal.getsignal(signal.SIGTERM)
    said = []
    with noticing_interruption(said.append) as noticed:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert noticed.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert said == ["SIGTERM: stopping soon, and saving; again to stop at once"]


def test_a_later_signal_ends_the_program(monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_OF_ONE_REQUEST", 0.0)
    with pytest.raises(KeyboardInterrupt), noticing_interruption(print):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_the_first_best_epoch_is_the_best(tmp_path):
    past = history.History(tmp_path, "score", ())
    assert past.best is None
    for number, score in enumerate((0.5, 0.7, 0.7), 1):
        past.epochs.append({"epoch": number, "score": score})
    assert past.best["epoch"] == 2


def test_a_snapshot_belongs_to_its_circumstances(tmp_path):
    path = tmp_path / "training.pt"
    snapshot.save(path, {"weights": torch.arange(3)}, {"lr": 0.1, "classes": ["a", "b"]})
    state = snapshot.load(path, {"lr": 0.1, "classes": ["a", "b"]})
    assert torch.equal(state["weights"], torch.arange(3))
    with pytest.raises(InputError, match=r"another run.*\n  lr: 0\.1 then, 0\.2 now$"):
        snapshot.load(path, {"lr": 0.2, "classes": ["a", "b"]})
    with pytest.raises(InputError, match=r"classes: only then or only now b$"):
        snapshot.load(path, {"lr": 0.1, "classes": ["a"]})


def test_a_picture_has_a_panel_for_each_group_of_curves(tmp_path):
    panels = [history.Panel("loss", {"loss": "training"}), history.Panel("mAP", {"map": "boxes"})]
    past = history.History(tmp_path, "map", panels)
    past.epochs += [{"epoch": 1, "loss": 2.0, "map": 0.1}, {"epoch": 2, "loss": 1.0, "map": 0.2}]
    past.write()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "epoch,loss,map",
        "1,2.0,0.1",
        "2,1.0,0.2",
    ]
    assert past.draw().read_bytes().startswith(b"\x89PNG")


def test_random_numbers_depend_on_their_place_alone():
    draws = []
    for place in (("image", 1), ("image", 2), ("image", 1)):
        randomness.seed_all(*place)
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
