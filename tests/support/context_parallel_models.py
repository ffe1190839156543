"""Shared sequences in models, beside data parallelism, compilers and other wrappers."""

import copy
import itertools
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from support.context_parallel import NORMALIZATIONS, PARTS, N, close, layer, normal, shared
from timm.models import VisionTransformer
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from softattn import AvgPoolLandmarks, KMeansLandmarks, softmax_free_attention
from softattn.distributed import ContextParallel
from softattn.integrations import timm as vision
from softattn.integrations import torch as multihead


class Block(nn.Module):
    """A transformer block on maps."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8, dtype=torch.float64)
        self.attn = layer(value_conv=3)
        self.mlp = nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


def blocks():
    torch.manual_seed(9)
    return nn.Sequential(Block(), Block())


def check_dtensors(ranks):
    for own in ranks:
        mesh = DeviceMesh.from_group(own.group, "cpu")
        x = normal(2, N, 8).requires_grad_()
        whole = layer()
        (of_whole,) = torch.autograd.grad(whole(x).square().sum(), x)
        cut = distribute_tensor(x.detach(), mesh, [Shard(1)]).requires_grad_()
        output = shared(whole, own)(cut)
        assert isinstance(output, DTensor) and output.placements == (Shard(1),)
        close(output.full_tensor(), whole(x).detach())
        output.square().sum().backward()
        close(cut.grad.full_tensor(), of_whole)


def check_transformer_encoder(ranks):
    torch.manual_seed(10)
    one = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, dtype=torch.float64)
    encoder = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
    multihead.swap_attention(encoder, landmarks=AvgPoolLandmarks(4))
    x = normal(2, N, 8)
    padding = torch.zeros(2, N, dtype=torch.bool)
    padding[0, 5:12] = True
    for own, mask in itertools.product(ranks, (None, padding)):
        expected = encoder(x, src_key_padding_mask=mask).detach()
        mesh, cut = DeviceMesh.from_group(own.group, "cpu"), PARTS[own.size]
        sharing = parallelize_module(
            copy.deepcopy(encoder), mesh, {"layers.*.self_attn": ContextParallel()}
        )
        part = sharing(
            own.part(x, cut, 1),
            src_key_padding_mask=None if mask is None else own.part(mask, cut, 1),
        )
        kept = slice(None) if mask is None else ~own.part(mask, cut, 1)
        close(part[kept], own.part(expected, cut, 1)[kept])


def check_vision_transformer(ranks):
    torch.manual_seed(11)
    model = VisionTransformer(img_size=20, patch_size=4, embed_dim=8, depth=2, num_heads=2).double()
    vision.swap_attention(model, landmarks=AvgPoolLandmarks(4))
    tokens = model._pos_embed(model.patch_embed(normal(2, 3, 20, 20))).detach()
    expected = model.blocks(tokens).detach()
    cuts = {2: [14, 12], 3: [10, 0, 16], 4: [3, 12, 8, 3]}
    for own in ranks:
        mesh, cut = DeviceMesh.from_group(own.group, "cpu"), cuts[own.size]
        sharing = parallelize_module(
            copy.deepcopy(model), mesh, {"blocks.*.attn": ContextParallel()}
        )
        close(sharing.blocks(own.part(tokens, cut, 1)), own.part(expected, cut, 1))


def gradients(model, x):
    """Of a mean over all tokens, by parameter."""
    model(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_beside_data_parallelism(_):
    """Two sequences on a 2 × 2 mesh: each pair of ranks shares one."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))
    sequence, place = mesh.get_coordinate()
    x = normal(2, 6, 5, 8)
    expected = gradients(blocks(), x)
    part = x[sequence : sequence + 1].chunk(2, 1)[place]

    def sharing():
        return parallelize_module(blocks(), mesh["context"], {"*.attn": ContextParallel()})

    found = gradients(DistributedDataParallel(sharing()), part)
    for name, gradient in expected.items():
        close(found[f"module.{name}"], gradient)
    sharded = fully_shard(sharing(), mesh=mesh)
    found = gradients(sharded, part)
    for name, gradient in expected.items():
        close(found[name].full_tensor(), gradient)
    saved_on_four_ranks_loads_on_two(sharded)


def saved_on_four_ranks_loads_on_two(model):
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    checkpoint.save(get_model_state_dict(model), checkpoint_id=folder[0])
    pair = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        mesh = DeviceMesh.from_group(pair, "cpu")
        other = fully_shard(blocks(), mesh=mesh)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        state = get_model_state_dict(other)
        checkpoint.load(state, checkpoint_id=folder[0], process_group=pair)
        set_model_state_dict(other, state)
        for name, parameter in other.named_parameters():
            assert torch.equal(parameter.full_tensor(), blocks().get_parameter(name)), name
    assert Path(folder[0], ".metadata").exists()


