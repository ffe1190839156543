"""What several ranks compute of one sequence, against one process that has all of it."""

import copy
import itertools

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module

from softattn import AvgPoolLandmarks, ConvLandmarks, SoftmaxFreeAttention, softmax_free_attention
from softattn.distributed import ContextParallel

NORMALIZATIONS = ("token", "softmax", "none", "landmark")
# Parts of 23 tokens, or rows: uneven, and for some ranks empty.
PARTS = {2: [14, 9], 3: [10, 0, 13], 4: [3, 12, 8, 0]}
N = 23


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def close(actual, expected):
    # Some gradients are 0 in theory: their rounding is that of the terms, which are about 1.
    size = max(1.0, expected.abs().amax().item() if expected.numel() else 0.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * size)


def operands(normalization, crossed, padded):
    # Keys of large norms make the range of log w of "softmax" larger than its limit.
    scale = 3.0 if normalization == "softmax" and not crossed else 1.0
    query = normal(2, 2, N, 4, scale=scale).requires_grad_()
    key = normal(2, 2, N, 4, seed=1).requires_grad_() if crossed else None
    value = normal(2, 2, N, 3, seed=2).requires_grad_()
    landmarks = normal(2, 2, 5, 4, seed=3, scale=scale).requires_grad_()
    padding = None
    if padded:
        padding = torch.zeros(2, N, dtype=torch.bool)
        padding[0, 5:12] = True
        padding[1, 1:] = True
    return query, key, value, landmarks, padding


def check_operator(ranks):
    for own, normalization, crossed, padded in itertools.product(
        ranks, NORMALIZATIONS, (False, True), (False, True)
    ):
        query, key, value, landmarks, padding = operands(normalization, crossed, padded)
        weights = normal(2, 2, N, 3, seed=4)
        inputs = [tensor for tensor in (query, key, value, landmarks) if tensor is not None]
        output = softmax_free_attention(
            query, key, value, landmarks, normalization=normalization, key_padding_mask=padding
        )
        expected = torch.autograd.grad((output * weights).sum(), inputs)

        cut = PARTS[own.size]
        parts = [own.part(tensor, cut, 2) for tensor in inputs[:-1]]
        copy = landmarks.detach().clone().requires_grad_()
        of_part = softmax_free_attention(
            parts[0],
            parts[1] if crossed else None,
            parts[-1],
            copy,
            normalization=normalization,
            key_padding_mask=None if padding is None else own.part(padding, cut, 1),
            group=own.group,
        )
        close(of_part, own.part(output, cut, 2).detach())
        *of_tokens, of_landmarks = torch.autograd.grad(
            (of_part * own.part(weights, cut, 2)).sum(), [*parts, copy]
        )
        for actual, whole in zip(of_tokens, expected, strict=False):
            close(actual, own.part(whole, cut, 2))
        close(own.sum(of_landmarks), expected[-1])


def layer(**options):
    torch.manual_seed(5)
    options = {"landmarks": AvgPoolLandmarks(4)} | options
    return SoftmaxFreeAttention(8, 2, dtype=torch.float64, **options)


def shared(module, own):
    mesh = DeviceMesh.from_group(own.group, "cpu")
    return parallelize_module(copy.deepcopy(module), mesh, ContextParallel())


def agree(own, module, x, cut, *, context=None, padding=None, local=None, **call):
    """Compares outputs and all gradients with those of one process.

    ``cut`` are lengths along dimension 1, ``local`` arguments of the parts that differ from those
    of the whole.
    """
    keys = x if context is None else context
    cut_of_queries = cut if context is None else [x.shape[1], *[0] * (own.size - 1)]
    inputs = [x] if context is None else [x, context]
    weights = normal(*x.shape, seed=6)
    output = module(*inputs, key_padding_mask=padding, **call)
    expected = torch.autograd.grad((output * weights).sum(), [*inputs, *module.parameters()])

    sharing = shared(module, own)
    parts = [own.part(x, cut_of_queries, 1)]
    if context is not None:
        parts.append(own.part(keys, cut, 1))
    of_part = sharing(
        *parts,
        key_padding_mask=None if padding is None else own.part(padding, cut, 1),
        **call if local is None else local,
    )
    close(of_part, own.part(output, cut_of_queries, 1).detach())
    found = torch.autograd.grad(
        (of_part * own.part(weights, cut_of_queries, 1)).sum(), [*parts, *sharing.parameters()]
    )
    close(found[0], own.part(expected[0], cut_of_queries, 1))
    if context is not None:
        close(found[1], own.part(expected[1], cut, 1))
    for of_rank, whole in zip(found[len(inputs) :], expected[len(inputs) :], strict=True):
        close(own.sum(of_rank), whole)


