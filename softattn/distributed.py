"""One sequence over several processes: context parallelism on torch.distributed.

Each rank of a process group has a contiguous part of the tokens. The ranks add up what their
tokens give to the landmarks, which takes as many numbers for a million tokens as for a thousand:

    forward    1. the landmarks: sums over their cells, m × d numbers a head
               2. S = P_kᵀ [V, 1], m × (d_v + 1) numbers a head
    backward   the gradients of both, as many numbers

All else is local. ``normalization="softmax"`` also exchanges bounds of the keys' weights, and the
mean key of cross-attention.

The gradients are those of the sum of the ranks' losses. Each rank gets the whole gradients of its
tokens, and of a parameter, of which every rank has a copy, the share of its tokens. Shares are
added up, or averaged, as in data parallelism: by FSDP or DDP over a mesh that has the ranks too.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ParallelStyle

from softattn.common.ranks import SharesSequence, name_of_group


class ContextParallel(ParallelStyle):
    """Lets the ranks of a mesh share the sequences of an attention layer.

    It is for ``SoftmaxFreeAttention``, ``SoftmaxFreeMultiheadAttention`` and the attention that
    ``softattn.integrations.timm.swap_attention`` puts into vision transformers. Each rank calls the
    layer with its contiguous part of the tokens, (batch, n_local, embed_dim), or of the rows of a
    map, and gets its part of the output. Parts may differ in length, and may be empty. The context
    of cross-attention is in parts too; its queries may be in parts or on every rank.

    Prefix tokens are on the first rank; ``num_prefix_tokens`` is their number on every rank.
    ``grid`` is that of the part, or on every rank that of the whole sequence.

    DTensors that are sharded along their tokens come back as such.

    Raises:
        TypeError: the module is none of these layers.
        ValueError: the mesh has more than one dimension.

    Examples:
        >>> mesh = init_device_mesh("cuda", (2, 4), mesh_dim_names=("data", "context"))
        >>> parallelize_module(model, mesh["context"], {"blocks.*.attn": ContextParallel()})
        >>> fully_shard(model, mesh=mesh)
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, SharesSequence):
            raise TypeError(
                "ContextParallel is for softattn's layers, such as SoftmaxFreeAttention, got "
                f"{type(module).__name__}"
            )
        module.context_group = name_of_group(device_mesh)
        dtensors = _LocalTokens()
        module.register_forward_pre_hook(dtensors.take, with_kwargs=True)
        module.register_forward_hook(dtensors.give)
        return module


class _LocalTokens:
    """Hooks of a layer that take DTensors apart, and make one of its output."""

    def __init__(self) -> None:
        self._taken: DTensor | None = None

    def take(
        self, module: SharesSequence, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the layer: the part of each DTensor that this rank has."""
        tokens = args[0] if args else options.get("x", options.get("query"))
        self._taken = tokens if isinstance(tokens, DTensor) else None
        return (
            tuple(_local(module, argument) for argument in args),
            {name: _local(module, option) for name, option in options.items()},
        )

    def give(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After the layer: its output in the layout of its first argument."""
        taken, self._taken = self._taken, None
        if taken is None:
            return output
        if isinstance(output, tuple):
            return _as_dtensor(output[0], taken), *output[1:]
        return _as_dtensor(output, taken)


def _local(module: SharesSequence, argument: object) -> object:
    """This rank's part of a DTensor; anything else as it is.

    Raises:
        ValueError: the DTensor is not cut along its tokens, over the ranks of the layer.
    """
    if not isinstance(argument, DTensor):
        return argument
    is_mask = argument.dtype == torch.bool
    tokens_first = argument.ndim == 2 or not getattr(module, "batch_first", True)
    dim = argument.ndim - 1 if is_mask else 0 if tokens_first else 1
    mesh, placements = argument.device_mesh, argument.placements
    over_ranks = [
        placement
        for place, placement in enumerate(placements)
        if mesh.get_group(place).group_name == module.context_group
    ]
    if over_ranks != [Shard(dim)]:
        raise ValueError(
            "DTensors must be cut along their tokens over the mesh that ContextParallel was given: "
            f"Shard({dim}) there, got {placements} on {mesh}"
        )
    return argument.to_local()


def _as_dtensor(output: Tensor, like: DTensor) -> DTensor:
    # Parts may differ in length, so that the whole shape is given.
    shape = (*like.shape[:-1], output.shape[-1])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        output,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=stride,
    )
