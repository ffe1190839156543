"""Times of attention and of the layer, eager and as a replayed CUDA graph.

Beside them is softmax attention by each of PyTorch's backends. Every cell is written before the
next begins. On the CPU, where there are no graphs, the eager path shows that the command runs.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import softattn
from benchmarks.common.calls import MODES, Call
from benchmarks.common.traffic import traffic_elements

_FEATURES = _LANDMARKS = 64
_NEAR_FIELD = 16
_WARM_UPS, _FEWEST_RUNS, _MOST_RUNS = 2, 3, 20
# Of the runs of one kind.
_SECONDS = 0.5


def main(argv: list[str] | None = None) -> None:
    """Times all cells and writes them."""
    args = _parser().parse_args(argv)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    cells: list[dict[str, Any]] = []
    for size in args.sizes:
        for name, call in calls(size, args.device, dtype):
            for mode in MODES:
                cell = {"size": size, "call": name, "mode": mode}
                cells.append(cell | _timed(call, mode, args) | _elements(size, name, mode))
                print(cells[-1], flush=True)
                args.out.write_text(json.dumps(cells, indent=1) + "\n")


def calls(size: str, device: str, dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    """The calls that are timed, and their names.

    Args:
        size: batch x heads x tokens, such as "8x8x3136".
        device: where they run.
        dtype: of the tokens.
    """
    batch, heads, n = map(int, size.split("x"))
    generator = torch.Generator(device).manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return numbers.requires_grad_()

    query, value, grad = (tensor(batch, heads, n, _FEATURES) for _ in range(3))
    grad = grad.detach()
    for normalization in ("none", "landmark", "token", "softmax"):
        yield normalization, _attention(query, value, grad, normalization=normalization)
    yield "near field", _attention(query, value, grad, near_field=_NEAR_FIELD)
    yield "128 landmarks", _attention(query, value, grad, landmarks=2 * _LANDMARKS)
    if dtype != torch.float32:
        yield "float32", _attention(*(t.detach().float() for t in (query, value, grad)))
    yield from _rivals(query, value, grad, device)
    layer = softattn.SoftmaxFreeAttention(
        heads * _FEATURES, heads, landmarks=softattn.AvgPoolLandmarks(_LANDMARKS), device=device
    ).to(dtype)
    x = tensor(batch, n, heads * _FEATURES)
    yield "layer", Call(lambda: layer(x), (x, *layer.parameters()))


def _attention(
    query: Tensor, value: Tensor, grad: Tensor, *, landmarks: int = _LANDMARKS, **options: Any
) -> Call:
    """``softmax_free_attention`` on some of the tokens as landmarks."""
    query, value = query.requires_grad_(), value.requires_grad_()
    places = torch.linspace(0, query.shape[2] - 1, landmarks, device=query.device).long()
    chosen = query.detach()[:, :, places].clone().requires_grad_()
    attend = partial(softattn.softmax_free_attention, query, None, value, chosen, **options)
    return Call(attend, (query, value, chosen), grad)


def _rivals(query: Tensor, value: Tensor, grad: Tensor, device: str) -> Iterator[tuple[str, Call]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"math": SDPBackend.MATH}
    if device == "cuda":
        names = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, backend in names.items():

        def attend(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                attention = torch.nn.functional.scaled_dot_product_attention
                return attention(query, query, value)

        yield f"sdpa {name}", Call(attend, (query, value), grad)


def _timed(call: Call, mode: str, args: argparse.Namespace) -> dict[str, object]:
    """Seconds of a call, or why there are none: a rival's memory may not suffice."""
    try:
        if args.once:
            call.run(mode)
            return {}
        synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
        *_, last = _wall_times(lambda: call.run(mode), synchronize, _WARM_UPS)
        runs = round(min(max(_SECONDS / last, _FEWEST_RUNS), _MOST_RUNS))
        eager = median(_wall_times(lambda: call.run(mode), synchronize, runs))
        if args.device == "cpu":
            return {"eager_seconds": eager}
        host = median(_wall_times(lambda: call.run(mode), lambda: None, runs))
        torch.cuda.synchronize()
        graph = _graph(call, mode, runs)
        return {"eager_seconds": eager, "host_seconds": host, "graph_seconds": graph}
    except RuntimeError as error:
        return {"error": str(error).splitlines()[0]}


def _wall_times(
    call: Callable[[], object], synchronize: Callable[[], None], runs: int
) -> Iterator[float]:
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        synchronize()
        yield time.perf_counter() - begin


def _graph(call: Call, mode: str, runs: int) -> float:
    """Seconds of a replay, by events."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call.run(mode)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run(mode)
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def _elements(size: str, name: str, mode: str) -> dict[str, int]:
    """Elements that the call must move, where it is softattn's."""
    batch, heads, n = map(int, size.split("x"))
    try:
        elements = traffic_elements(name, mode)
    except KeyError:
        return {}
    return {"elements": elements * batch * heads * n * _FEATURES}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="to measure")
    parser.add_argument("--sizes", nargs="+", required=True, help="batch x heads x tokens")
    parser.add_argument("--once", action="store_true", help="run each call once, and time none")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    return parser


if __name__ == "__main__":
    main()
