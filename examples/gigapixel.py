"""Attention over a picture of 17 million pixels whose rows several processes share.

The picture is made of the two photographs that scikit-learn brings: 8 × 8 of them, some mirrored or
turned, in different light. A token is a patch of 8 × 8 pixels. Three layers run forward and
backward; then the first one shows where the patch in the middle attends to.

    python -m examples.gigapixel                              one process
    torchrun --nproc-per-node 2 -m examples.gigapixel         two, with half of the rows each

Each writes its time, its memory and its output to out/gigapixel/, and compares them with those of
one process where that ran before.
"""

import argparse
import ctypes
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from einops import rearrange
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

import softattn
from examples import card
from softattn.distributed import ContextParallel

FOLDER = Path("out/gigapixel")
PATCH = 8
# Patches of one photograph, which loses its last 3 rows of pixels.
TILE = (53, 80)
WIDTH, HEADS, LAYERS, LANDMARKS = 64, 2, 3, 196
# Random projections are close to each other; this makes the kernel sharp.
SHARPNESS = 8.0
SAMPLED_TOKENS = 1000


class Block(nn.Module):
    """Attention and a perceptron on a channels-last map."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = softattn.SoftmaxFreeAttention(
            WIDTH,
            HEADS,
            landmarks=softattn.AvgPoolLandmarks(LANDMARKS),
            scale=SHARPNESS / (WIDTH // HEADS) ** 0.5,
        )
        self.perceptron = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, WIDTH) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.perceptron(self.norm2(x))


def main() -> None:
    """Runs this process's part, and writes and draws what all found."""
    args = _parser().parse_args()
    torch.set_default_dtype(getattr(torch, args.dtype))
    # torchrun names the processes; without it there is one.
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", 29400)):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "localhost")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        _run(init_device_mesh("cpu", (dist.get_world_size(),)), args.tiles)
    finally:
        dist.destroy_process_group()


