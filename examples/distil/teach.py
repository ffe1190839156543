"""The distillation: a swapped encoder learns the hidden states of the original."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.table import Table
from safetensors.torch import save_model
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel

from examples.distil import encoder, text
from examples.distil.agreement import Agreement, agreement, embed
from examples.distil.recipe import Recipe
from examples.training.atomic import replacing
from examples.training.history import History, Panel
from examples.training.loop import Loop, Settings
from examples.training.randomness import seed_all
from examples.training.screen import Screen
from examples.training.state import Training

PANELS = (
    Panel("mean relative squared error of hidden states", {"train_loss": "training"}),
    Panel("agreement on held-out text", {"cosine": "cosine", "rank": "rank correlation"}),
)


def teach(
    name: str,
    paths: Sequence[Path],
    recipe: Recipe,
    settings: Settings,
    accelerator: Accelerator,
    screen: Screen,
) -> tuple[Agreement, Agreement]:
    """Distils an encoder as ``training.loop.Loop`` trains, and saves it.

    ``settings.out`` gets the files of the loop, and the folder ``model`` with the taught encoder
    and its tokenizer. Loading it needs ``attn_implementation``, as ``register_attention`` says.

    Args:
        name: name or folder of a pretrained encoder.
        paths: text files, or folders of them.
        recipe: of the distillation.
        settings: of the run.
        accelerator: that runs it.
        screen: for messages and bars.

    Returns:
        The agreement with the original on held-out text, before and after.

    Raises:
        Interrupted: by a signal, after a snapshot.
        InputError: the model, the text and the files in ``settings.out`` do not fit together.
    """
    original, tokenizer = encoder.load(name)
    windows = text.read(paths, tokenizer, recipe.tokens, recipe.held_out)
    original = original.to(accelerator.device).requires_grad_(False)
    model = encoder.swapped(original, recipe).requires_grad_(True)
    screen.print(
        f"{name}: {len(windows.taught):,} windows of {recipe.tokens} tokens, "
        f"{len(windows.held_out)} held out"
    )
    training = _start(model, original, recipe, accelerator)
    task = _Distillation(recipe, windows, original, training)
    before = task.agreement()
    screen.print(f"before: cosine {before.cosine:.3f}, rank correlation {before.rank:.3f}")
    loop = Loop(
        task,
        training,
        History(settings.out, "cosine", PANELS),
        recipe=recipe,
        data={"model": name, "windows": len(windows.taught)},
        settings=settings,
        screen=screen,
    )
    loop.run()
    if accelerator.is_main_process:
        model.save_pretrained(settings.out / "model")
        tokenizer.save_pretrained(settings.out / "model")
    last = loop.history.epochs[-1]
    return before, Agreement(last["cosine"], last["rank"])


def hidden_states_error(states: Sequence[Tensor], originals: Sequence[Tensor]) -> Tensor:
    """Mean over the layers of the squared error, relative to the variance of the original.

    Args:
        states: of each layer, (batch, tokens, features).
        originals: likewise.
    """
    errors = [
        (ours - theirs).square().mean() / theirs.var(correction=0)
        for ours, theirs in zip(states, originals, strict=True)
    ]
    return torch.stack(errors).mean()


def table_of_agreement(before: Agreement, after: Agreement) -> Table:
    """A row before and one after the distillation."""
    drawn = Table(title="agreement with the original on held-out text", title_justify="left")
    drawn.add_column("")
    drawn.add_column("cosine of embeddings", justify="right")
    drawn.add_column("rank correlation of similarities", justify="right")
    for label, row in (("before", before), ("after", after)):
        drawn.add_row(label, f"{row.cosine:.3f}", f"{row.rank:.3f}")
    return drawn


def _start(
    model: PreTrainedModel, original: PreTrainedModel, recipe: Recipe, accelerator: Accelerator
) -> Training:
    """A training before its first update."""

    def loss(network: nn.Module, windows: Tensor) -> Tensor:
        with torch.no_grad():
            expected = original(windows, output_hidden_states=True).hidden_states
        states = network(windows, output_hidden_states=True).hidden_states
        # The first are the embeddings, in front of all attention.
        return hidden_states_error(states[1:], expected[1:])

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.0)
    updates = recipe.epochs * recipe.updates
    warmup = updates // 10
    schedule = CosineLRScheduler(
        optimizer, t_initial=updates, warmup_t=warmup, warmup_prefix=False, t_in_epochs=False
    )
    return Training(
        model,
        loss,
        optimizer,
        schedule,
        accelerator,
        updates_per_epoch=recipe.updates,
        seed=recipe.seed,
        clip_grad=1.0,
    )


class _Distillation:
    """The task of the loop; see ``training.loop.Task``."""

    samples = "windows"

    def __init__(
        self, recipe: Recipe, windows: text.Windows, original: PreTrainedModel, training: Training
    ) -> None:
        self.recipe = recipe
        self.training = training
        self.device = training.accelerator.device
        self.process = training.accelerator.process_index
        self.samples_per_update = recipe.batch_size * training.accelerator.num_processes
        self.taught = windows.taught
        self.held_out = windows.held_out.to(self.device)
        self.originals = embed(original, self.held_out, recipe.batch_size)

    def batches(self, epoch: int, first_update: int) -> Iterator[Sequence[Tensor]]:
        for update in range(first_update, self.recipe.updates):
            seed_all("batch", self.recipe.seed, epoch, update, self.process)
            chosen = torch.randint(len(self.taught), (self.recipe.batch_size,))
            yield [self.taught[chosen].to(self.device)]

    def agreement(self) -> Agreement:
        model = self.training.evaluated.eval()
        return agreement(embed(model, self.held_out, self.recipe.batch_size), self.originals)

    def evaluate(self) -> dict[str, float]:
        return asdict(self.agreement())

    def save_weights(self, path: Path) -> None:
        with replacing(path) as partial:
            save_model(self.training.evaluated, str(partial))
