"""The attentions that ``benchmarks.scaling`` compares, and where each can take part."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.attention_call import AttentionCall
from benchmarks.package_calls import call_flash_linear_attention, call_nystrom_attention
from benchmarks.softmax_calls import (
    call_flex_attention,
    call_sdpa,
    call_sdpa_cudnn,
    call_sdpa_flash,
)
from benchmarks.softmax_free_calls import (
    call_gaussian_dense,
    call_gaussian_streamed,
    call_paper_formula,
    call_paper_formula_compiled,
    call_softattn,
    call_softattn_eager,
)
from benchmarks.workload import Workload

OURS = "softattn"
_HALF = ("bfloat16", "float16")
_FULL = ("float32", "float64")


@dataclass(frozen=True)
class Rival:
    """An attention to measure.

    label: its name in tables and figures.
    order: its time grows as n to this power.
    prepare: makes the call for a workload.
    note: what a reader must know to read its numbers.
    dense_blocks: about how many n × n arrays it holds at once, for each mode.
    compiled: it goes through ``torch.compile`` at its first call.
    dtypes: those it runs in, all where it is empty.
    device: the only one that it is measured on, or None, and why_device the reason.
    package: what must be installed, by the name to install and the name to import.
    """

    label: str
    order: int
    prepare: Callable[[Workload], AttentionCall]
    note: str
    dense_blocks: tuple[int, int] = (0, 0)
    compiled: bool = False
    dtypes: tuple[str, ...] = ()
    device: str | None = None
    why_device: str = ""
    package: tuple[str, str] | None = None


RIVALS = {
    OURS: Rival(
        "softattn", 1, call_softattn, "softmax_free_attention, landmarks given, pinv='minimax'"
    ),
    "softattn_eager": Rival(
        "softattn, eager",
        1,
        call_softattn_eager,
        "the same with impl='eager'",
        device="cuda",
        why_device="on the CPU softattn itself is eager",
    ),
    "paper_formula": Rival(
        "paper's formula", 1, call_paper_formula, "SOFT in plain PyTorch, landmarks given"
    ),
    "paper_formula_compiled": Rival(
        "paper's formula, compiled",
        1,
        call_paper_formula_compiled,
        "the same through torch.compile, for each size anew; compilation is not timed",
        compiled=True,
    ),
    "nystrom_attention": Rival(
        "nystrom-attention*",
        1,
        call_nystrom_attention,
        "the module NystromAttention of the package nystrom-attention, residual=False: its time "
        "and memory include its own input and output projections and its pooling; gradient to "
        "its input alone",
        dtypes=_FULL,
        package=("nystrom-attention", "nystrom_attention"),
    ),
    "flash_linear_attention": Rival(
        "linear attention (fla), causal",
        1,
        call_flash_linear_attention,
        "chunk_linear_attn of the package flash-linear-attention, keys = queries, not normalised: "
        "causal, without kernel, landmarks or inverse, and so another and cheaper operator; shown "
        "for its speed alone",
        dtypes=_HALF,
        device="cuda",
        why_device="its kernels are Triton's",
        package=("flash-linear-attention", "fla"),
    ),
    "sdpa": Rival(
        "SDPA",
        2,
        call_sdpa,
        "scaled_dot_product_attention with keys = queries",
        device="cpu",
        why_device="on CUDA its backends are measured by name, sdpa_flash and sdpa_cudnn",
    ),
    "sdpa_flash": Rival(
        "SDPA, flash",
        2,
        call_sdpa_flash,
        "scaled_dot_product_attention with keys = queries, held to its flash backend",
        dtypes=_HALF,
        device="cuda",
        why_device="on the CPU sdpa is measured",
    ),
    "sdpa_cudnn": Rival(
        "SDPA, cuDNN",
        2,
        call_sdpa_cudnn,
        "scaled_dot_product_attention with keys = queries, held to its cuDNN backend",
        dtypes=_HALF,
        device="cuda",
        why_device="on the CPU sdpa is measured",
    ),
    "flex_attention": Rival(
        "FlexAttention",
        2,
        call_flex_attention,
        "flex_attention with keys = queries, plain softmax, through torch.compile for each size "
        "anew; compilation is not timed",
        compiled=True,
        device="cuda",
        why_device="on the CPU it has no backward pass",
    ),
    "gaussian_streamed": Rival(
        "exact, streamed", 2, call_gaussian_streamed, "softattn.gaussian_attention"
    ),
    "gaussian_dense": Rival(
        "exact, dense",
        2,
        call_gaussian_dense,
        "softattn.reference.gaussian_attention, which writes out n × n",
        dense_blocks=(3, 6),
        dtypes=_FULL,
    ),
}


def why_missing(name: str, device: str, dtype: str) -> str | None:
    """Why a rival cannot take part on a device in a dtype, or None where it can."""
    rival = RIVALS[name]
    if rival.device not in (None, device):
        return f"it runs on {rival.device} only: {rival.why_device}"
    if rival.dtypes and dtype not in rival.dtypes:
        return f"it runs in {' and '.join(rival.dtypes)} only"
    if rival.package is not None and find_spec(rival.package[1]) is None:
        return f"the package {rival.package[0]} is not installed"
    return None
