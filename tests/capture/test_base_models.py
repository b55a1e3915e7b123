"""Layer paths that leave out the name under which a network holds what it is built on."""

import lightning
import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

import repaudit as ra
from repaudit.capture.extract.layer_paths import resolve_layers
from repaudit.errors import LayerPathError

SMALL = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL))


class Own(lightning.LightningModule):
    """A training module with a forward of its own: layer paths start at it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()

    def forward(self, input_ids):
        return self.net(input_ids=input_ids)


def paths(model, *specs):
    return [layer.path for layer in resolve_layers(model, specs)]


@pytest.mark.parametrize(
    ("make", "path", "found"),
    [
        (llama, "layers[*]", ["model.layers.0", "model.layers.1"]),
        (llama, "norm", ["model.norm"]),
        (llama, "layers.0.mlp", ["model.layers.0.mlp"]),
        (llama, "n?rm", ["model.norm"]),
        (llama, "lm_head", ["lm_head"]),
        (lambda: LlamaModel(LlamaConfig(**SMALL)), "layers[-1]", ["layers.1"]),
        (lambda: BertForMaskedLM(BertConfig(**SMALL)), "encoder.layer[0]", ["bert.encoder.layer.0"]),
        (lambda: Own(llama()), "lm_head", ["net.lm_head"]),
        (lambda: Own(llama()), "model.norm", ["net.model.norm"]),
        (lambda: Own(llama()), "layers[-1]", ["net.model.layers.1"]),
        (lambda: torch.nn.DataParallel(llama()), "layers[-1]", ["model.layers.1"]),
        (lambda: ra.HFTrainerModule(llama()), "layers[-1]", ["model.layers.1"]),
    ],
)
def test_a_path_is_followed_from_the_base_model(make, path, found):
    model = make()
    assert paths(model, path) == found
    assert [layer.name for layer in resolve_layers(model, [path])] == found


def test_a_part_with_blocks_is_named_without_the_prefix():
    small = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 16, "max_position_embeddings": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForConditionalGeneration(BartConfig(**small, **heads))
    (layer,) = resolve_layers(bart, ["encoder.depth:0.5"])
    assert (layer.name, layer.path) == ("model.encoder.depth:0.5", "model.encoder.layers.0")


def test_what_leads_somewhere_as_it_stands_is_left_alone():
    """A head that has a child of the same name as the base model."""
    model = llama()
    model.norm = nn.Linear(2, 2)
    assert paths(model, "norm") == ["norm"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "layerz[*]",
            r"'layerz\[\*\]': 'layerz' not found at the top \(LlamaForCausalLM\); its children: model, lm_head; nor as "
            r"'model.layerz\[\*\]': 'layerz' not found at 'model' \(LlamaModel\); .* did you mean 'layers\[\*\]'\?",
        ),
        ("lm_heads.bias", r"nor as 'model.lm_heads.bias'"),
    ],
)
def test_an_error_says_both_that_were_tried(path, said):
    with pytest.raises(LayerPathError, match=said):
        resolve_layers(llama(), [path])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("layers[7:]", r"^layer path 'model.layers\[7:\]' matches no layer"),
        ("model.layers[7]", r"^layer path 'model.layers\[7\]': '\[7\]' not found at 'model.layers'"),
        ("model.layers[0].mlpp", r"^layer path 'model.layers\[0\].mlpp': 'mlpp' not found at 'model.layers.0'"),
    ],
)
def test_an_error_says_only_what_led_further(path, said):
    with pytest.raises(LayerPathError, match=said) as caught:
        resolve_layers(llama(), [path])
    assert "nor as" not in str(caught.value)


def test_an_index_alone_is_not_looked_for_further_below():
    with pytest.raises(LayerPathError) as caught:
        resolve_layers(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), ["[1]"])
    assert "nor as" not in str(caught.value)


def test_a_recorder_records_what_it_resolved_to(tmp_path):
    probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.arange(24).reshape(6, 4) % 32})
    with ra.Recorder(store=tmp_path / "s.zarr", model_name="a", probe_set=probe_set, layer_specs=["layers[*]"]) as own:
        own.audit(llama(), 0)
    assert list(ra.open_store(tmp_path / "s.zarr")["models/a"].data_vars) == ["model.layers.0", "model.layers.1"]