def _run(mesh: DeviceMesh, tiles: int) -> None:
    rank, ranks = mesh.get_rank(), mesh.size()
    rows = tiles * TILE[0]
    first, last = (rows * place // ranks for place in (rank, rank + 1))
    torch.manual_seed(0)
    embed = nn.Linear(3 * PATCH**2, WIDTH)
    blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
    parallelize_module(blocks, mesh, {"*.attention": ContextParallel()})

    before = _start_peak()
    patches = mosaic(first, last, tiles)
    start = time.perf_counter()
    tokens = embed(patches)
    output = blocks(tokens)
    # The loss of all tokens is the sum of the processes' losses.
    (output.square().sum() / (rows * output.shape[2])).backward()
    seconds, peak = time.perf_counter() - start, _peak() - before
    # Each process has its tokens' share of the parameters' gradients.
    gradients = [parameter.grad for parameter in blocks.parameters() if parameter.grad is not None]
    for gradient in gradients:
        dist.all_reduce(gradient)
    found = {
        "seconds": seconds,
        "peak_mib": peak / 2**20,
        "output": _sampled(output.detach().flatten(0, 2), first * output.shape[2]).tolist(),
        "gradient": [float(gradient.norm()) for gradient in gradients],
    }
    first_block = blocks[0]
    assert isinstance(first_block, Block)
    attention = _attention_of_the_middle(first_block, tokens.detach(), first, rows)
    if rank == 0:
        _report(found, ranks, rows, output.shape[2])
        _draw(attention, ranks, tiles)


def mosaic(first: int, last: int, tiles: int) -> Tensor:
    """Rows of patches of the picture, (1, last − first, columns, 3 · PATCH²), from −1 to 1."""
    photographs = [
        torch.from_numpy(load_sample_image(name).copy())[: PATCH * TILE[0]] / 127.5 - 1
        for name in ("china.jpg", "flower.jpg")
    ]
    of_tiles = []
    for down in range(first // TILE[0], -(-last // TILE[0])):
        row = []
        for across in range(tiles):
            tile = photographs[(down + across) % 2]
            tile = tile.flip(1) if (down * tiles + across) % 3 == 0 else tile
            tile = tile.flip(0, 1) if (down + 2 * across) % 5 == 0 else tile
            row.append(tile * (0.6 + 0.4 * ((3 * down + 7 * across) % 8) / 7))
        of_tiles.append(torch.cat(row, 1))
    picture = torch.cat(of_tiles)
    patches = rearrange(picture, "(h p) (w q) c -> 1 h w (p q c)", p=PATCH, q=PATCH)
    start = first // TILE[0] * TILE[0]
    return patches[:, first - start : last - start]


def _sampled(tokens: Tensor, offset: int) -> Tensor:
    """Some tokens of all processes, the same for any number of processes, on each of them."""
    total = torch.tensor(tokens.shape[0])
    dist.all_reduce(total)
    places = torch.linspace(0, int(total) - 1, SAMPLED_TOKENS).long() - offset
    own = (places >= 0) & (places < tokens.shape[0])
    sampled = torch.zeros(SAMPLED_TOKENS, tokens.shape[1])
    sampled[own] = tokens[places[own]]
    dist.all_reduce(sampled)
    return sampled


@torch.no_grad()
def _attention_of_the_middle(block: Block, tokens: Tensor, first: int, rows: int) -> list[Tensor]:
    """What the first head's weights of the middle patch are on the parts of all processes.

    They are divided by the largest. The query comes from the process that has the middle.
    """
    layer = block.attention
    keys = layer.qk_proj(block.norm1(tokens))
    middle = rows // 2 - first
    query = torch.zeros(WIDTH)
    if 0 <= middle < keys.shape[1]:
        query = keys[0, middle, keys.shape[2] // 2].clone()
    dist.all_reduce(query)
    grid = tuple(keys.shape[1:3])
    keys = rearrange(keys, "1 h w (n d) -> 1 n (h w) d", n=HEADS)
    assert layer.context_group is not None
    landmarks, padding = layer.landmarks.forward_over_ranks(keys, grid, group=layer.context_group)
    factors = softattn.attention_factors(
        rearrange(query, "(n d) -> 1 n 1 d", n=HEADS),
        keys,
        landmarks,
        normalization="none",
        scale=layer.scale,
        landmark_padding_mask=padding,
    )
    own = factors.rows([0])[0, 0].reshape(grid)
    parts: list[Tensor] = [torch.empty(0)] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def _report(found: dict[str, Any], ranks: int, rows: int, columns: int) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{ranks}.json").write_text(json.dumps(found))
    pixels = rows * columns * PATCH**2 / 1e6
    print(
        f"{pixels:.1f} million pixels, {rows} × {columns} tokens, {LAYERS} layers, {ranks} "
        f"process{'es' if ranks > 1 else ''}: forward and backward {found['seconds']:.1f} s, peak "
        f"{found['peak_mib']:,.0f} MiB in the first process"
    )
    alone = FOLDER / "1.json"
    if ranks == 1 or not alone.exists():
        return
    one = json.loads(alone.read_text())
    outputs = torch.tensor(found["output"]), torch.tensor(one["output"])
    gradients = torch.tensor(found["gradient"]), torch.tensor(one["gradient"])
    print(
        f"against one process: {found['seconds'] / one['seconds']:.2f} of its time, "
        f"{found['peak_mib'] / one['peak_mib']:.2f} of its memory; relative difference of outputs "
        f"{(outputs[0] - outputs[1]).norm() / outputs[1].norm():.1e}, of the gradients' norms "
        f"{(gradients[0] - gradients[1]).norm() / gradients[1].norm():.1e}"
    )


def _draw(attention: list[Tensor], ranks: int, tiles: int) -> None:
    weights = torch.cat(attention).clamp(min=0)
    picture = mosaic(0, tiles * TILE[0], tiles)[0].unflatten(-1, (PATCH**2, 3)).mean(2)
    with matplotlib.rc_context(card.STYLE):
        figure = Figure(figsize=(11, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(((picture + 1) / 2).clamp(0, 1))
        right.imshow(weights / weights.quantile(0.999).clamp(min=1e-12), vmin=0, vmax=1)
        for panel, title in ((left, "the picture"), (right, "attention of the middle patch")):
            panel.plot(picture.shape[1] // 2, picture.shape[0] // 2, "+", color="w", markersize=12)
            panel.set_title(title, pad=10)
            panel.axis("off")
            for rank in range(1, ranks):
                panel.axhline(picture.shape[0] * rank / ranks, color="w", linewidth=0.8)
        figure.savefig(FOLDER / f"attention_{ranks}.png", dpi=90)


def _start_peak() -> int:
    """Resets the peak of this process's memory where the system allows it."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=8, help="photographs along each side")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    return parser


if __name__ == "__main__":
    main()
