"""Folders of sentence-transformers: the transformer inside, and its own pooling."""

import json

import numpy as np
import pytest
import torch
import transformers as tf

import repaudit as ra
from repaudit.capture.pretrained.record_pretrained import record_pretrained
from repaudit.capture.pretrained.sentence_embedding import own_pooling
from repaudit.errors import PretrainedError

CONFIG = tf.BertConfig(
    vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
PROBE = ra.ProbeSet.from_tensors({"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": MASK})


def save(folder, pooling, inside=""):
    torch.manual_seed(0)
    model = tf.BertModel(CONFIG)
    model.save_pretrained(folder / inside)
    modules = [{"path": inside, "type": "sentence_transformers.models.Transformer"}]
    if pooling is not None:
        modules.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(modules))
    return model.eval()


def flags(*on):
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    return {f"pooling_mode_{name}": name in on for name in names} | {"word_embedding_dimension": 16}


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (flags("cls_token"), lambda x: x[:, 0]),
        (flags("lasttoken"), lambda x: torch.stack([x[0, 2], x[1, 1]])),
        (flags("mean_tokens"), lambda x: torch.stack([x[0].mean(0), x[1, :2].mean(0)])),
        ({"pooling_mode": "cls"}, lambda x: x[:, 0]),
    ],
)
@pytest.mark.parametrize("inside", ["", "0_Transformer"])
@pytest.mark.thin(2)
def test_its_own_pooling_is_offered(tmp_path, pooling, expected, inside):
    model = save(tmp_path / "model", pooling, inside)
    layers = ["last=hidden_states[-1]", ra.LayerSpec("encoder.layer[0]", reduce="all")]
    steps = record_pretrained([tmp_path / "model"], PROBE, layers, tmp_path / "s.zarr", pooling="own")
    assert steps == {"model": [0]}
    with torch.no_grad():
        states = model(**PROBE.inputs, output_hidden_states=True).hidden_states
    found = ra.open_store(tmp_path / "s.zarr").repaudit
    np.testing.assert_allclose(found.activations("model", "last")[0], expected(states[-1]), rtol=1e-4, atol=1e-5)
    assert found.layers("model") == ["last", "encoder.layer.0:all"]  # a spec says itself how its tokens are pooled
    assert record_pretrained([tmp_path / "model"], PROBE, ["last=encoder.layer[-1]"], tmp_path / "t.zarr")
    mean = ra.open_store(tmp_path / "t.zarr").repaudit.activations("model", "last")
    average = torch.stack([states[-1][0].mean(0), states[-1][1, :2].mean(0)])
    np.testing.assert_allclose(mean[0], average, rtol=1e-4, atol=1e-5)  # the mean unless asked


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        (flags("max_tokens"), "expected one pooling of mean, cls, lasttoken, found max: pass another"),
        (flags("cls_token", "mean_tokens"), "found cls and mean"),
        (flags(), "found none"),
        (None, "expected a module of type Pooling, found none"),
    ],
)
def test_other_poolings_are_refused(tmp_path, pooling, message):
    save(tmp_path / "model", pooling)
    with pytest.raises(PretrainedError, match=message):
        own_pooling(tmp_path / "model")


def test_other_models_have_no_pooling_of_their_own(tmp_path):
    tf.BertModel(CONFIG).save_pretrained(tmp_path / "model")
    with pytest.raises(PretrainedError, match=r"no pooling of its own.*--pooling"):
        record_pretrained([tmp_path / "model"], PROBE, ["encoder.layer[0]"], tmp_path / "s.zarr", pooling="own")
    assert not (tmp_path / "s.zarr").exists()
