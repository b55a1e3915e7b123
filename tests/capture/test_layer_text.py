"""Layer texts: names, models, odd characters, and hints where a path does not resolve."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaForCausalLM

from repaudit import ActivationExtractor, LayerSpec
from repaudit.capture.extract.layer_paths import resolve_layers
from repaudit.capture.extract.layer_spec import as_spec
from repaudit.capture.extract.layer_text import parse_layer_text, split_layer_texts
from repaudit.capture.extract.path_grammar import Exact, parse_path, write_path
from repaudit.capture.pretrained.model_layers import layers_of_models
from repaudit.errors import LayerPathError

TINY = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 2, "num_attention_heads": 1}


@pytest.mark.parametrize(
    ("text", "path", "name", "model"),
    [
        ("layers[-1]", "layers[-1]", None, None),
        ("last=layers[-1]", "layers[-1]", "last", None),
        (" last = layers[::2] ", "layers[::2]", "last", None),
        ("smol:last=layers[-1]", "layers[-1]", "last", "smol"),
        ("smol:layers[1:2]", "layers[1:2]", None, "smol"),
        ("depth:0.5", "depth:0.5", None, None),
        ("encoder.depth:0.5", "encoder.depth:0.5", None, None),
        ("smol:depth:0.5", "depth:0.5", None, "smol"),
        ("smol:half=encoder.depth:0.5", "encoder.depth:0.5", "half", "smol"),
        ("'depth':norm", "norm", None, "depth"),
        ('"a:b=c, d":\'it = me\'=x["=:,"]', 'x["=:,"]', "it = me", "a:b=c, d"),
        ("all-MiniLM-L6-v2:état final=norm", "norm", "état final", "all-MiniLM-L6-v2"),
        ("block {path}=layers[*]", "layers[*]", "block {path}", None),
    ],
)
def test_texts_are_taken_apart(text, path, name, model):
    parsed = parse_layer_text(text)
    assert (parsed.path, parsed.name, parsed.model) == (path, name, model)
    if model is None:
        assert as_spec(text) == LayerSpec(path, name=name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=layers[0]", "expected a name before the sign"),
        ("smol:=norm", "expected a name before the sign"),
        (":norm", "expected a name before the sign"),
        ("''=norm", "expected a name before the sign"),
        ("a:b:c=norm", "more than one colon"),
        ("a:b:norm", "more than one colon"),
        ("last=", "expected a layer path"),
        ("a=b=norm", "does not parse"),
        ("smol:last=norm", "meant for the model 'smol'.*one model here"),
        (7, "expected a layer as a text"),
    ],
)
def test_texts_that_say_too_much_or_too_little_are_refused(text, message):
    with pytest.raises(LayerPathError, match=message):
        ActivationExtractor([text])


def test_commas_split_texts_outside_quotes_and_brackets():
    text = "layers[*], 'a,b'=norm,,smol:last=x['1,2'] ,"
    assert split_layer_texts(text) == ["layers[*]", "'a,b'=norm", "smol:last=x['1,2']"]


@given(st.text(max_size=30))
def test_any_text_parses_or_raises_a_typed_error(text):
    try:
        as_spec(text)
    except LayerPathError:
        return
    assert all(piece for piece in split_layer_texts(text))


@given(st.lists(st.text(st.characters(exclude_characters=".\"'"), min_size=1, max_size=5), min_size=1, max_size=3))
def test_any_name_of_a_module_can_be_written(names):
    assert parse_path(write_path([Exact(name) for name in names])) == names
    net = inner = nn.ModuleDict()
    for name in names:
        inner._modules[name] = inner = nn.ModuleDict()
    assert [layer.path for layer in resolve_layers(net, [write_path([Exact(n) for n in names])])] == [".".join(names)]


def test_names_in_quotes_have_no_wildcards():
    net = nn.ModuleDict({"a*": nn.ReLU(), "ab": nn.ReLU()})
    assert [layer.path for layer in resolve_layers(net, ["['a*']"])] == ["a*"]
    assert [layer.path for layer in resolve_layers(net, ["a*"])] == ["a*", "ab"]


def test_layers_for_one_model_stand_instead_of_those_for_all():
    texts = [
        "last=encoder.layer[-1]",
        "smol:last=model.layers[-1]",
        "depth:0.5",
        LayerSpec("norm", reduce="cls"),
        "bert:depth:0.5",
    ]
    layers = layers_of_models(texts, ["bert", "smol"])
    assert [(spec.name, spec.path) for spec in layers["bert"]] == [
        ("last", "encoder.layer[-1]"), (None, "norm"), (None, "depth:0.5"),
    ]  # fmt: skip
    assert [(spec.name, spec.path) for spec in layers["smol"]] == [
        ("last", "model.layers[-1]"), (None, "depth:0.5"), (None, "norm"),
    ]  # fmt: skip
    assert layers["smol"][-1].reduce == "cls"
    with pytest.raises(LayerPathError, match="a model 'smoll', but the models are 'bert', 'smol': did you mean 'smol'"):
        layers_of_models(["smoll:norm"], ["bert", "smol"])
    with pytest.raises(LayerPathError, match="holds a colon goes in quotes"):
        layers_of_models(["x:norm"], ["bert", "smol"])
    with pytest.raises(LayerPathError, match="model 'bert': expected at least one layer"):
        layers_of_models(["smol:norm"], ["bert", "smol"])


BERT, MASKED, LLAMA = BertModel, BertForMaskedLM, LlamaForCausalLM


@pytest.mark.parametrize(
    ("model_class", "path", "meant"),
    [
        (LLAMA, "model.lm_head", "lm_head"),
        (LLAMA, "transformer.model.layers[-1]", "model.layers[-1]"),
        (LLAMA, "module.network.model.norm", "model.norm"),
        (LLAMA, "module.module.model.norm", "model.norm"),
        (LLAMA, "transformer.layers[::2]", "model.layers[::2]"),
        (LLAMA, "model.layer[0]", "model.layers[0]"),
        (LLAMA, "layer[*]", "layers[*]"),
        (BERT, "bert.encoder.layer[0]", "encoder.layer[0]"),
        (BERT, "bert.pooler", "pooler"),
        (BERT, "bert.encoder.layer[*].attention", "encoder.layer[*].attention"),
        (MASKED, "roberta.encoder.layer.0", "bert.encoder.layer.0"),
    ],
)
def test_a_path_with_another_prefix_says_what_was_meant(model_class, path, meant):
    model = model_class((LlamaConfig if model_class is LLAMA else BertConfig)(**TINY))
    with pytest.raises(LayerPathError) as caught:
        resolve_layers(model, [path])
    assert str(caught.value).endswith(f"; did you mean {meant!r}?")
    assert resolve_layers(model, [meant])


def test_nothing_is_suggested_where_nothing_is_near():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    for path in ("nowhere", "model.layers[9]", "[3]"):
        with pytest.raises(LayerPathError) as caught:
            resolve_layers(model, [path])
        assert "did you mean" not in str(caught.value)
