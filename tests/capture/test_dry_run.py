"""What is found before the first audit: padding that shifts positions, unknown tokens, lazy modules, odd layouts."""

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    EsmConfig,
    EsmModel,
    LongformerConfig,
    LongformerModel,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5Model,
)

import repaudit as ra
from repaudit.errors import CaptureError, ProbeSetError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def padded(side, pad=1, width=9):
    """Four samples of 3 to 9 tokens; only the last ones are padded."""
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.full((4, width), pad), torch.zeros(4, width, dtype=torch.long)
    for k, length in enumerate((width, width - 1, 5, 3)):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[k, place], mask[k, place] = torch.randint(4, 32, (length,), generator=generator), 1
    return ra.ProbeSet.from_tensors({"input_ids": ids, "attention_mask": mask})


def bart():
    torch.manual_seed(0)
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    return BartModel(BartConfig(vocab_size=32, d_model=16, max_position_embeddings=32, **sizes))


def t5():
    torch.manual_seed(0)
    return T5Model(T5Config(vocab_size=32, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2, pad_token_id=1))


@pytest.mark.parametrize("layers", ["encoder.layers[*]", "decoder.layers[*]"])
def test_left_padding_that_a_model_counts_as_positions_is_refused(layers):
    extractor = ra.ActivationExtractor([layers])
    with pytest.raises(ProbeSetError, match=r"sample '3' is padded on the left, and BartModel .* pad on the right"):
        extractor.extract(bart(), padded("left"))
    assert extractor.extract(bart(), padded("right"))


def test_a_padded_sample_beyond_the_first_batch_is_found_before_the_training(tmp_path):
    recorder = ra.Recorder(tmp_path / "s.zarr", "m", padded("left"), ["encoder.layers[*]"], batch_size=1)
    with pytest.raises(ProbeSetError, match="sample '3'"):
        recorder.open(bart())
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (lambda: EsmModel(EsmConfig(vocab_size=32, pad_token_id=1, max_position_embeddings=64,
                                    position_embedding_type="absolute", token_dropout=False, **SIZES)),
         ["encoder.layer[*]"]),
        (lambda: MPNetModel(MPNetConfig(vocab_size=32, max_position_embeddings=64, **SIZES)), ["encoder.layer[*]"]),
        (t5, ["encoder.block[*]", "decoder.block[*]"]),
    ],
    ids=["esm", "mpnet", "t5"],
)  # fmt: skip
def test_models_that_handle_left_padding_give_what_right_padding_gives(build, layers):
    torch.manual_seed(0)
    model = build()
    extractor = ra.ActivationExtractor([ra.LayerSpec(path, reduce=r) for path in layers for r in ("mean", "cls")])
    expected = extractor.extract(model, padded("right"))
    for name, value in extractor.extract(build_again(model), padded("left")).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def build_again(model):
    """The same weights in a model that no extractor has seen."""
    again = type(model)(model.config)
    again.load_state_dict(model.state_dict())
    return again


def test_half_precision_models_pass_with_left_padding():
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(vocab_size=32, num_key_value_heads=2, max_position_embeddings=64, **SIZES))
    found = ra.ActivationExtractor(["layers[*]"]).extract(model.bfloat16(), padded("left"))
    assert found["layers.1"].isfinite().all()


def test_left_padding_of_a_model_that_pads_by_itself_is_refused_as_padding():
    torch.manual_seed(0)
    config = LongformerConfig(vocab_size=32, attention_window=4, max_position_embeddings=64, pad_token_id=1, **SIZES)
    extractor, model = ra.ActivationExtractor(["encoder.layer[*]"]), LongformerModel(config)
    with pytest.raises(ProbeSetError, match=r"sample '3' is padded on the left, and LongformerModel .* on the right"):
        extractor.extract(model, padded("left", width=8))
    assert extractor.extract(model, padded("right", width=8))["encoder.layer.1"].shape == (4, 16)
    with pytest.raises(CaptureError, match=r"the mask has 9 tokens .* multiple of its attention window"):
        ra.ActivationExtractor(["encoder.layer[*]"]).extract(LongformerModel(config), padded("right"))


