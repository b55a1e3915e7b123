"""What cannot be recorded is told in one line that says what to do, not by a traceback of a model's own."""

import re

import pytest
import torch
import transformers as tf
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import repaudit as ra
from repaudit.cli import app
from repaudit.errors import CaptureError

GPT2 = tf.GPT2Config(
    vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
)  # fmt: skip
PARTS = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = PARTS | {"image_size": 8, "patch_size": 4}
READ = PARTS | {
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WHISPER = tf.WhisperConfig(
    vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=20,
    max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    suppress_tokens=None, begin_suppress_tokens=None,
)  # fmt: skip
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat ran home a mat far"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "vocab.txt").write_text("\n".join(WORDS.split()))
    tokenizer = tf.BertTokenizerFast(str(folder / "vocab.txt"))
    models = {
        "vit": tf.ViTForImageClassification(tf.ViTConfig(**SEEN)),
        "clip": tf.CLIPModel(tf.CLIPConfig(text_config=READ, vision_config=SEEN, projection_dim=8)),
        "whisper": tf.WhisperForConditionalGeneration(WHISPER),
        "gpt2": tf.GPT2LMHeadModel(GPT2),
        "bare": tf.GPT2LMHeadModel(GPT2),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        if name != "bare":
            tokenizer.save_pretrained(folder / name)
    (folder / "probe.txt").write_text("the cat sat\na dog ran\nthe mat\n")
    (folder / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (20 * i, 3, 4)).save(folder / "images" / f"{i}.png")
    torch.save(models["gpt2"].state_dict(), folder / "weights.pt")
    return folder


def line(places, store, model, *options, layers="text_model.encoder.layers[*]"):
    chosen = [str(places / option) if (places / option).exists() else option for option in options or ["probe.txt"]]
    chosen = ["--probe", *chosen] if not chosen[0].startswith("--") else chosen
    arguments = ["record", str(places / model), "--store", str(store), "--layers", layers, *chosen]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    return lines[0]


SAID = {
    "an image model": (("vit",), "ViTForImageClassification reads pixel_values, but the samples are .*--images"),
    "a model of texts and images": (
        ("clip",),
        "model 'clip': CLIPModel cannot be forwarded with .*AttributeError.*CLIPTextModel",
    ),
    "a speech model": (("whisper",), "WhisperForConditionalGeneration reads input_features, but the samples are"),
    "no tokenizer": (("bare",), r"bare: expected a tokenizer beside the model, found none: pass .*\(--tokenizer\)"),
    "no preprocessor": (("bare", "--images", "images"), r"bare: cannot be loaded.*\(--tokenizer\)"),
    "no such folder": (("nowhere",), r"/nowhere: expected a folder, .* found nothing there"),
    "no such checkpoint": (("nowhere/last.ckpt",), r"/nowhere/last.ckpt: expected a folder, .* found nothing there"),
    "no such file": (("nowhere.gguf",), r"/nowhere.gguf: expected a folder, .* found nothing there"),
    "no such tokenizer": (
        ("bare", "probe.txt", "--tokenizer", "/nowhere/else"),
        "/nowhere/else: expected a folder, .* found nothing there",
    ),
    "weights alone": (("weights.pt",), r"weights.pt: expected a .gguf file, .* found a file of another kind"),
}


@pytest.mark.parametrize("what", SAID)
def test_the_command_says_it_in_one_line(what, places, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    (model, *options), expected = SAID[what]
    assert re.search(expected, line(places, tmp_path / "s.zarr", model, *options))


def test_a_tokenizer_passed_is_one_for_a_folder_without(places, tmp_path):
    arguments = ["record", str(places / "bare"), "--store", str(tmp_path / "s.zarr"), "--layers", "transformer.h[*]"]
    more = ["--probe", str(places / "probe.txt"), "--tokenizer", str(places / "gpt2")]
    assert CliRunner().invoke(app, arguments + more).exit_code == 0


SCRIPTS = {
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, torch.ones(4, 3)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("point", ["output", "input"])
def test_layers_of_torchscript_are_refused_and_those_around_it_recorded(kind, point):
    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.head = inner, nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.inner(x))

    x = torch.randn(4, 3)
    inner = SCRIPTS[kind](nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval())
    probe_set = ra.ProbeSet.from_tensors({"x": x})
    for model, path in ((inner, "[0]"), (inner, "[*]"), (Around(inner), "inner"), (Around(inner), "inner[0]")):
        with pytest.raises(CaptureError, match="TorchScript module, on which hooks cannot be registered: record the"):
            ra.ActivationExtractor(ra.LayerSpec(path, extraction_point=point)).extract(model, probe_set)
    around = Around(inner).eval()
    (found,) = ra.ActivationExtractor(ra.LayerSpec("head", extraction_point=point)).extract(around, probe_set).values()
    torch.testing.assert_close(found, (around(x) if point == "output" else inner(x)).detach())


SOUNDS = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [tf.WhisperForConditionalGeneration, tf.WhisperModel])
def test_speech_models_start_from_their_start_token(build):
    torch.manual_seed(0)
    model = build(WHISPER).eval()
    paths = [
        ("model." if build is not tf.WhisperModel else "") + part
        for part in ("encoder.layers[*]", "decoder.layers[-1]")
    ]
    found = ra.ActivationExtractor(paths).extract(model, ra.ProbeSet.from_tensors({"input_features": SOUNDS}))
    given = ra.ProbeSet.from_tensors({"input_features": SOUNDS, "decoder_input_ids": torch.full((3, 1), 3)})
    expected = ra.ActivationExtractor(paths).extract(model, given)
    seen = []
    trunk = model if build is tf.WhisperModel else model.model
    hook = trunk.encoder.layers[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model(SOUNDS, decoder_input_ids=torch.full((3, 1), 3))
    hook.remove()
    last = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(list(found.values())[1], last.mean(1), rtol=0, atol=1e-6)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


CLASSES = {
    "T5": (tf.T5Config(), "AutoModelForSeq2SeqLM"),
    "ViT": (tf.ViTConfig(), "AutoModelForImageClassification"),
    "Wav2Vec2": (tf.Wav2Vec2Config(), "AutoModelForCTC"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_config_of_another_kind_hints_at_its_auto_class(name, tmp_path):
    config, auto = CLASSES[name]
    config.save_pretrained(tmp_path)
    for source in (config, tmp_path):
        with pytest.raises(ValueError, match=f"has no model for a {name}Config: pass auto_class=.*transformers.{auto}"):
            ra.HFTrainerModule(source)


def test_the_auto_class_that_was_hinted_at_builds_it():
    config = tf.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    built = ra.HFTrainerModule(config, auto_class=tf.AutoModelForSeq2SeqLM).network
    assert type(built) is tf.T5ForConditionalGeneration


def test_what_is_no_keyword_or_no_folder_is_told():
    with pytest.raises(TypeError, match="'lr': pass learning_rate"):
        ra.HFTrainerModule(tf.GPT2Config(), lr=1e-3)
    with pytest.raises(FileNotFoundError, match=r"nowhere/: expected a folder with a pretrained model"):
        ra.HFTrainerModule("nowhere/")


def test_a_class_is_no_text():
    with pytest.raises(
        TypeError, match=r"auto_class: expected a class, such as transformers.AutoModelForCausalLM, found"
    ):
        ra.HFTrainerModule(tf.GPT2Config(), auto_class="AutoModelForCausalLM")


def test_a_saved_model_is_of_the_class_that_its_config_names(tmp_path):
    """Built as a causal language model, a classifier fails at its first loss with words about batch sizes."""
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    tf.BertForSequenceClassification(tf.BertConfig(vocab_size=16, **small)).save_pretrained(tmp_path / "classifier")
    tf.BertModel(tf.BertConfig(vocab_size=16, is_decoder=True, **small)).save_pretrained(tmp_path / "bare")
    config = tf.AutoConfig.from_pretrained(tmp_path / "classifier")
    for source in (tmp_path / "classifier", str(tmp_path / "classifier"), config):
        assert type(ra.HFTrainerModule(source).network) is tf.BertForSequenceClassification
    masked = ra.HFTrainerModule(config, auto_class=tf.AutoModelForMaskedLM).network
    assert type(masked) is tf.BertForMaskedLM
    assert type(ra.HFTrainerModule(tmp_path / "bare").network) is tf.BertLMHeadModel, "a bare model has no loss"


def test_labels_of_samples_are_not_those_of_tokens():
    """A fresh config names no class, and a causal language model's own error speaks of batch sizes."""
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    config = tf.BertConfig(vocab_size=16, is_decoder=True, **small)
    batch = {"input_ids": torch.ones(3, 4, dtype=torch.int64), "labels": torch.tensor([0, 1, 1])}
    with pytest.raises(ValueError, match=r"BertLMHeadModel: expected a label per token.*AutoModelForSequenceClass"):
        ra.HFTrainerModule(config).training_step(batch, 0)
    with pytest.raises(TypeError, match="BertModel: expected a model that returns a loss, found none with input_ids"):
        ra.HFTrainerModule(config, auto_class=tf.AutoModel).training_step({"input_ids": batch["input_ids"]}, 0)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_only_what_learns_its_own_tokens_takes_them_for_labels():
    """Taught by copies of its inputs, a masked or an encoding model trains without a word, and learns nothing."""
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    ids = {"input_ids": torch.ones(3, 4, dtype=torch.int64)}
    t5 = tf.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    for config, auto in (
        (tf.BertConfig(vocab_size=16, **small), tf.AutoModelForMaskedLM),
        (tf.BertConfig(vocab_size=16, **small), tf.AutoModelForSequenceClassification),
        (t5, tf.AutoModelForSeq2SeqLM),
    ):
        module = ra.HFTrainerModule(config, auto_class=auto)
        with pytest.raises((TypeError, ValueError), match="found none with input_ids"):
            module.training_step(ids, 0)
        labels = ids["input_ids"][:, 0] % 2 if auto is tf.AutoModelForSequenceClassification else ids["input_ids"]
        assert torch.isfinite(module.training_step({**ids, "labels": labels}, 0))


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_targets_of_other_names_are_targets():
    answers = tf.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    ids = torch.ones(3, 4, dtype=torch.int64)
    batch = {"input_ids": ids, "start_positions": ids[:, 0], "end_positions": ids[:, 0]}
    module = ra.HFTrainerModule(answers, auto_class=tf.AutoModelForQuestionAnswering)
    assert torch.isfinite(module.training_step(batch, 0))
    series = tf.TimeSeriesTransformerConfig(
        prediction_length=2, context_length=4, lags_sequence=[1], num_time_features=1, d_model=8, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8,
    )  # fmt: skip
    batch = {
        "past_values": torch.randn(3, 5), "past_time_features": torch.randn(3, 5, 1),
        "past_observed_mask": torch.ones(3, 5), "future_values": torch.randn(3, 2),
        "future_time_features": torch.randn(3, 2, 1),
    }  # fmt: skip
    module = ra.HFTrainerModule(series, auto_class=tf.TimeSeriesTransformerForPrediction)
    assert torch.isfinite(module.training_step(batch, 0))


@pytest.mark.parametrize("path", ["/nowhere/x", "./nowhere"])
def test_a_path_that_does_not_exist_is_named(path):
    with pytest.raises(FileNotFoundError, match=f"{path}: expected a folder with a pretrained model"):
        ra.HFTrainerModule(path)
