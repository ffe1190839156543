"""Distillation of a small random encoder: it learns, and an interruption changes nothing."""

import csv
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

# Examples are no part of the installation; what is installed goes before what lies here.
from examples.distil import agreement, costs, encoder, installed_text, text
from examples.distil.__main__ import main
from examples.distil.recipe import Recipe
from examples.distil.teach import hidden_states_error
from examples.training.errors import InputError
from examples.training.state import Training

WORDS = [f"w{number}" for number in range(60)]
TINY = {
    "tokens": 32,
    "landmarks": 4,
    "batch_size": 4,
    "updates": 4,
    "epochs": 2,
    "lr": 3e-3,
    "held_out": 8,
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """An encoder with sharp attention, which landmarks miss at first, and dropout."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=62,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Two files of random words."""
    folder = tmp_path_factory.mktemp("words")
    draw = random.Random(0)
    for name in ("first", "second"):
        (folder / f"{name}.txt").write_text(" ".join(draw.choices(WORDS, k=60 * 32)))
    return folder


def run(tiny: Path, words: Path, out: Path, **options: int | float | str) -> None:
    given = [f"--{name}={value}" for name, value in (TINY | options).items()]
    main([str(tiny), str(words), *given, "--out", str(out), "--costs"])


def metrics(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    return [{key: row[key] for key in row if key != "windows_per_second"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tiny, words, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(tiny, words, out)
    return out


def test_the_encoder_learns(tiny, words, tmp_path, capsys):
    run(tiny, words, tmp_path, updates=50, epochs=1)
    (row,) = metrics(tmp_path)
    before = float(capsys.readouterr().out.split("before: cosine ")[1].split(",")[0])
    # Of what was missing, at least a third is learned.
    assert 1 - float(row["cosine"]) < (1 - before) * 2 / 3


def test_the_taught_encoder_is_saved(tiny, words, uninterrupted):
    original, tokenizer = encoder.load(str(tiny))
    encoder.register(Recipe(**TINY))
    taught = AutoModel.from_pretrained(uninterrupted / "model", attn_implementation="softattn")
    held_out = text.read([words], tokenizer, 32, 8).held_out
    found = agreement.agreement(
        *(agreement.embed(model, held_out, 4) for model in (taught, original))
    )
    assert found.cosine == pytest.approx(float(metrics(uninterrupted)[-1]["cosine"]), abs=1e-6)
    assert found.rank == pytest.approx(float(metrics(uninterrupted)[-1]["rank"]), abs=1e-6)


@pytest.mark.parametrize("update", [1, 5])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    tiny, words, uninterrupted, tmp_path, monkeypatch, update
):
    with monkeypatch.context() as patched:
        original = Training.update

        def interrupted(self, batches):
            if self.updates == update:
                os.kill(os.getpid(), signal.SIGINT)
            original(self, batches)

        patched.setattr(Training, "update", interrupted)
        with pytest.raises(SystemExit) as stopped:
            run(tiny, words, tmp_path)
    assert stopped.value.code == 128 + signal.SIGINT
    kept = torch.load(tmp_path / "training.pt", weights_only=True)
    assert kept["state"]["training"]["updates"] == update + 1
    run(tiny, words, tmp_path)
    assert metrics(tmp_path) == metrics(uninterrupted)
    ours, theirs = (
        load_file(out / "model" / "model.safetensors") for out in (tmp_path, uninterrupted)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_recipe_does_not_go_on(tiny, words, uninterrupted):
    with pytest.raises(SystemExit, match="landmarks: 4 then, 5 now"):
        run(tiny, words, uninterrupted, landmarks=5)


def test_the_end_of_every_file_is_held_out(tiny, words):
    _, tokenizer = encoder.load(str(tiny))
    windows = text.read([words], tokenizer, 32, 12)
    assert windows.taught.shape == (108, 32) and windows.held_out.shape == (12, 32)
    first = tokenizer((words / "first.txt").read_text())["input_ids"]
    assert windows.taught[0].tolist() == first[:32]
    assert windows.held_out[5].tolist() == first[59 * 32 :]
    assert not {tuple(row) for row in windows.taught.tolist()} & {
        tuple(row) for row in windows.held_out.tolist()
    }


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["missing.txt"], "there is no text file or folder missing.txt"),
        (["short.txt"], "of which 0 can be held out"),
        (["binary.txt"], "binary.txt is not text in UTF-8"),
    ],
)
def test_text_that_cannot_be_used(tiny, tmp_path, monkeypatch, paths, reason):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("w1 " * 200)
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    _, tokenizer = encoder.load(str(tiny))
    with pytest.raises(InputError, match=reason):
        text.read([Path(path) for path in paths], tokenizer, 32, 3)


def test_a_missing_model_is_named(words, tmp_path):
    with pytest.raises(SystemExit, match="nowhere is no model of transformers"):
        main([str(tmp_path / "nowhere"), str(words)])


def test_agreement():
    torch.manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(6, 5), dim=-1)
    assert agreement.agreement(one, one) == agreement.Agreement(
        pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6)
    )
    # A turn changes all cosines and no similarity.
    turned = one @ torch.linalg.qr(torch.randn(5, 5)).Q
    found = agreement.agreement(turned, one)
    assert found.cosine < 0.9
    assert found.rank == pytest.approx(1, abs=1e-6)


def test_error_of_hidden_states_is_relative():
    torch.manual_seed(0)
    originals = [torch.randn(2, 5, 3), 100 * torch.randn(2, 5, 3)]
    means = [state.mean().expand_as(state) for state in originals]
    torch.testing.assert_close(hidden_states_error(means, originals), torch.tensor(1.0))
    halves = [means[0], originals[1]]
    torch.testing.assert_close(hidden_states_error(halves, originals), torch.tensor(0.5))


def test_costs_are_those_of_the_encoder_they_name(tiny):
    """Positions go beyond the limit of the model; softmax without a fused kernel is n × n."""
    config = encoder.load_config(str(tiny))
    config.max_position_embeddings = 4096
    recipe, device = Recipe(**TINY), torch.device("cpu")
    ours, theirs = (
        costs._measure(config, name, recipe, 4096, device, 1) for name in ("softattn", "eager")
    )
    assert 0 < ours.seconds and 0 < theirs.seconds
    weights = 2 * 4096**2 * 4
    assert ours.memory < weights < theirs.memory


def test_docstrings_of_a_package_become_text(tmp_path):
    length = installed_text.write("softattn", tmp_path)
    written = (tmp_path / "softattn.txt").read_text()
    assert len(written) == length
    assert "Gaussian attention through m landmarks, in time and memory linear" in written
    with pytest.raises(InputError, match="no package 'softattn_nowhere'"):
        installed_text.write("softattn_nowhere", tmp_path)
