"""An operator's launches are repeated for inputs of a form that it knows."""

import weakref

import pytest
import torch
from support.budget import EXACT
from support.launched import CALLS, launches_of_calls
from support.strategies import NORMALIZATIONS, normal

from benchmarks.kernels.compilation import compiler_processes
from softattn import gaussian_attention, softmax_free_attention
from softattn.kernels import launching
from softattn.kernels.configurations import Configuration
from softattn.triton import recording
from softattn.triton.recording import Recorded, forget_recordings


@pytest.fixture(autouse=True)
def fresh(poisoned_memory):
    """Operators that have recorded nothing."""
    forget_recordings()
    yield
    forget_recordings()


def tensors(device, seed, dtype=torch.float32):
    """Q, K, V, L, and the gradient of the output."""
    shapes = ((2, 2, 20, 5), (2, 2, 20, 5), (2, 2, 20, 3), (2, 2, 7, 5), (2, 2, 20, 3))
    return [normal(*shape, seed=seed + i).to(device, dtype) for i, shape in enumerate(shapes)]


def output_and_gradients(attend, inputs):
    *inputs, grad = inputs
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = attend(*inputs)
    gradients = torch.autograd.grad(output, inputs, grad, allow_unused=True)
    return [x for x in (output, *gradients) if x is not None]


def assert_replays_give_the_same_bits(attend, device, dtype, monkeypatch, *, all_replayed=True):
    """Asserts it of the third call with a form, which launches without the kernels' launchers."""
    first, second, third = (tensors(device, 10 * i, dtype) for i in range(3))
    expected = output_and_gradients(attend, third)
    forget_recordings()
    for inputs in (first, second):
        output_and_gradients(attend, inputs)
    with monkeypatch.context() as patch:
        if all_replayed:
            patch.setattr(launching, "launch", None)
        actual = output_and_gradients(attend, third)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, **EXACT)
        assert a.stride() == e.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_self_attention(device, monkeypatch, normalization, padded, dtype):
    padding = torch.arange(20, device=device).expand(2, -1) % 7 == 2 if padded else None

    def attend(query, _, value, landmarks):
        return softmax_free_attention(
            query,
            None,
            value,
            landmarks,
            normalization=normalization,
            key_padding_mask=padding,
            impl="triton",
        )

    assert_replays_give_the_same_bits(attend, device, dtype, monkeypatch)


@pytest.mark.parametrize("normalization", ["token", "softmax"])
def test_cross_attention(device, monkeypatch, normalization):
    def attend(*inputs):
        return softmax_free_attention(*inputs, normalization=normalization, impl="triton")

    assert_replays_give_the_same_bits(attend, device, torch.float32, monkeypatch)


def test_near_field(device, monkeypatch):
    def attend(query, _, value, landmarks):
        return softmax_free_attention(query, None, value, landmarks, near_field=4, impl="triton")

    assert_replays_give_the_same_bits(attend, device, torch.float32, monkeypatch)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_exact_attention(device, monkeypatch, crossed, normalize):
    def attend(query, key, value, _):
        key = key if crossed else None
        return gaussian_attention(query, key, value, normalize=normalize, impl="triton")

    # The gradient of row sums is also computed by PyTorch's operations.
    assert_replays_give_the_same_bits(
        attend, device, torch.float32, monkeypatch, all_replayed=not normalize
    )


def test_inputs_that_are_copied(device, monkeypatch):
    def attend(query, _, value, landmarks):
        apart = query.mT.contiguous().mT
        return softmax_free_attention(apart, None, value, landmarks, impl="triton")

    assert_replays_give_the_same_bits(
        attend, device, torch.float32, monkeypatch, all_replayed=False
    )


def test_one_tensor_in_two_places_and_then_two(device):
    def attend(query, value):
        return softmax_free_attention(query, None, value, query[:, :, :7], impl="triton")

    one, other = (normal(1, 2, 20, 4, seed=seed).to(device, torch.float32) for seed in range(2))
    expected = attend(one, other)
    forget_recordings()
    for _ in range(2):
        attend(one, one)
    torch.testing.assert_close(attend(one, other), expected, **EXACT)


def test_strides_and_alignment_are_of_the_form(device):
    def attend(query):
        return softmax_free_attention(query, None, query, query[:, :, :7], impl="triton")

    x = normal(1, 2, 20, 4, seed=0).to(device, torch.float32)
    expected = attend(x)
    longer = torch.empty(1 + x.numel(), device=device)
    unaligned = longer[1:].view_as(x).copy_(x)
    heads_last = x.transpose(1, 2).contiguous().transpose(1, 2)
    for _ in range(3):
        for same in (x, unaligned, heads_last):
            torch.testing.assert_close(attend(same), expected, **EXACT)
    assert recording.form_of([x]) != recording.form_of([unaligned])


def test_size_of_memory_is_of_the_form_on_amd(monkeypatch):
    memory = torch.empty(2**31, dtype=torch.uint8)  # never touched
    part, own = memory[:64], torch.empty(64, dtype=torch.uint8)
    assert recording.form_of([part]) == recording.form_of([own])
    monkeypatch.setattr(recording, "_ON_AMD", True)
    assert recording.form_of([part]) != recording.form_of([own])