def test_tokens_beyond_the_vocabulary_are_named(tmp_path):
    probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.tensor([[1, 2], [3, 99]])}, ids=["a", "b"])
    with pytest.raises(ProbeSetError, match=r"sample 'b' holds the token 99, but BartModel knows the tokens 0 to 31"):
        ra.Recorder(tmp_path / "s.zarr", "m", probe_set, ["encoder.layers[0]"], batch_size=1).open(bart())


def test_lazy_modules_are_refused_before_an_audit_initialises_them():
    model = nn.Sequential(nn.LazyLinear(3))
    probe_set = ra.ProbeSet.from_tensors({"x": torch.eye(2)})
    with pytest.raises(CaptureError, match=r"'0\.weight' is a lazy parameter"):
        ra.ActivationExtractor(["[0]"]).extract(model, probe_set)
    model(torch.eye(2))
    assert ra.ActivationExtractor(["[0]"]).extract(model, probe_set)["0"].shape == (2, 3)


class TimeFirst(nn.Module):
    """Works on (token, sample, feature) inside, as many networks do."""

    def __init__(self):
        super().__init__()
        self.lstm, self.inner = nn.LSTM(4, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.inner(self.lstm(x.transpose(0, 1))[0]).transpose(0, 1)


def test_tokens_before_samples_are_turned_or_refused_even_in_a_square_batch():
    torch.manual_seed(0)
    model, x = TimeFirst(), torch.randn(5, 5, 4)  # as many samples as tokens
    probe_set = ra.ProbeSet.from_tensors({"x": x})
    found = ra.ActivationExtractor(["lstm"]).extract(model, probe_set)["lstm"]
    with torch.no_grad():
        torch.testing.assert_close(found, model.lstm(x.transpose(0, 1))[0].mean(0))
    with pytest.raises(CaptureError, match=r"'inner': expected 2 samples along the first dim, found \(5, 2, 6\)"):
        ra.ActivationExtractor(["inner"]).extract(model, probe_set)


def test_features_before_positions_are_turned():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()), torch.randn(3, 4, 7)
    masked = ra.ProbeSet.from_tensors({"input": x, "attention_mask": torch.tensor([[1] * 5 + [0] * 2] * 3)})
    found = ra.ActivationExtractor(["[*]"]).extract(model, masked)
    with torch.no_grad():
        torch.testing.assert_close(found["0"], model[0](x)[:, :, :5].mean(2))
        torch.testing.assert_close(found["1"], model[:2].eval()(x)[:, :, :5].mean(2))
        torch.testing.assert_close(found["2"], model.eval()(x)[:, :, :5].mean(2))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.block = nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 6), nn.GELU())

    def forward(self, x):
        return self.block(self.norm(x.permute(0, 2, 3, 1)))


def test_feature_maps_with_features_last_are_recognised():
    torch.manual_seed(0)
    model, x = ChannelsLast(), torch.randn(2, 3, 5, 5)
    layers = ["norm", "block", "block[*]"]
    found = ra.ActivationExtractor(layers).extract(model, ra.ProbeSet.from_tensors({"x": x}))
    with torch.no_grad():
        torch.testing.assert_close(found["block"], model(x).mean((1, 2)))
        torch.testing.assert_close(found["norm"], model.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))
    assert found["block.0"].shape == (2, 6)
    torch.testing.assert_close(found["block.1"], found["block"])


def test_feature_maps_of_convolutions_keep_their_features_first():
    model, x = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()), torch.randn(2, 3, 5, 8)  # as many features as rows
    found = ra.ActivationExtractor(["[0]"]).extract(model, ra.ProbeSet.from_tensors({"input": x}))["0"]
    with torch.no_grad():
        torch.testing.assert_close(found, model[0](x).mean((2, 3)))
