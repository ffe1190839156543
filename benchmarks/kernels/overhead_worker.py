"""The worker of ``benchmarks.kernels.overhead``: measures one checkout of softattn.

It imports nothing that imports softattn before it knows the checkout.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kernels.cases import DTYPES
from benchmarks.kernels.compilation import TARGETS, absent_device

# PyTorch's operations that launch nothing on a GPU, besides views.
_WITHOUT_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_WITHOUT_LAUNCH |= {"detach", "_unsafe_view", "set_data", "_reshape_alias"}

Call = Callable[[], object]


class Stub:
    """What stands in for launches.

    launched: the names of kernels, in their order.
    seconds: what Triton took before the launches.
    """

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.seconds = 0.0


def main(argv: list[str] | None = None) -> None:
    """Writes launches and times of every call as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("result", type=Path)
    for name in ("--dtypes", "--normalizations"):
        parser.add_argument(name, nargs="+")
    parser.add_argument("--calls", type=int)
    args = parser.parse_args(argv)
    args.result.write_text(json.dumps(_measured(args)))


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """Launches and times of every call, by its name."""
    torch.set_num_threads(1)
    sys.meta_path.insert(0, _PackagesOf(args.checkout.resolve()))
    # Kernels that are defined after the stub sets TRITON_INTERPRET would be interpreted.
    import_module("softattn.kernels")
    stub = _stub_launches()
    results = {}
    for dtype in args.dtypes:
        for normalization in args.normalizations:
            forward, both = _calls(normalization, DTYPES[dtype])
            for mode, call in (("forward", forward), ("forward+backward", both)):
                try:
                    call()
                except ValueError:  # an older checkout may not have the normalization
                    continue
                results[f"{normalization}, {dtype}, {mode}"] = {
                    "launches": _counted(call, stub),
                    **_timed(call, stub, args.calls),
                }
    return results


def _calls(normalization: str, dtype: torch.dtype) -> tuple[Call, Call]:
    """Self-attention of 64 tokens in 2 heads, with 64 features and 64 landmarks."""
    import softattn

    generator = torch.Generator().manual_seed(0)
    tokens, value, landmarks, grad = (
        torch.randn(1, 2, 64, 64, generator=generator).to(dtype).requires_grad_() for _ in range(4)
    )

    # A layer's inverse by default, on Triton as it is on a GPU.
    pinv = softattn.NewtonPinv("minimax", ridge=0.01, impl="triton")
    options: dict[str, Any] = {"normalization": normalization, "pinv": pinv, "impl": "triton"}

    def forward() -> Tensor:
        return softattn.softmax_free_attention(tokens, None, value, landmarks, **options)

    def both() -> object:
        return torch.autograd.grad(forward(), (tokens, value, landmarks), grad)

    return forward, both


def _counted(call: Call, stub: Stub) -> dict[str, int]:
    """The launches of a call by name, Triton's kernels first."""
    stub.launched.clear()
    with CountedOperations() as operations:
        call()
    kernels = Counter(name.lstrip("_") for name in stub.launched)
    return dict(kernels) | {f"aten {name}": n for name, n in operations.counts.items()}


def _timed(call: Call, stub: Stub, calls: int) -> dict[str, float]:
    seconds, in_triton = [], []
    for _ in range(calls):
        stub.seconds = 0.0
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
        in_triton.append(stub.seconds)
    return {"seconds": median(seconds), "triton": median(in_triton)}


def _stub_launches() -> Stub:
    """Lets Triton do everything for a kernel on an H100 but run it, for the rest of the process."""
    import triton
    from triton.compiler import CompiledKernel
    from triton.runtime import driver

    stub = Stub()

    def load(kernel: Any) -> None:
        kernel._run = lambda *_: stub.launched.append(kernel.metadata.name)

    def timed(launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            launched = launch(*args, **options)
            stub.seconds += time.perf_counter() - begin
            return launched

        return run

    own_launcher = CompiledKernel.__getitem__
    CompiledKernel.__getitem__ = lambda kernel, grid: timed(own_launcher(kernel, grid))
    triton.JITFunction.run = timed(triton.JITFunction.run)
    CompiledKernel._init_handles = load
    driver.set_active(absent_device(TARGETS["sm_90"]))
    # With it softattn takes tensors on the CPU for Triton's. Its kernels are defined already.
    os.environ["TRITON_INTERPRET"] = "1"
    return stub


class CountedOperations(TorchDispatchMode):
    """Counts operations that launch, also those inside softattn's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func._schema.name.split("::")[1]
        if func.namespace == "softattn":
            # To the implementation, in this mode.
            with self:
                keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                return func.redispatch(keys, *args, **(kwargs or {}))
        if not func.is_view and name not in _WITHOUT_LAUNCH:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _PackagesOf(MetaPathFinder):
    """Finds softattn and its kernels in a checkout, wherever they are installed."""

    def __init__(self, checkout: Path) -> None:
        folders = {"softattn": "softattn", "softattn.kernels": "kernels/triton"}
        self.folders = {name: checkout / folder for name, folder in folders.items()}

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        folder = self.folders.get(name)
        if folder is None:
            return None
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if __name__ == "__main__":
    main()
