"""Ranks that share a sequence compute what one process does."""

import pytest
from support import context_parallel, ranks

CHECKS = [name for name in vars(context_parallel) if name.startswith("check_")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """How each check went on each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.run(context_parallel.__file__, folder)
    return folder


@pytest.mark.parametrize("name", CHECKS)
def test_ranks_agree_with_one_process(folder, name):
    failed = {
        rank: outcome
        for rank, outcome in enumerate(ranks.outcomes(folder, name))
        if outcome != "passed"
    }
    assert not failed, "\n".join(f"rank {rank}: {outcome}" for rank, outcome in failed.items())
