"""Ranks that share a sequence compute what one process does, and refuse what does not fit."""

import pytest
from support import ranks

# The fully_shard of torch 2.6 asks for streams, which CPUs do not have.
pytestmark = pytest.mark.needs_newer_torch

MODULES = [
    "support.context_parallel",
    "support.context_parallel_refusals",
    "support.context_parallel_models",
]


def test_ranks_that_share_a_sequence(tmp_path):
    """One test: its processes take seconds to start."""
    failed = {
        name: next(outcome for outcome in outcomes if outcome != "passed")
        for name, outcomes in ranks.run(MODULES, tmp_path).items()
        if set(outcomes) != {"passed"}
    }
    assert not failed, "\n".join(f"{name}: {outcome}" for name, outcome in failed.items())
