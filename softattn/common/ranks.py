"""Sums over the ranks of a process group, which share the tokens of one sequence.

A function over several ranks has the gradient of the sum of the ranks' losses. A tensor that every
rank has a copy of gets a share of its gradient on each rank, which add up to the whole.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, Union
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from softattn.common.compiler import apply
from softattn.common.validation import NORMALIZATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

# A process group, its name, or a mesh of one dimension.
Group: TypeAlias = Union["ProcessGroup", "DeviceMesh", str]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# What the numbers that ranks exchange for these sizes mean.
_CHOICES: dict[str, Sequence[object]] = {"dtype": DTYPES, "normalization": NORMALIZATIONS}


class SharesSequence(nn.Module):
    """A module whose tokens may be one rank's part of a sequence.

    Attributes:
        context_group: the name of the process group of the ranks that share a sequence, or None.
            ``softattn.distributed.ContextParallel`` sets it.
    """

    context_group: str | None = None

    def check_one_rank(self, what: str) -> None:
        """Raises ValueError where ranks share the sequence and ``what`` needs all of it."""
        if self.context_group is not None:
            raise ValueError(
                f"{what} needs the whole sequence, and the ranks of this layer share it, as "
                "ContextParallel has arranged; use a copy of the layer whose context_group is None"
            )


def name_of_group(group: Group | None) -> str | None:
    """The name of a process group or of a mesh of one dimension, which compilers can keep.

    Raises:
        TypeError: it is something else.
        ValueError: the mesh has more dimensions.
    """
    if group is None or isinstance(group, str):
        return group
    if hasattr(group, "group_name"):
        return str(group.group_name)
    if not hasattr(group, "get_group"):
        raise TypeError(
            "group must be a process group, its name, or a DeviceMesh of one dimension, got "
            f"{type(group).__name__}"
        )
    if group.ndim != 1:
        raise ValueError(
            f"group must be a mesh of one dimension, got one of {group.ndim}: "
            f"{group.mesh_dim_names}; choose one, such as mesh['context']"
        )
    return str(group.get_group().group_name)


def size_and_rank(group: str) -> tuple[int, int]:
    """The number of ranks of a group, and which of them this process is."""
    ranks = _resolve(group)
    return ranks.size(), ranks.rank()


# What ``torch.compiler.assume_constant_result`` does, which imports Dynamo.
size_and_rank._dynamo_marked_constant = True  # type: ignore[attr-defined]


def own_prefix(num_prefix_tokens: int, n: int, group: str | None) -> int:
    """How many of the n tokens of this rank are prefix tokens, which the first rank has."""
    if num_prefix_tokens and group is not None and size_and_rank(group)[1] > 0:
        return 0
    return min(num_prefix_tokens, n)


def sum_over_ranks(x: Tensor, group: str | None) -> Tensor:
    """The sum of every rank's ``x``, on every rank; its gradient is such a sum as well.

    Args:
        x: of one shape and dtype on all ranks.
        group: the name of their group; None is this process alone.
    """
    if group is None:
        return x
    total: Tensor = apply(_SumOverRanks, x, group)
    return total


def stack_over_ranks(x: Tensor, group: str | None) -> Tensor:
    """Every rank's ``x``, (ranks, *x.shape), on every rank, with its gradient."""
    if group is None:
        return x.unsqueeze(0)
    size, rank = size_and_rank(group)
    # Each rank adds its own to the zeros of the others.
    own = [x if place == rank else torch.zeros_like(x) for place in range(size)]
    return sum_over_ranks(torch.stack(own), group)


def plain_sum_over_ranks(x: Tensor, group: str | None) -> Tensor:
    """``sum_over_ranks`` without a gradient, for functions that have their own."""
    if group is None:
        return x
    collectives = torch.ops._c10d_functional
    if torch.compiler.is_compiling():
        return collectives.wait_tensor(collectives.all_reduce(x.contiguous(), "sum", group))
    with _named("adding up sums over", group):
        return collectives.wait_tensor(collectives.all_reduce(x.contiguous(), "sum", group))


