"""torch.compile with sizes that change from call to call."""

import pytest
import torch
from support.strategies import normal
from torch._dynamo.testing import CompileCounterWithBackend
from torch.torch_version import TorchVersion

import softattn
from softattn import AvgPoolLandmarks, KMeansLandmarks, SoftmaxFreeAttention

LENGTHS = (23, 48, 90)
MAPS = ((8, 9), (12, 12), (5, 17))


# On torch 2.6 graphs break at softattn's functions.
BREAKS_GRAPHS = TorchVersion(torch.__version__) < "2.7"
whole_graph = pytest.mark.needs_newer_torch


@pytest.fixture
def counted():
    """A backend that counts compilations."""
    torch.compiler.reset()
    return CompileCounterWithBackend("aot_eager")


def assert_same_with_gradients(compiled, layer, *inputs, **options):
    results = []
    for module in (compiled, layer):
        output = module(*inputs, **options)
        leaves = [x for x in inputs if x.requires_grad]
        gradients = torch.autograd.grad(output.square().sum(), (*leaves, *layer.parameters()))
        results.append((output, *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@whole_graph
@pytest.mark.parametrize(
    "options",
    [{"normalization": "landmark"}, {"normalization": "token"}, {"near_field": 4}],
    ids=["landmark", "token", "near field"],
)
def test_one_compilation_for_many_lengths(counted, options):
    layer = SoftmaxFreeAttention(
        8, 2, landmarks=AvgPoolLandmarks(4), dtype=torch.float64, **options
    )
    compiled = torch.compile(layer, fullgraph=True, backend=counted)
    for n in LENGTHS:
        x = normal(2, n, 8, seed=n).requires_grad_()
        torch._dynamo.mark_dynamic(x, 1)
        assert_same_with_gradients(compiled, layer, x)
    assert counted.frame_count == 1


@whole_graph
@pytest.mark.parametrize(("sampler", "near_field"), [(AvgPoolLandmarks, 1), (KMeansLandmarks, 4)])
def test_one_compilation_for_many_padded_lengths(counted, sampler, near_field):
    layer = SoftmaxFreeAttention(
        8, 2, landmarks=sampler(4), near_field=near_field, dtype=torch.float64
    )
    compiled = torch.compile(layer, fullgraph=True, backend=counted)
    for n in LENGTHS:
        x = normal(2, n, 8, seed=n).requires_grad_()
        padding = torch.arange(n) >= torch.tensor([[n], [n - 9]])
        for tensor in (x, padding):
            torch._dynamo.mark_dynamic(tensor, 1)
        assert_same_with_gradients(compiled, layer, x, key_padding_mask=padding)
    assert counted.frame_count == 1


@whole_graph
def test_one_compilation_for_many_maps(counted):
    layer = SoftmaxFreeAttention(
        8, 2, landmarks=AvgPoolLandmarks((4, 3)), value_conv=3, dtype=torch.float64
    )
    compiled = torch.compile(layer, fullgraph=True, backend=counted)
    for height, width in MAPS:
        x = normal(2, height, width, 8, seed=height).requires_grad_()
        for dimension in (1, 2):
            torch._dynamo.mark_dynamic(x, dimension)
        assert_same_with_gradients(compiled, layer, x)
    assert counted.frame_count == 1


@whole_graph
def test_two_compilations_where_nothing_is_marked(counted):
    layer = SoftmaxFreeAttention(8, 2, landmarks=AvgPoolLandmarks(4), dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend=counted)
    for n in LENGTHS:
        assert_same_with_gradients(compiled, layer, normal(2, n, 8, seed=n).requires_grad_())
    assert counted.frame_count == 2


@whole_graph
def test_all_sizes_dynamic(counted):
    layer = SoftmaxFreeAttention(8, 2, landmarks=AvgPoolLandmarks(4), dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend=counted, dynamic=True)
    for batch, n in ((2, 23), (3, 48), (4, 90)):
        assert_same_with_gradients(compiled, layer, normal(batch, n, 8, seed=n).requires_grad_())
    assert counted.frame_count <= 2


@whole_graph
def test_context_of_any_length(counted):
    layer = SoftmaxFreeAttention(
        8, 2, landmarks=AvgPoolLandmarks(4), normalization="token", dtype=torch.float64
    )
    compiled = torch.compile(layer, fullgraph=True, backend=counted)
    for n_q, n_k in ((20, 30), (40, 33), (17, 64)):
        x, context = normal(2, n_q, 8, seed=1), normal(2, n_k, 8, seed=2)
        for tensor in (x, context):
            torch._dynamo.mark_dynamic(tensor, 1)
        assert_same_with_gradients(compiled, layer, x, context)
    assert counted.frame_count == 1


@whole_graph
@pytest.mark.parametrize("normalize", [False, True])
def test_exact_attention(counted, normalize):
    attend = torch.compile(softattn.gaussian_attention, fullgraph=True, backend=counted)
    for n_q, n_k in ((5, 7), (8, 6), (9, 9)):
        query, key = normal(1, 2, n_q, 3, seed=1), normal(1, 2, n_k, 3, seed=2)
        for tensor in (query, key):
            torch._dynamo.mark_dynamic(tensor, 2)
        actual = attend(query, key, key, normalize=normalize)
        expected = softattn.gaussian_attention(query, key, key, normalize=normalize)
        torch.testing.assert_close(actual, expected)
    assert counted.frame_count == 1


@pytest.mark.parametrize("with_form", [False, True])
@pytest.mark.parametrize("with_shift", [False, True])
def test_opcheck(with_form, with_shift):
    query, key, value, form = (
        normal(*shape, seed=seed, dtype=torch.float32)
        for seed, shape in enumerate([(2, 1, 5, 3), (2, 1, 4, 3), (2, 1, 4, 2), (2, 1, 4, 4)])
    )
    operators = torch.ops.softattn
    shift = torch.zeros(2, 1, 5, 1) if with_shift else None
    operands = (query, key, value, form if with_form else None, shift)
    torch.library.opcheck(operators.gaussian_product.default, (*operands, 0.5))
    grads = (torch.ones(2, 1, 5, 2), torch.ones(2, 1, 5, 1) if with_form else None)
    torch.library.opcheck(operators.gaussian_product_gradient.default, (*operands, *grads, 0.5))
    padding = torch.zeros(2, 4, dtype=torch.bool)
    torch.library.opcheck(operators.nearest_key_shift.default, (query, key, padding, 0.5))


@pytest.mark.parametrize("padded", [False, True])
def test_opcheck_of_clusters(padded):
    tokens, landmarks = (normal(2, 1, n, 3, seed=n, dtype=torch.float32) for n in (7, 4))
    masks = [torch.arange(n).expand(2, -1) > n - 2 if padded else None for n in (7, 4)]
    operators = torch.ops.softattn
    torch.library.opcheck(operators.eager_nearest_landmarks.default, (tokens, landmarks, *masks))
    line = landmarks[:, :, :1].detach()
    torch.library.opcheck(
        operators.eager_labels_and_places.default, (tokens, landmarks, line, line, *masks)
    )
    labels = torch.ops.softattn.eager_nearest_landmarks(tokens, landmarks, *masks)
    torch.library.opcheck(operators.eager_cluster_sums.default, (tokens.bfloat16(), labels, 4))


# What Inductor imports is deprecated in places.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles")
@pytest.mark.parametrize(
    ("normalization", "padded"),
    [("none", True), ("landmark", True), ("token", False), ("token", True)],
)
def test_inductor(normalization, padded):
    torch.compiler.reset()  # Dynamo takes no more than a few variants of one function
    layer = SoftmaxFreeAttention(16, 2, normalization=normalization, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 16, dtype=torch.float64, requires_grad=True)
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[0, 2:] = True
    options = {"key_padding_mask": padding} if padded else {}
    results = []
    for module in (layer, torch.compile(layer, fullgraph=not BREAKS_GRAPHS)):
        output = module(x, **options)
        gradients = torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))
        results.append((output, *gradients))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