def check_sequences(ranks):
    padding = torch.zeros(2, N, dtype=torch.bool)
    padding[0, 5:12] = True
    padding[1, 1:] = True
    x = normal(2, N, 8).requires_grad_()
    for own, normalization, mask in itertools.product(ranks, NORMALIZATIONS, (None, padding)):
        agree(own, layer(normalization=normalization), x, PARTS[own.size], padding=mask)


def check_maps(ranks):
    x = normal(2, N, 5, 8).requires_grad_()
    volume = normal(1, N, 3, 2, 8).requires_grad_()
    padding = torch.zeros(2, N, 5, dtype=torch.bool)
    padding[0, 9:] = True
    padding[1, :, 1:] = True
    for own in ranks:
        for mask in (None, padding):
            agree(own, layer(), x, PARTS[own.size], padding=mask)
        agree(own, layer(landmarks=AvgPoolLandmarks((3, 2))), x, PARTS[own.size])
        agree(own, layer(landmarks=AvgPoolLandmarks(7)), volume, PARTS[own.size])


def check_prefix_tokens_and_grids_of_the_whole(ranks):
    # 2 prefix tokens, then a map of 7 × 3, which the ranks cut anywhere.
    x = normal(2, N, 8).requires_grad_()
    padding = torch.zeros(2, N, dtype=torch.bool)
    padding[0, 20:] = True
    for own, mask in itertools.product(ranks, (None, padding)):
        call = {"grid": (7, 3), "num_prefix_tokens": 2}
        agree(own, layer(), x, PARTS[own.size], padding=mask, **call)
        agree(own, layer(), x, PARTS[own.size], padding=mask, num_prefix_tokens=2)


def check_fewer_tokens_than_landmarks(ranks):
    x = normal(2, 3, 8).requires_grad_()
    for own in ranks:
        agree(own, layer(landmarks=AvgPoolLandmarks(9)), x, [2, 1, 0, 0][: own.size])


def check_cross_attention(ranks):
    context = normal(2, N, 8, seed=7).requires_grad_()
    x = normal(2, 6, 8).requires_grad_()
    # The first sample is all padding, the second one all but on one rank, which has no queries.
    padding = torch.ones(2, N, dtype=torch.bool)
    padding[1, -1] = False
    for own, normalization in itertools.product(ranks, NORMALIZATIONS):
        module = layer(normalization=normalization)
        for mask in (None, padding):
            agree(own, module, x, PARTS[own.size], context=context, padding=mask)


def check_replicated_queries(ranks):
    context, queries = normal(2, N, 8, seed=7), normal(2, 6, 8)
    for own in ranks:
        part = own.part(context, PARTS[own.size], 1)
        close(shared(layer(), own)(queries, part), layer()(queries, context))


def check_convolutions(ranks):
    x = normal(2, N, 5, 8).requires_grad_()
    padding = torch.zeros(2, N, 5, dtype=torch.bool)
    padding[0, 9:] = True
    sequence = normal(2, N, 8).requires_grad_()
    cuts = {2: [14, 9], 3: [6, 4, 13], 4: [2, 12, 6, 3]}
    for own in ranks:
        cut = cuts[own.size]
        for mask in (None, padding):
            agree(own, layer(value_conv=3), x, cut, padding=mask)
            agree(own, layer(landmarks=conv(2)), x, cut, padding=mask)
        agree(own, layer(landmarks=conv(2), value_conv=5), x, cut)
        agree(own, layer(landmarks=conv((2,)), value_conv=(3,)), sequence, cut)
        agree(own, layer(landmarks=conv((2,))), sequence, cut, padding=last(5))
        agree(own, layer(landmarks=conv(2, remainder="crop")), x, PARTS_OF_EVEN[own.size])


PARTS_OF_EVEN = {2: [22, 1], 3: [10, 0, 13], 4: [4, 12, 7, 0]}


def conv(stride, **options):
    torch.manual_seed(8)
    return ConvLandmarks(4, stride, dtype=torch.float64, **options)


def last(number):
    """Padding of so many tokens at the end of the second sample."""
    padding = torch.zeros(2, N, dtype=torch.bool)
    padding[1, N - number :] = True
    return padding