class _Kernel:
    """target = source + number.

    alive: at each launch, how many of the targets before are still in memory.
    """

    arg_names = ("source", "target", "number")

    def __init__(self):
        self.alive = []
        self._targets = []

    def __getitem__(self, grid):
        return self._run

    def _run(self, source=None, target=None, number=None, **options):
        self.alive.append(sum(before() is not None for before in self._targets))
        self._targets.append(weakref.ref(target))
        target.copy_(source + number)

    def launch(self, source, target, number=1):
        arguments = {"source": source, "target": target, "number": number}
        launching.launch(self, (1,), arguments, Configuration(16, 16, 4, 1))


def test_memory_is_freed_after_its_last_launch(device):
    kernel = _Kernel()

    def implementation(x):
        targets = [torch.empty_like(x) for _ in range(4)]
        for source, target in zip((x, *targets), targets, strict=False):
            kernel.launch(source, target)
        return targets[-1]

    recorded = Recorded(implementation)
    for number in range(3):
        kernel.alive.clear()
        assert recorded(torch.full((3,), number, device=device)).tolist() == 3 * [number + 4]
    # The source of a launch is the target of the one before.
    assert kernel.alive == [0, 1, 1, 1]


def test_recording_frees_memory_as_other_runs_do(device):
    kernel = _Kernel()

    def implementation(x):
        for _ in range(4):
            y = torch.empty_like(x)
            kernel.launch(x, y)
            x = y
        return y

    recorded = Recorded(implementation)
    for number in range(3):
        kernel.alive.clear()
        assert recorded(torch.full((3,), number, device=device)).tolist() == 3 * [number + 4]
        assert kernel.alive == [0, 1, 1, 1]


def _computes(kernel, x):
    y = torch.empty_like(x)
    kernel.launch(x + 1, y)
    return y


def _reads_part(kernel, x):
    y = torch.empty_like(x[1:])
    kernel.launch(x[1:], y)
    return y


def _changes_what_it_returns(kernel, x):
    y = torch.empty_like(x)
    kernel.launch(x, y)
    return y.mul_(2)


def _looks_at_a_number(kernel, x):
    y = torch.empty_like(x)
    kernel.launch(x, y, x.sum().item())
    return y


def _takes_a_tensor_from_elsewhere(kernel, x):
    y = torch.empty_like(x)
    kernel.launch(OTHER.to(x.device), y, 0)
    return y


def _returns_a_part(kernel, x):
    y = torch.empty(2, *x.shape, device=x.device)
    kernel.launch(x.expand(2, -1), y)
    return y[0]


OTHER = torch.zeros(3)


@pytest.mark.parametrize(
    "implementation",
    [
        _computes,
        _reads_part,
        _changes_what_it_returns,
        _looks_at_a_number,
        _takes_a_tensor_from_elsewhere,
        _returns_a_part,
    ],
)
def test_implementations_that_do_more_are_run_every_time(device, implementation):
    kernel, runs = _Kernel(), []

    def run(x):
        runs.append(x)
        return implementation(kernel, x)

    recorded = Recorded(run)
    for number in range(1, 5):
        OTHER.fill_(number)
        x = torch.full((3,), float(number), device=device)
        assert torch.equal(recorded(x), implementation(kernel, x))
        assert len(runs) == number


def test_operations_on_nothing_are_operations(device):
    runs = []

    def implementation(x):
        runs.append(x)
        # As ranks that add up no sums, and wait for each other all the same.
        return torch.empty_like(x.clone())

    recorded = Recorded(implementation)
    for number in range(1, 5):
        recorded(torch.empty(0, device=device))
        assert len(runs) == number


def test_a_view_of_all_memory_is_repeated(device, monkeypatch):
    kernel = _Kernel()

    def implementation(x):
        y = torch.empty(3, 2, device=x.device)
        kernel.launch(x.mT.unsqueeze(0).squeeze(0), y)
        return y.mT

    recorded = Recorded(implementation)
    for number in range(4):
        if number == 2:
            monkeypatch.setattr(launching, "launch", None)
        x = torch.arange(6.0, device=device).view(2, 3) + number
        output = recorded(x)
        assert torch.equal(output, x + 1)
        assert output.stride() == (1, 2)


def test_forms_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(recording, "_MOST_FORMS", 3)
    recorded = Recorded(torch.clone)
    for n in (1, 2, 3, 1, 4, 1, 1, 1, 5, 6, 7):
        assert recorded(torch.ones(n)).tolist() == n * [1]
        assert len(recorded._runs) <= 3


# Before Triton 3.3 it launches them itself.
@pytest.mark.needs_newer_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_compiled_kernels_get_what_triton_gives_them(normalization, dtype):
    with compiler_processes(1) as processes:
        first, *others = processes.submit(launches_of_calls, normalization, dtype).result()
    assert len(first) >= 10 and len(others) == CALLS - 1
    for other in others:
        assert other == first


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_default_dtype_does_not_matter(device, normalization, default):
    def attend(query, _, value, landmarks):
        return softmax_free_attention(
            query, None, value, landmarks, normalization=normalization, impl="triton"
        )

    inputs = tensors(device, 0)
    expected = output_and_gradients(attend, inputs)
    torch.set_default_dtype(default)
    try:
        forget_recordings()
        found = [output_and_gradients(attend, inputs) for _ in range(3)]
    finally:
        torch.set_default_dtype(torch.float32)
    for actual in found:
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, **EXACT)
