"""The benchmark of associative recall."""

import json

import pytest
import torch

from benchmarks.recall import __main__ as recall
from benchmarks.recall.attentions import ATTENTIONS, EMBED_DIM
from benchmarks.recall.tables import accuracy_text
from benchmarks.recall.task import KEY_FEATURES, NO_TARGET, NO_VALUE, VALUES, draw, tokens_of
from benchmarks.recall.training import Recipe, train

SMALL = "--steps 2 --batch-tokens 50 --test-batches 1 --landmarks 4"


def test_every_query_has_the_key_of_the_pair_that_has_its_value():
    sequences = draw(3, 10, torch.Generator().manual_seed(0))
    assert sequences.keys.shape == (3, tokens_of(10), KEY_FEATURES) == (3, 15, 32)
    is_query = sequences.values == NO_VALUE
    assert (is_query.sum(1) == 5).all() and (sequences.targets[~is_query] == NO_TARGET).all()
    for sample in range(3):
        keys, asking = sequences.keys[sample], is_query[sample]
        same = (keys[asking, None] == keys[None, ~asking]).all(-1)
        assert (same.sum(1) == 1).all() and (same.sum(0) <= 1).all()
        values = sequences.values[sample, ~asking][same.long().argmax(1)]
        assert torch.equal(values, sequences.targets[sample, asking])
    assert sequences.values.max() <= VALUES


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_is_a_layer(name):
    layer = ATTENTIONS[name].make(4)
    x = torch.randn(2, 15, EMBED_DIM, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert output.shape == x.shape and x.grad.isfinite().all()


def test_all_of_them_but_one_have_as_many_parameters():
    numbers = {
        name: sum(p.numel() for p in attention.make(4).parameters())
        for name, attention in ATTENTIONS.items()
        if name != "nystrom_attention"
    }
    assert set(numbers.values()) == {3 * (EMBED_DIM**2 + EMBED_DIM)}


def test_a_small_task_is_learned():
    recipe = Recipe(steps=200, landmarks=4, batch_tokens=600, learning_rate=1e-2, test_batches=4)
    assert train("softmax", 4, 0, recipe, lambda step: None).accuracy > 0.9


def test_runs_are_written_and_resumed(run_benchmark, tmp_path):
    content, output, figures = run_benchmark(
        f"recall {SMALL} --attentions softmax token --pairs 4 6 --seeds 2"
    )
    runs = content["runs"]
    assert len({(r["attention"], r["pairs"], r["seed"]) for r in runs}) == len(runs) == 8
    assert all(0 <= run["accuracy"] <= 1 for run in runs) and not content["interrupted"]
    assert '"token"' in output and "6 pairs" in output and list(figures) == ["recall_accuracy"]
    words = f"{SMALL} --attentions exact token --pairs 4 --seeds 1 --resume"
    recall.main([*words.split(), "--out", str(tmp_path)])
    more = json.loads((tmp_path / "measurements" / "recall_cpu_float32.json").read_text())
    assert more["runs"][:8] == runs
    assert [run["attention"] for run in more["runs"][8:]] == ["exact"]


def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    words = [*SMALL.split(), "--pairs", "4", "--out", str(tmp_path)]
    real = recall.train

    def interrupted(attention, *rest):
        if attention == "token":
            raise KeyboardInterrupt
        return real(attention, *rest)

    monkeypatch.setattr(recall, "train", interrupted)
    recall.main(["--attentions", "token", *words])
    assert "wrote nothing" in capsys.readouterr().out and not list(tmp_path.iterdir())
    recall.main(["--attentions", "softmax", "token", *words])
    content = json.loads((tmp_path / "measurements" / "recall_cpu_float32.json").read_text())
    assert content["interrupted"] and [r["attention"] for r in content["runs"]] == ["softmax"]
    with pytest.raises(SystemExit):
        recall.main(["--resume", *words, "--steps", "3"])
    assert "runs of another recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recall.main(["--pairs", "5", "--out", str(tmp_path)])


def test_ranges_of_seeds():
    assert accuracy_text([]) == ""
    assert accuracy_text([0.5]) == "50.0 %"
    assert accuracy_text([0.5, 0.25, 0.75]) == "50.0 % (25.0 to 75.0)"
