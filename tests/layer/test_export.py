"""torch.export and ONNX: graphs that hold PyTorch's own operators, for other sizes too."""

import io

import onnxruntime
import pytest
import torch
from support.strategies import normal
from torch.export import Dim

from softattn import AvgPoolLandmarks, ConvLandmarks, KMeansLandmarks, SoftmaxFreeAttention

# The torch.export of torch 2.6 does not tell Dynamo's traces from its own.
pytestmark = pytest.mark.needs_newer_torch


def layer(**options):
    options = {
        "landmarks": AvgPoolLandmarks(4),
        "normalization": "token",
        "dtype": torch.float64,
    } | options
    return SoftmaxFreeAttention(8, 2, **options).eval()


def padding_of(*shape):
    padding = torch.zeros(shape, dtype=torch.bool)
    padding[0, 5:] = True
    return padding


def saved_and_loaded(program):
    assert not any("softattn" in str(node.target) for node in program.graph.nodes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


@pytest.mark.parametrize(
    ("options", "padded"),
    [
        ({"normalization": "none"}, True),
        ({"normalization": "landmark"}, True),
        ({"normalization": "token"}, False),
        ({"near_field": 4}, True),
        ({"near_field": 4}, False),
        ({"near_field": 16}, False),
    ],
)
def test_sequences(options, padded):
    attention = layer(**options)
    sizes = dict.fromkeys((0, 1), Dim.DYNAMIC)

    def example(batch, tokens):
        options = {"key_padding_mask": padding_of(batch, tokens)} if padded else {}
        return normal(batch, tokens, 8, seed=tokens), options

    x, options = example(2, 13)
    program = torch.export.export(
        attention, (x,), options, dynamic_shapes={"x": sizes} | dict.fromkeys(options, sizes)
    )
    exported = saved_and_loaded(program)
    for shape in ((3, 30), (2, 24), (4, 9)):
        x, options = example(*shape)
        torch.testing.assert_close(exported(x, **options), attention(x, **options))


@pytest.mark.parametrize(
    ("sampler", "padded"),
    [(AvgPoolLandmarks, False), (AvgPoolLandmarks, True), (KMeansLandmarks, False)],
)
def test_maps(sampler, padded):
    attention = layer(landmarks=sampler((3, 2)), value_conv=3)
    sizes = dict.fromkeys((0, 1, 2), Dim.DYNAMIC)

    def example(*shape):
        options = {"key_padding_mask": padding_of(*shape)} if padded else {}
        return normal(*shape, 8, seed=shape[1]), options

    x, options = example(2, 7, 5)
    program = torch.export.export(
        attention, (x,), options, dynamic_shapes={"x": sizes} | dict.fromkeys(options, sizes)
    )
    exported = saved_and_loaded(program)
    for shape in ((2, 6, 9), (3, 11, 4)):
        x, options = example(*shape)
        torch.testing.assert_close(exported(x, **options), attention(x, **options))


def test_convolved_landmarks_in_batches_of_any_size():
    attention = layer(landmarks=ConvLandmarks(4, 3).double())
    x = normal(2, 7, 5, 8, seed=0)
    exported = saved_and_loaded(
        torch.export.export(attention, (x,), dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    )
    x = normal(5, 7, 5, 8, seed=1)
    torch.testing.assert_close(exported(x), attention(x))


# The exporter's own: of its use of PyTorch, and of names that two inputs share.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:# The axis name.*will not be used")
@pytest.mark.parametrize(("sampler", "near_field"), [(AvgPoolLandmarks, 1), (KMeansLandmarks, 4)])
def test_onnx(tmp_path, sampler, near_field):
    attention = layer(landmarks=sampler(4), dtype=torch.float32, near_field=near_field)
    sizes = dict.fromkeys((0, 1), Dim.DYNAMIC)
    program = torch.onnx.export(
        attention,
        (torch.randn(2, 13, 8),),
        kwargs={"key_padding_mask": padding_of(2, 13)},
        dynamic_shapes={"x": sizes, "key_padding_mask": sizes},
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "attention.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "attention.onnx", providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in session.get_inputs()]
    for batch, tokens in ((2, 13), (3, 30), (4, 24)):
        x, padding = torch.randn(batch, tokens, 8), padding_of(batch, tokens)
        feeds = dict(zip(names, (x.numpy(), padding.numpy()), strict=True))
        (output,) = session.run(None, feeds)
        expected = attention(x, key_padding_mask=padding)
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-4)
