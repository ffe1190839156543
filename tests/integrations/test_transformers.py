"""Softmax-free attention as an attention implementation of transformers."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate.utils import send_to_device
from support.strategies import normal
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softattn import AvgPoolLandmarks, ConvLandmarks, reference, softmax_free_attention
from softattn.integrations.transformers import register_attention, set_attention

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
WORDS = SIZES | {"vocab_size": 50, "pad_token_id": 0}
PICTURES = SIZES | {"image_size": 32, "patch_size": 8}


@pytest.fixture(autouse=True)
def registered():
    register_attention(landmarks=AvgPoolLandmarks(4))


def model_of(config, implementation: str = "softattn"):
    torch.manual_seed(1)
    model = AutoModel.from_config(config, attn_implementation=implementation).double().eval()
    # Biases and register tokens start at 0, where many faults make no difference.
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def bert(**options):
    return transformers.BertConfig(**WORDS | options)


def words(*lengths: int, tokens: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    ids = torch.randint(1, 50, (len(lengths), tokens))
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def exact_gaussian(module, query, key, value, attention_mask, scaling, **_):
    """Row-normalised Gaussian attention, written out."""
    groups = query.shape[1] // key.shape[1]
    output = reference.gaussian_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        normalize=True,
        scale=scaling,
        key_padding_mask=None if attention_mask is None else ~attention_mask,
    )
    return output.transpose(1, 2), None


@pytest.fixture(params=["softmax", "token"])
def exact(request):
    """Implementations that agree: ours with every token a landmark, and the exact one."""
    ours = "softattn-all-tokens"
    options = {} if request.param == "softmax" else {"normalization": request.param}
    register_attention(
        ours,
        landmarks=AvgPoolLandmarks(100),
        landmarks_from="keys",
        pinv=torch.linalg.inv,
        **options,
    )
    AttentionInterface.register("gaussian", exact_gaussian)
    AttentionMaskInterface.register("gaussian", lambda attention_mask=None, **_: attention_mask)
    return ours, "sdpa" if request.param == "softmax" else "gaussian"


@pytest.mark.parametrize(
    "config",
    [
        bert(),
        transformers.EuroBertConfig(**WORDS, num_key_value_heads=2, bos_token_id=1, eos_token_id=2),
    ],
    ids=["bert", "grouped keys"],
)
def test_text_models_run_the_attention_that_they_are_told_to(config, exact):
    inputs = words(9, 6, 1)
    ours, theirs = (model_of(config, name)(**inputs).last_hidden_state for name in exact)
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[kept], theirs[kept])
    other = "gaussian" if exact[1] == "sdpa" else "sdpa"
    others = model_of(config, other)(**inputs).last_hidden_state
    assert not torch.allclose(ours[kept], others[kept])


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (transformers.ViTConfig, 1),
        (transformers.Dinov2WithRegistersConfig, 5),
        (transformers.SiglipVisionConfig, 0),
        (transformers.CLIPVisionConfig, 1),
    ],
)
def test_vision_models(kind, prefix, exact):
    config, pictures = kind(**PICTURES), normal(2, 3, 32, 32, seed=0)
    ours, theirs = (model_of(config, name)(pictures).last_hidden_state for name in exact)
    torch.testing.assert_close(ours, theirs)
    register_attention(
        "softattn-maps", landmarks=AvgPoolLandmarks((2, 2)), grid=(4, 4), num_prefix_tokens=prefix
    )
    model = model_of(config, "softattn-maps")
    output = model(pictures).last_hidden_state
    assert output.shape == ours.shape
    output.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if not prefix:
        return
    register_attention("softattn-maps", grid=(4, 4), num_prefix_tokens=prefix - 1)
    with pytest.raises(ValueError, match=r"grid \(4, 4\) holds 16 tokens, got 17"):
        model(pictures)


def test_landmarks_are_those_of_the_grid():
    """One landmark a quadrant and one a strip of rows give different outputs."""
    config, pictures = transformers.SiglipVisionConfig(**PICTURES), normal(2, 3, 32, 32, seed=0)
    outputs = []
    for landmarks, grid in [((2, 2), (4, 4)), ((4, 1), (4, 4)), (4, None)]:
        register_attention("softattn-maps", landmarks=AvgPoolLandmarks(landmarks), grid=grid)
        outputs.append(model_of(config, "softattn-maps")(pictures).last_hidden_state)
    assert not torch.allclose(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[1], outputs[2])


def test_is_softmax_attention_where_keys_have_one_norm(exact):
    query, value = normal(2, 3, 9, 8, seed=0), normal(2, 3, 9, 8, seed=2)
    key = torch.nn.functional.normalize(normal(2, 3, 9, 8, seed=1), dim=-1)
    module = SimpleNamespace(is_causal=False, training=False)
    outputs = [
        ALL_ATTENTION_FUNCTIONS[name](module, query, key, value, None, scaling=0.7)[0]
        for name in (exact[0], "sdpa")
    ]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("normalization", ["softmax", "token"])
@pytest.mark.parametrize("source", ["queries", "keys"])
def test_landmarks_are_pooled_from_queries_or_keys(source, normalization, padded):
    """With "softmax" the operator moves the queries by the mean key; their landmarks move along."""
    register_attention(
        landmarks=AvgPoolLandmarks(4), landmarks_from=source, normalization=normalization
    )
    query, key, value = (normal(2, 3, 9, 8, seed=seed) + seed for seed in range(3))
    kept = torch.arange(9) < torch.tensor([9, 6 if padded else 9])[:, None]
    module = SimpleNamespace(is_causal=False, training=False)
    additive = torch.zeros(2, 1, 1, 9).double().masked_fill(~kept[:, None, None], -torch.inf)

    def attended(queries):
        return ALL_ATTENTION_FUNCTIONS["softattn"](
            module, queries, key, value, additive if padded else None, is_causal=False
        )[0].transpose(1, 2)

    for i, left in enumerate(kept):
        q, k, v = (tokens[i : i + 1, :, left] for tokens in (query, key, value))
        options = {"normalization": normalization}
        moved = q + k.mean(2, keepdim=True) if normalization == "softmax" else q
        pooled = AvgPoolLandmarks(4)(moved if source == "queries" else k)
        expected = softmax_free_attention(q, k, v, pooled, **options)
        torch.testing.assert_close(attended(query)[i : i + 1, :, left], expected)
        # The padding of fewer queries than keys is not known.
        of_keys = softmax_free_attention(q[:, :, :5], k, v, AvgPoolLandmarks(4)(k), **options)
        torch.testing.assert_close(attended(query[:, :, :5])[i : i + 1], of_keys)


def test_padding_is_ignored():
    model = model_of(bert())
    inputs = words(9, 6, 1)
    output = model(**inputs).last_hidden_state
    kept = inputs["attention_mask"].bool()
    assert output.isfinite().all()
    for i, length in enumerate((9, 6, 1)):
        alone = model(inputs["input_ids"][i : i + 1, :length]).last_hidden_state
        torch.testing.assert_close(output[i : i + 1, :length], alone)
    others = inputs | {"input_ids": inputs["input_ids"].masked_fill(~kept, 7)}
    torch.testing.assert_close(
        model(**others).last_hidden_state[kept], output[kept], rtol=0, atol=0
    )


def test_models_train():
    model = model_of(bert(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0))
    inputs = words(9, 6)
    evaluated = model(**inputs).last_hidden_state
    trained = model.train()(**inputs).last_hidden_state
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)
    trained.square().sum().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_model_changes_its_attention():
    model, inputs = model_of(bert(), "sdpa"), words(9, 6)
    model.set_attn_implementation("softattn")
    expected = model_of(bert())(**inputs).last_hidden_state
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
        ),
        transformers.LlamaConfig(**WORDS),
        bert(is_decoder=True),
        transformers.ModernBertConfig(
            **WORDS, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        ),
    ],
    ids=["gpt2", "llama", "bert as decoder", "windows"],
)
def test_masks_of_pairs_are_refused(config):
    with pytest.raises(ValueError, match="asks for causal attention, a window or another mask"):
        model_of(config)(**words(9, 6))


def call(attention_mask=None, is_causal=None, module=None, **options):
    module = SimpleNamespace(is_causal=False) if module is None else module
    tokens = normal(2, 3, 9, 8, seed=0)
    return ALL_ATTENTION_FUNCTIONS["softattn"](
        module, tokens, tokens, tokens, attention_mask, is_causal=is_causal, **options
    )


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"module": SimpleNamespace(is_causal=True)},
    ],
)
def test_causal_modules_are_refused(options):
    with pytest.raises(ValueError, match="causal attention is not offered"):
        call(**options)


@pytest.mark.parametrize("name", ["LayoutLM", "MarkupLM", "Splinter"])
def test_a_module_that_does_not_say_whether_it_is_causal(name, monkeypatch):
    kind = getattr(transformers, f"{name}Model")
    attention = getattr(inspect.getmodule(kind), f"{name}SelfAttention")
    model = model_of(getattr(transformers, f"{name}Config")(**WORDS))
    with pytest.raises(ValueError, match=rf"set {name}SelfAttention.is_causal = False"):
        model(**words(9, 6))
    monkeypatch.setattr(attention, "is_causal", False, raising=False)
    output = model(**words(9, 6)).last_hidden_state
    alone = model(**words(9)).last_hidden_state
    torch.testing.assert_close(output[:1], alone)
    changed = words(9, 6)
    changed["input_ids"][1, 6:] = 7
    torch.testing.assert_close(
        model(**changed).last_hidden_state[1, :6], output[1, :6], rtol=0, atol=0
    )


def test_a_call_says_better_than_its_module_whether_it_is_causal():
    call(is_causal=False, module=SimpleNamespace(is_causal=True))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout": 0.1}, "asks for dropout 0.1 of attention weights"),
        ({"position_bias": torch.zeros(1, 3, 9, 9)}, "asks for position_bias"),
        ({"sliding_window": 4}, "asks for sliding_window"),
        ({"softcap": 30.0}, "asks for softcap"),
        ({"s_aux": torch.zeros(3)}, "asks for s_aux"),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 9])}, "asks for cu_seq_lens_q"),
        ({"output_attentions": True}, "see softattn.attention_factors"),
        (
            {"attention_mask": torch.zeros(2, 1, 9, 9)},
            "must be the padding mask.*, got torch.float32 of shape",
        ),
        ({"attention_mask": torch.ones(2, 9, dtype=torch.bool)}, "must be the padding mask"),
        ({"attention_mask": torch.full((2, 1, 1, 9), -1.0)}, "must be 0 at tokens"),
        ({"attention_mask": {"full": None}}, "must be the padding mask.*, got dict"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        call(**options)


def called(monkeypatch) -> list[torch.nn.Module]:
    """Collects the modules that call the implementation "softattn"."""
    modules = []
    attention = ALL_ATTENTION_FUNCTIONS["softattn"]

    def note(self, module, *arguments, **options):
        modules.append(module)
        return original(self, module, *arguments, **options)

    original = type(attention).__call__
    monkeypatch.setattr(type(attention), "__call__", note)
    return modules


@pytest.mark.parametrize(
    ("config", "inputs"),
    [
        (bert(), words(9, 6)),
        (transformers.ViTConfig(**PICTURES), {"pixel_values": normal(2, 3, 32, 32, seed=0)}),
    ],
    ids=["bert", "vit"],
)
def test_set_attention_names_the_modules_that_use_it(config, inputs, monkeypatch):
    model = model_of(config, "sdpa")
    modules = called(monkeypatch)
    report = set_attention(model)
    model(**inputs)
    assert [model.get_submodule(path) for path in report.swapped] == modules
    assert not report.left_alone
    assert "a saved model does not keep it" in str(report)


NEVER_ASK = [
    transformers.DebertaV2Config(**WORDS),
    transformers.FNetConfig(**WORDS, tpu_short_seq_length=9),
    transformers.WavLMConfig(**SIZES, conv_dim=(8,), conv_stride=(2,), conv_kernel=(2,)),
    transformers.XLMConfig(emb_dim=16, n_layers=1, n_heads=2, n_words=50),
    transformers.MPNetConfig(**WORDS),
    transformers.RoFormerConfig(**WORDS),
]


@pytest.mark.parametrize("config", NEVER_ASK, ids=lambda config: config.model_type)
def test_set_attention_refuses_models_that_do_not_ask_for_it(config):
    model = AutoModel.from_config(config)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=f"{type(model).__name__} does not ask for its attn_impl"):
        set_attention(model)
    assert model.config._attn_implementation == before


def test_set_attention_reports_submodels_that_do_not_ask_for_it():
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**PICTURES), transformers.MPNetConfig(**WORDS)
    )
    model = AutoModel.from_config(config)
    report = set_attention(model)
    assert all(path.startswith("vision_model") for path in report.swapped)
    assert len(report.swapped) == 2
    assert report.left_alone == {
        "text_model": "its attention does not ask for an attn_implementation"
    }
    assert model.vision_model.config._attn_implementation == "softattn"
    assert model.text_model.config._attn_implementation == "eager"


def test_set_attention_wants_a_registered_name():
    with pytest.raises(ValueError, match=r"not registered; call register_attention\('sdpa'\)"):
        set_attention(model_of(bert()), "sdpa")


@pytest.mark.parametrize(
    "config",
    [
        transformers.MPNetConfig(**WORDS),
        transformers.RemBertConfig(**WORDS, bos_token_id=1, eos_token_id=2),
        transformers.RoFormerConfig(**WORDS),
        transformers.BigBirdConfig(**WORDS, attention_type="original_full"),
        transformers.MegatronBertConfig(**WORDS),
        transformers.ConvBertConfig(**WORDS),
        transformers.SqueezeBertConfig(**WORDS, embedding_size=16),
        transformers.NystromformerConfig(**WORDS),
        transformers.IBertConfig(**WORDS),
        transformers.LongformerConfig(**WORDS, attention_window=4),
    ],
    ids=lambda config: config.model_type,
)
def test_a_softmax_does_not_take_the_mask(config):
    model = AutoModel.from_config(config, attn_implementation="softattn").eval()
    with pytest.raises((TypeError, AttributeError), match="this is softattn's padding mask"):
        model(**words(9, 6))


def test_the_mask_follows_a_model_over_devices(monkeypatch):
    model = model_of(bert())
    masks = []
    for layer in model.encoder.layer:
        layer.register_forward_pre_hook(
            lambda _, arguments, options: masks.append(
                send_to_device([*arguments, options], "meta")[1]
            ),
            with_kwargs=True,
        )
    model(**words(9, 6))
    assert [mask.kept.device.type for mask in masks] == ["meta", "meta"]


# The Dynamo of torch 2.6 does not trace transformers.
@pytest.mark.needs_newer_torch
# The name that all versions since 5.0 have.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_and_compilation():
    model = model_of(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    inputs = words(9, 6)

    def run(call):
        model.zero_grad()
        output = call(**inputs).last_hidden_state
        output.square().sum().backward()
        return output, *(p.grad.clone() for p in model.encoder.parameters())

    expected = run(model)
    compiled = run(torch.compile(model, backend="eager", fullgraph=True))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for results in (compiled, run(model)):
        for result, value in zip(results, expected, strict=True):
            torch.testing.assert_close(result, value)


def test_a_saved_model_needs_the_name_again(tmp_path):
    model, inputs = model_of(bert()), words(9, 6)
    model.save_pretrained(tmp_path)
    default = AutoModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert default.config._attn_implementation == "sdpa"
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="softattn", dtype=torch.float64)
    torch.testing.assert_close(
        again(**inputs).last_hidden_state, model(**inputs).last_hidden_state, rtol=0, atol=0
    )


def test_what_is_not_asked_for_is_no_obstacle():
    call(sliding_window=None, softcap=None, output_attentions=False, position_ids=torch.arange(9))


def test_dropout_of_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match="attention_probs_dropout_prob=0"):
        model_of(bert(attention_probs_dropout_prob=0.1)).train()(**words(9))


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"name": "sdpa"}, ValueError, "belongs to another implementation"),
        ({"name": "eager"}, ValueError, "belongs to another implementation"),
        ({"landmarks": 49}, TypeError, "must be a LandmarkSampler"),
        ({"landmarks": ConvLandmarks(4, 2)}, ValueError, "must have no parameters"),
        ({"landmarks_from": "values"}, ValueError, "landmarks_from must be one of"),
        ({"normalization": "rows"}, ValueError, "normalization must be one of"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
        ({"pinv": "exact"}, ValueError, "pinv must be one of"),
    ],
)
def test_registration_refuses(options, error, reason):
    with pytest.raises(error, match=reason):
        register_attention(**{"name": "softattn-refused"} | options)
    assert "softattn-refused" not in ALL_ATTENTION_FUNCTIONS
