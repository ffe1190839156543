"""Benchmarks and examples are not part of the installation; what is installed comes first."""

import sys

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.paths import ROOT

sys.path.append(str(ROOT))


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
