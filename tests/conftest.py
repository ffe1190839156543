import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism asks of cuBLAS

import pytest
import torch
from hypothesis import HealthCheck, settings

from softattn.eager import tiles as streaming
from softattn.triton.recording import forget_recordings

settings.register_profile(
    "ci",
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "wide", parent=settings.get_profile("ci"), max_examples=1000, derandomize=False
)
settings.register_profile("quick", parent=settings.get_profile("ci"), max_examples=12)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the tests of the Triton kernels run; on the CPU in Triton's interpreter",
    )


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)  # the other cores are the other workers'
    # Triton reads it where a kernel is defined.
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_ignore_collect(collection_path, config):
    """Leaves out what only a GPU can run."""
    if collection_path.name == "test_large.py":
        return config.getoption("--device") == "cpu" or None
    return None


@pytest.fixture(scope="session")
def device(request):
    """Where the tests of the Triton kernels run."""
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda":
        yield device
        return
    from support.interpreter import fast_interpreter

    with fast_interpreter():
        yield device


@pytest.fixture(scope="module", params=["one tile", "many tiles"])
def tiles(request):
    """Runs a module's tests with the kernel in one tile, and cut into tiles of a few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many tiles":
            patch.setattr(streaming, "_TILE_ELEMENTS", 8)
            patch.setattr(streaming, "_SHORT_SIDE", 4)
            patch.setattr(streaming, "_LEAST_LONG_SIDE", 3)
        yield request.param


@pytest.fixture(scope="module", params=["tiles of the table", "small tiles"])
def kernel_tiles(request):
    """Runs a module's tests with the kernels' own tiles, and with the smallest that there are."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small tiles":
            from softattn.kernels import configurations

            smallest = configurations.Configuration(tokens=16, landmarks=16, warps=4, stages=1)
            patch.setattr(configurations, "choose", lambda *_: smallest)
        forget_recordings()
        yield request.param
    forget_recordings()


@pytest.fixture
def poisoned_memory():
    """Fills what ``torch.empty`` returns with NaN, and refuses operators that vary between runs."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
