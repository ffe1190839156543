"""What ranks that share a sequence refuse: the same error on every rank, and no hang."""

from datetime import timedelta

import torch
from support.context_parallel import conv, layer, normal, shared
from support.ranks import fresh_groups
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, distribute_tensor

from softattn import LandmarkSampler, softmax_free_attention
from softattn.distributed import ContextParallel
from softattn.integrations.torch import SoftmaxFreeMultiheadAttention


def refused(expected, call, *arguments, error=ValueError, **options):
    try:
        call(*arguments, **options)
    except error as caught:
        assert expected in str(caught), str(caught)
    else:
        raise AssertionError(f"not refused: {expected}")


def check_layers_whose_ranks_differ(ranks):
    for own in ranks:
        sharing = shared(layer(), own)
        last = own.rank == own.size - 1
        refused("must agree in batch", sharing, normal(1 + last, 5, 8))
        refused("must agree in grid dimensions", sharing, normal(1, *[2, 2][last:], 4, 8))
        half = torch.float64 if last else torch.float32
        with torch.autocast("cpu", enabled=False):
            refused("must agree in dtype", shared(layer().to(half), own), normal(1, 5, 8).to(half))
        refused(
            "of equal sizes in all dimensions but the first", sharing, normal(1, 3, 2 + last, 8)
        )
        other = layer(head_dim=4 + last)
        refused("must agree in features", shared(other, own), normal(1, 5, 8))
        refused("must have the 6 prefix tokens", sharing, normal(1, 5, 8), num_prefix_tokens=6)
        # The ranks are still in step.
        sharing(normal(1, 5, 8))


def check_operators_whose_ranks_differ(_):
    for own in fresh_groups():
        group = own.group
        last = own.rank == own.size - 1
        x = normal(1, 2, 5, 4)
        landmarks = normal(1, 2, 3 + last, 4)
        refused(
            "in landmarks, got 3 on", softmax_free_attention, x, None, x, landmarks, group=group
        )
        other = ["token", "none"][last]
        refused(
            "in normalization, got token",
            softmax_free_attention,
            x,
            None,
            x,
            x,
            normalization=other,
            group=group,
        )
        # Sizes are compared again until they have agreed.
        softmax_free_attention(x, None, x, x, group=group)


def check_parts_that_convolutions_cannot_take(ranks):
    for own in ranks:
        landmarks = shared(layer(landmarks=conv(2)), own)
        refused("must begin at a multiple of 2", landmarks, normal(1, 3, 4, 8))
        values = shared(layer(value_conv=5), own)
        last = own.rank == own.size - 1
        refused("must have at least 2", values, normal(1, 3 - 2 * last, 4, 8))
        rows = {"grid": (own.size, 2)}
        within = [3, *[2] * (own.size - 2), 1][own.rank]
        refused("must begin at a multiple of 1", values, normal(1, within, 8), **rows)
        sequence = shared(layer(landmarks=conv((2,))), own)
        padding = torch.zeros(1, 4, dtype=torch.bool)
        padding[:, 3] = own.rank == 0
        refused("must be padded at its end", sequence, normal(1, 4, 8), key_padding_mask=padding)


def check_other_modules_and_layouts(ranks):
    for own in ranks:
        mesh = DeviceMesh.from_group(own.group, "cpu")
        refused(
            "is for softattn's layers",
            ContextParallel()._apply,
            nn.Linear(2, 2),
            mesh,
            error=TypeError,
        )
        sharing = shared(layer(), own)
        whole = distribute_tensor(normal(1, 8, 8), mesh, [Replicate()])
        refused("must be cut along their tokens", sharing, whole)
        refused("needs the whole sequence", sharing.attention_factors, normal(1, 5, 8))
        refused("needs the whole sequence", sharing, normal(5, 8), cu_seqlens=torch.tensor([0, 5]))
        adapter = shared(SoftmaxFreeMultiheadAttention(8, 2, batch_first=True), own)
        x = torch.randn(1, 5, 8)
        refused("needs the whole sequence", adapter, x, x, x)
        refused(
            "does not pool",
            shared(layer(landmarks=_OnOneRank()), own),
            normal(1, 5, 8),
            error=TypeError,
        )


class _OnOneRank(LandmarkSampler):
    def forward(self, tokens, grid=None, key_padding_mask=None):
        raise NotImplementedError

    def landmark_padding_mask(self, grid, key_padding_mask):
        raise NotImplementedError


def check_a_rank_that_does_not_come(_):
    waiting, *_ = fresh_groups()
    if waiting.rank == 0:
        backend = waiting.group._get_backend(torch.device("cpu"))
        backend._set_default_timeout(timedelta(seconds=1))
        x = normal(1, 2, 5, 4)
        try:
            softmax_free_attention(x, None, x, x, group=waiting.group)
        except RuntimeError as error:
            assert any("softattn was" in note for note in error.__notes__)
        else:
            raise AssertionError("no time-out")