def swap_with_neighbours(first: Tensor, last: Tensor, group: str) -> tuple[Tensor, Tensor]:
    """Gives ``first`` to the rank before and ``last`` to the one after, and gets theirs.

    Returns:
        The ``last`` of the rank before and the ``first`` of the one after, 0 where there is none.
        All have one shape.
    """
    size, rank = size_and_rank(group)
    splits = [0] * size
    neighbours = [place for place in (rank - 1, rank + 1) if 0 <= place < size]
    for place in neighbours:
        splits[place] = 1
    given = torch.stack([first if place < rank else last for place in neighbours])
    got = iter(apply(_Swap, given, splits, group).unbind())
    before = next(got) if rank > 0 else torch.zeros_like(first)
    return before, next(got) if rank < size - 1 else torch.zeros_like(last)


def gather_numbers(numbers: Sequence[int], group: str, device: torch.device) -> list[list[int]]:
    """The ints of every rank, as many on each; the host waits for them.

    They go through the group's backend for CPUs where it has one, else through ``device``.
    """
    if torch.compiler.is_compiling():
        # The numbers of other ranks cannot be in a graph.
        return torch.compiler.disable(_gather_numbers)(numbers, group, device)
    return _gather_numbers(numbers, group, device)


def _gather_numbers(numbers: Sequence[int], group: str, device: torch.device) -> list[list[int]]:
    ranks, cpu = _resolve(group), torch.device("cpu")
    own = torch.tensor(numbers, device=cpu if cpu in ranks._device_types else device)
    collectives = torch.ops._c10d_functional
    with _named("exchanging sizes with", group):
        gathered = collectives.all_gather_into_tensor(own, ranks.size(), group)
        gathered = collectives.wait_tensor(gathered)
    table: list[list[int]] = gathered.view(ranks.size(), -1).tolist()
    return table


def check_ranks_agree(table: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Raises ValueError where ranks differ in one of the named columns.

    All ranks have the same table and raise the same error.
    """
    for column, name in enumerate(names):
        values = [row[column] for row in table]
        if len(set(values)) > 1:
            known = _CHOICES.get(name)
            shown = values if known is None else [known[value] for value in values]
            raise ValueError(
                f"the ranks that share a sequence must agree in {name}, got "
                + ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(shown))
            )


def check_first_call(group: str, sizes: Mapping[str, int], device: torch.device) -> None:
    """Compares sizes over the ranks at the first call with a group, before any sum.

    Later calls have no such exchange: it makes the host wait.

    Raises:
        ValueError: sizes differ, on every rank.
    """
    if torch.compiler.is_compiling():
        return
    ranks = _resolve(group)
    if ranks in _checked:
        return
    check_ranks_agree(gather_numbers(list(sizes.values()), group, device), list(sizes))
    _checked[ranks] = True


# The groups whose ranks have agreed. All ranks forget a group with the object that it is.
_checked: "WeakKeyDictionary[ProcessGroup, bool]" = WeakKeyDictionary()


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        return plain_sum_over_ranks(x, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_over_ranks(grad, ctx.group), None


class _Swap(torch.autograd.Function):
    """Blocks given to some ranks for as many of theirs; gradients go back the same way."""

    @staticmethod
    def forward(given: Tensor, splits: list[int], group: str) -> Tensor:
        collectives = torch.ops._c10d_functional
        return collectives.wait_tensor(
            collectives.all_to_all_single(given.contiguous(), splits, splits, group)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.splits, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return apply(_Swap, grad, ctx.splits, ctx.group), None, None


def _resolve(group: str) -> "ProcessGroup":
    from torch.distributed import distributed_c10d

    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    return resolve(group)


@contextmanager
def _named(doing: str, group: str) -> "Iterator[None]":
    """Adds to the errors of a collective, such as a time-out, what it was for."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(f"softattn was {doing} the {_resolve(group).size()} ranks of a sequence")
        raise
