"""A layer in two processes, each with half of a batch; they import this file by its name."""

import gc
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from softattn import AvgPoolLandmarks, SoftmaxFreeAttention

WORLD = 2


def layer():
    torch.manual_seed(3)
    return SoftmaxFreeAttention(
        8,
        2,
        landmarks=AvgPoolLandmarks(4),
        normalization="token",
        value_conv=3,
        dtype=torch.float64,
    )


def batch():
    x = torch.randn(4, 5, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(4, 5, 6, dtype=torch.bool)
    padding[1:, 3:] = True
    return x, padding


def gradients(module, x, padding):
    """Of a mean over samples, by parameter."""
    module(x, key_padding_mask=padding).square().sum((1, 2, 3)).mean().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def distributed_data_parallel(x, padding):
    module = DistributedDataParallel(layer())
    return {
        name.removeprefix("module."): gradient
        for name, gradient in gradients(module, x, padding).items()
    }


def fully_sharded(x, padding):
    module = fully_shard(layer(), mesh=init_device_mesh("cpu", (WORLD,)))
    assert module.qk_proj.weight.to_local().numel() == module.qk_proj.weight.numel() / WORLD
    return {
        name: gradient.full_tensor() for name, gradient in gradients(module, x, padding).items()
    }


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        x, padding = (tensor.chunk(WORLD)[rank] for tensor in batch())
        for kind in (distributed_data_parallel, fully_sharded):
            found = kind(x, padding)
            if rank == 0:
                torch.save(found, os.path.join(folder, f"{kind.__name__}.pt"))
        # FSDP keeps its groups in a cycle; their threads must end before the interpreter does.
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()
