"""Two processes, each with half of a batch, against one process with the whole."""

import pytest
import torch
import torch.multiprocessing as mp
from support.two_processes import WORLD, batch, gradients, layer, work

# The fully_shard of torch 2.6 asks for streams, which CPUs do not have.
pytestmark = pytest.mark.needs_newer_torch


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The gradients of two processes, of each kind."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("kind", ["distributed_data_parallel", "fully_sharded"])
def test_two_processes_are_one(found, kind):
    expected = gradients(layer(), *batch())
    assert found[kind].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[kind][name], gradient)