class Bytes(CommDebugMode):
    """Counts the bytes that a rank gives to collectives."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "_c10d_functional" and "wait_tensor" not in func.name():
            self.bytes += args[0].numel() * args[0].element_size()
        return super().__torch_dispatch__(func, types, args, kwargs)


def check_bytes_do_not_grow_with_the_tokens(ranks):
    for own, normalization in itertools.product(ranks, NORMALIZATIONS):
        module, exchanged = shared(layer(normalization=normalization), own), []
        for n in (10, 40):
            module(normal(2, n, 8))  # the first call compares sizes
            with Bytes() as counted:
                module(normal(2, n, 8)).sum().backward()
            exchanged.append((counted.bytes, counted.get_total_counts()))
        assert exchanged[0] == exchanged[1]
        m, d, batch_and_heads, width = 4, 4, 4, 8
        sums = batch_and_heads * m * (d + (d + (normalization in NORMALIZATIONS[:2]))) * width
        # Forward and backward, and the sizes of the parts; "softmax" also exchanges bounds.
        bounds = 2 * batch_and_heads * own.size * 2 * width * (normalization == "softmax")
        assert exchanged[0][0] == 2 * sums + bounds + 11 * 8


def check_compiled(ranks):
    own = ranks[0]
    if own.size > 2:
        return
    padding = torch.zeros(2, N, dtype=torch.bool)
    padding[0, 5:12] = True
    plain = layer(normalization="softmax")
    x = normal(2, N, 8).requires_grad_()
    (expected,) = torch.autograd.grad(plain(x, key_padding_mask=padding).square().sum(), x)
    compiled = torch.compile(shared(plain, own), backend="aot_eager", fullgraph=True)
    for cut in ([14, 9], [12, 11]):
        part = own.part(x, cut, 1)
        output = compiled(part, key_padding_mask=own.part(padding, cut, 1))
        close(torch.autograd.grad(output.square().sum(), part)[0], own.part(expected, cut, 1))


def check_activation_checkpoints_and_repeated_runs(ranks):
    for own in ranks:
        module, runs = shared(layer(), own), []
        part = own.part(normal(2, N, 8).requires_grad_(), PARTS[own.size], 1)
        for _ in range(2):
            output = torch.utils.checkpoint.checkpoint(module, part, use_reentrant=False)
            runs.append((output, *torch.autograd.grad(output.square().sum(), part)))
        output = module(part)
        runs.append((output, *torch.autograd.grad(output.square().sum(), part)))
        for again in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def check_autocast(ranks):
    for own in ranks:
        module, x = layer().float(), normal(2, N, 8).float()
        with torch.autocast("cpu", torch.bfloat16):
            whole, part = module(x), shared(module, own)(own.part(x, PARTS[own.size], 1))
        assert part.dtype == torch.bfloat16
        of_whole = own.part(whole, PARTS[own.size], 1)
        # Landmarks differ by one rounding to bfloat16, which has 8 bits.
        torch.testing.assert_close(part, of_whole, rtol=0, atol=2**-7 * whole.abs().amax().item())


def check_k_means(ranks):
    x = normal(2, N, 8)
    padding = torch.zeros(2, N, dtype=torch.bool)
    padding[0, 5:12] = True
    for own, mask in itertools.product(ranks, (None, padding)):
        module, cut = layer(landmarks=KMeansLandmarks(4)), PARTS[own.size]
        part = own.part(x.requires_grad_(), cut, 1)
        of_mask = None if mask is None else own.part(mask, cut, 1)
        output, of_part = (
            module(x, key_padding_mask=mask),
            shared(module, own)(part, key_padding_mask=of_mask),
        )
        close(of_part, own.part(output, cut, 1).detach())
        (expected,) = torch.autograd.grad(output.square().sum(), x)
        (found,) = torch.autograd.grad(of_part.square().sum(), part)
        close(found, own.part(expected, cut, 1))


def check_second_derivatives(ranks):
    def second(query, value, landmarks, group):
        output = softmax_free_attention(query, None, value, landmarks, group=group)
        (first,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [query, value])

    query, value = (normal(1, 2, N, 4, seed=seed).requires_grad_() for seed in (0, 1))
    landmarks = normal(1, 2, 5, 4, seed=2)
    expected = second(query, value, landmarks, None)
    for own in ranks:
        cut = PARTS[own.size]
        parts = [own.part(tensor, cut, 2) for tensor in (query, value)]
        for found, whole in zip(second(*parts, landmarks, own.group), expected, strict=True):
            close(found, own.part(whole, cut, 2))


def check_triton(ranks):
    """The kernels in their interpreter."""
    own = ranks[0]
    if own.size > 2:
        return
    query, key, value = (normal(1, 1, N, 16, seed=seed).float() for seed in range(3))
    landmarks = normal(1, 1, 4, 16, seed=3).float()
    for normalization, other in itertools.product(("token", "softmax"), (None, key)):
        options = {"normalization": normalization, "impl": "triton"}
        parts = [own.part(each.requires_grad_(), PARTS[2], 2) for each in (query, key, value)]
        inputs = [query, other, value]
        whole = softmax_free_attention(*inputs, landmarks, **options)
        part = softmax_free_attention(
            parts[0],
            None if other is None else parts[1],
            parts[2],
            landmarks,
            group=own.group,
            **options,
        )
        torch.testing.assert_close(part, own.part(whole, PARTS[2], 2).detach())
        (expected,) = torch.autograd.grad(whole.square().sum(), value)
        (found,) = torch.autograd.grad(part.square().sum(), parts[2])
        torch.testing.assert_close(found, own.part(expected, PARTS[2], 2))
