"""The attentions that ``benchmarks.scaling`` compares, and where each can run."""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from torch.nn.attention import SDPBackend

from benchmarks.scaling import attentions
from benchmarks.scaling.attentions import Prepare, over_all_tokens, through_landmarks

OURS = "softattn"
_HALF = ("bfloat16", "float16")
_FULL = ("float32", "float64")


@dataclass(frozen=True)
class Rival:
    """An attention to measure.

    label: its name in tables and figures.
    order: its time grows as n to this power.
    prepare: makes the call for a workload.
    note: what its numbers include and leave out.
    dense_blocks: about how many n × n arrays it holds at once, for each mode.
    compiled: whether it goes through ``torch.compile`` at its first call.
    dtypes: those it runs in; empty means all.
    device: the only device that it is measured on, or None; ``why_device`` is the reason.
    package: what must be installed: the name of the distribution and that of the import.
    """

    label: str
    order: int
    prepare: Prepare
    note: str
    dense_blocks: tuple[int, int] = (0, 0)
    compiled: bool = False
    dtypes: tuple[str, ...] = ()
    device: str | None = None
    why_device: str = ""
    package: tuple[str, str] | None = None


def _sdpa_by(label: str, backend: SDPBackend) -> Rival:
    return Rival(
        f"SDPA, {label}",
        2,
        over_all_tokens(partial(attentions.sdpa, backend=backend)),
        f"scaled_dot_product_attention by its {label} backend",
        dtypes=_HALF,
        device="cuda",
        why_device="on the CPU sdpa is measured",
    )


RIVALS = {
    OURS: Rival(
        "softattn",
        1,
        through_landmarks(attentions.softmax_free),
        "softmax_free_attention, landmarks given, pinv='minimax'",
    ),
    "sdpa": Rival(
        "SDPA",
        2,
        over_all_tokens(attentions.sdpa),
        "scaled_dot_product_attention",
        device="cpu",
        why_device="on CUDA its backends are measured by name, sdpa_flash and sdpa_cudnn",
    ),
    "sdpa_flash": _sdpa_by("flash", SDPBackend.FLASH_ATTENTION),
    "sdpa_cudnn": _sdpa_by("cuDNN", SDPBackend.CUDNN_ATTENTION),
    "formula": Rival(
        "formula in PyTorch",
        1,
        through_landmarks(attentions.formula),
        "the same operator in plain PyTorch, landmarks given",
    ),
    "formula_compiled": Rival(
        "formula, compiled",
        1,
        through_landmarks(attentions.formula_compiled),
        "the same through torch.compile, anew for each size; compilation is not timed",
        compiled=True,
    ),
    "softattn_eager": Rival(
        "softattn, eager",
        1,
        through_landmarks(partial(attentions.softmax_free, impl="eager")),
        "softattn with impl='eager'",
        device="cuda",
        why_device="on the CPU softattn itself is eager",
    ),
    "nystrom_attention": Rival(
        "nystrom-attention*",
        1,
        attentions.nystrom_attention,
        "the module NystromAttention of the package nystrom-attention, residual=False, on normal "
        "tokens: includes its input and output projections and its pooling; gradient to its input",
        dtypes=_FULL,
        package=("nystrom-attention", "nystrom_attention"),
    ),
    "flash_linear_attention": Rival(
        "linear (fla), causal",
        1,
        attentions.flash_linear_attention,
        "chunk_linear_attn of the package flash-linear-attention, not normalised, on normal "
        "tokens: causal, without kernel, landmarks or inverse; another and cheaper operator",
        dtypes=_HALF,
        device="cuda",
        why_device="its kernels are Triton's",
        package=("flash-linear-attention", "fla"),
    ),
    "flex_attention": Rival(
        "FlexAttention",
        2,
        over_all_tokens(attentions.flex_attention),
        "flex_attention with plain softmax, through torch.compile anew for each size; compilation "
        "is not timed",
        compiled=True,
        device="cuda",
        why_device="on the CPU it has no backward pass",
    ),
    "gaussian_streamed": Rival(
        "exact, streamed",
        2,
        over_all_tokens(attentions.gaussian_streamed),
        "softattn.gaussian_attention",
    ),
    "gaussian_dense": Rival(
        "exact, dense",
        2,
        over_all_tokens(attentions.gaussian_dense),
        "softattn.reference.gaussian_attention, which holds n × n numbers",
        dense_blocks=(3, 6),
        dtypes=_FULL,
    ),
}


def why_missing(name: str, device: str, dtype: str) -> str | None:
    """Why a rival cannot run on a device in a dtype; None if it can."""
    rival = RIVALS[name]
    if rival.device not in (None, device):
        return f"it runs on {rival.device} only: {rival.why_device}"
    if rival.dtypes and dtype not in rival.dtypes:
        return f"it runs in {' and '.join(rival.dtypes)} only"
    if rival.package is not None and find_spec(rival.package[1]) is None:
        return f"the package {rival.package[0]} is not installed"
    return None
