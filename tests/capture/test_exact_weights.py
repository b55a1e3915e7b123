"""Recording the weights of the checkpoint and no others: classes, missing weights, adapters, states of modules."""

import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

import repaudit as ra
from repaudit.capture.pretrained.loading import Loader
from repaudit.capture.pretrained.record_pretrained import record_pretrained
from repaudit.capture.pretrained.sources import Source, find_sources
from repaudit.errors import PretrainedError

SMALL = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 1}
DISTILBERT = {"vocab_size": 48, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
GPT2 = {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
T5 = {"vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0}
BART = {
    "vocab_size": 48, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip
IMAGES = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PROBE = ra.ProbeSet.from_tensors({"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])})
PIXELS = ra.ProbeSet.from_tensors({"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))})

MODELS = {
    "bert_masked": (tf.BertForMaskedLM, tf.BertConfig(**SMALL), "bert.encoder.layer[*]"),
    "bert_pretraining": (tf.BertForPreTraining, tf.BertConfig(**SMALL), "bert.pooler"),
    "roberta_masked": (tf.RobertaForMaskedLM, tf.RobertaConfig(**SMALL), "roberta.encoder.layer[*]"),
    "roberta_classes": (tf.RobertaForSequenceClassification, tf.RobertaConfig(**SMALL), "classifier.dense"),
    "distilbert_answers": (tf.DistilBertForQuestionAnswering, tf.DistilBertConfig(**DISTILBERT), "qa_outputs"),
    "mpnet_masked": (tf.MPNetForMaskedLM, tf.MPNetConfig(**SMALL), "lm_head.dense"),
    "electra_tokens": (tf.ElectraForTokenClassification, tf.ElectraConfig(**SMALL, embedding_size=8), "classifier"),
    "albert_masked": (tf.AlbertForMaskedLM, tf.AlbertConfig(**SMALL, embedding_size=8), "hidden_states[*]"),
    "deberta_answers": (tf.DebertaV2ForQuestionAnswering, tf.DebertaV2Config(**SMALL), "deberta.encoder.layer[*]"),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config(**GPT2), "transformer.h[*]"),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**GROUPED), "lm_head"),
    "qwen_classes": (tf.Qwen2ForSequenceClassification, tf.Qwen2Config(**GROUPED), "model.layers[*]"),
    "mixtral": (
        tf.MixtralForCausalLM, tf.MixtralConfig(**GROUPED, num_local_experts=3, num_experts_per_tok=2), "depth:0.5",
    ),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config(**T5), "decoder.depth:0.5"),
    "bart_classes": (tf.BartForSequenceClassification, tf.BartConfig(**BART), "model.encoder.layers[*]"),
    "vit": (tf.ViTForImageClassification, tf.ViTConfig(**IMAGES), "classifier"),
}  # fmt: skip


def save(folder, model_class, config, seed=0):
    torch.manual_seed(seed)
    model = model_class(config)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.thin(2)
def test_a_model_recorded_again_is_recognised_and_named_as_in_its_training(tmp_path, name):
    model_class, config, layer = MODELS[name]
    model = save(tmp_path / "model", model_class, config)
    probe_set = PIXELS if name == "vit" else PROBE
    if name == "bart_classes":
        probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.tensor([[5, 6, 2], [8, 9, 2]])})
    for _ in range(2):
        steps = record_pretrained([tmp_path / "model"], probe_set, [layer], tmp_path / "s.zarr", names=["m"])
        assert steps == {"m": [0]}
    expected = ra.ActivationExtractor([layer]).extract(model, probe_set)
    found = ra.open_store(tmp_path / "s.zarr").repaudit
    assert found.layers("m") == list(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(found.activations("m", path)[0], value, rtol=1e-4, atol=1e-5)
    other = save(tmp_path / "other", model_class, config, seed=1)
    assert type(other) is model_class
    with pytest.raises(PretrainedError, match="other weights"):
        record_pretrained([tmp_path / "other"], probe_set, [layer], tmp_path / "s.zarr", names=["m"])


def strip(folder, *beginnings):
    """Drop weights from a checkpoint."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if not name.startswith(beginnings)}
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (
            ["bert.pooler"],
            r"layer 'bert.pooler' .*not in the checkpoint \(bert.pooler.dense.bias, bert.pooler.dense.weight",
        ),
        (["bert.pooler.dense"], "layer 'bert.pooler.dense'"),
        (["bert"], "layer 'bert' "),
        (["bert.encoder.layer[0]", "last=bert.pooler.activation"], "layer 'last'"),
        (["classifier"], "layer 'classifier'"),
        ([ra.LayerSpec("classifier", extraction_point="input")], "layer 'classifier@input'"),
    ],
)
def test_layers_of_weights_that_were_not_in_the_checkpoint_are_refused(tmp_path, layers, named):
    save(tmp_path / "model", tf.BertForSequenceClassification, tf.BertConfig(**SMALL))
    strip(tmp_path / "model", "bert.pooler")
    with pytest.raises(PretrainedError, match=named):
        record_pretrained([tmp_path / "model"], PROBE, layers, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr" / "models").exists()


def test_other_layers_of_a_checkpoint_that_lacks_weights_are_recorded(tmp_path):
    model = save(tmp_path / "model", tf.BertForSequenceClassification, tf.BertConfig(**SMALL))
    strip(tmp_path / "model", "bert.pooler")
    layers = ["bert.encoder.layer[*]", "hidden_states[-1]", ra.LayerSpec("bert.pooler", extraction_point="input")]
    for _ in range(2):
        assert record_pretrained([tmp_path / "model"], PROBE, layers, tmp_path / "s.zarr") == {"model": [0]}
    found = ra.open_store(tmp_path / "s.zarr").repaudit
    for path, value in ra.ActivationExtractor(layers).extract(model, PROBE).items():
        np.testing.assert_allclose(found.activations("model", path)[0], value, rtol=1e-4, atol=1e-5)


def test_a_bare_model_whose_config_names_a_head_is_loaded_bare(tmp_path):
    save(tmp_path / "model", tf.MPNetModel, tf.MPNetConfig(**SMALL))
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("MPNetModel", "MPNetForMaskedLM"))
    loaded = Loader().load(Source(str(tmp_path / "model"), 0))
    assert type(loaded.model) is tf.MPNetModel
    assert not loaded.unset


def test_loading_says_nothing_and_leaves_the_logging_as_it_was(tmp_path, capfd):
    save(tmp_path / "model", tf.BertForMaskedLM, tf.BertConfig(**SMALL))
    strip(tmp_path / "model", "cls")
    before = tf.logging.get_verbosity(), tf.logging.is_progress_bar_enabled()
    capfd.readouterr()
    Loader().load(Source(str(tmp_path / "model"), 0))
    assert capfd.readouterr() == ("", "")
    assert (tf.logging.get_verbosity(), tf.logging.is_progress_bar_enabled()) == before


class Wrapped(nn.Module):
    """A training module that keeps its network under another name, beside parts of its own."""

    def __init__(self, **networks):
        super().__init__()
        self.loss = nn.Linear(2, 2)
        for name, net in networks.items():
            self.add_module(name, net)


CONFIG = tf.LlamaConfig(**GROUPED)


@pytest.mark.parametrize("name", ["network", "model", "language_model", "compiled"])
def test_states_of_any_training_module(tmp_path, name):
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(CONFIG).eval()
    held = {"model": torch.compile(model, backend="eager")} if name == "compiled" else {name: model}
    torch.save({"state_dict": Wrapped(**held).state_dict()}, tmp_path / "step=3.ckpt")
    steps = record_pretrained([tmp_path / "step=3.ckpt"], PROBE, ["model.norm"], tmp_path / "s.zarr", config=CONFIG)
    assert steps == {"step=3.ckpt": [3]}
    found = ra.open_store(tmp_path / "s.zarr").repaudit.activations("step=3.ckpt", "model.norm")
    expected = ra.ActivationExtractor("model.norm").extract(model, PROBE)["model.norm"]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (tf.BertConfig(**SMALL, architectures=["BertForSequenceClassification"]), tf.BertForSequenceClassification),
        (tf.BertConfig(**SMALL, architectures=["BertForMaskedLM"]), tf.BertModel),
        (tf.BertConfig(**SMALL), tf.BertModel),
        (tf.LlamaConfig(**GROUPED), tf.LlamaForCausalLM),
        (tf.ViTConfig(**IMAGES, architectures=["ViTForImageClassification"]), tf.ViTForImageClassification),
    ],
)
def test_a_state_is_loaded_into_the_class_that_it_fits(tmp_path, config, model_class):
    torch.save({"state_dict": Wrapped(model=model_class(config)).state_dict()}, tmp_path / "step=3.ckpt")
    assert type(Loader(config=config).load(Source(str(tmp_path / "step=3.ckpt"), 3)).model) is model_class


def test_a_state_that_does_not_fit_is_told_in_five_lines(tmp_path):
    torch.save({"state_dict": Wrapped(model=tf.LlamaForCausalLM(CONFIG)).state_dict()}, tmp_path / "step=3.ckpt")
    other = tf.LlamaConfig(**GROUPED | {"num_hidden_layers": 6, "intermediate_size": 48, "tie_word_embeddings": True})
    with pytest.raises(PretrainedError) as caught:
        Loader(config=other).load(Source(str(tmp_path / "step=3.ckpt"), 3))
    text = str(caught.value)
    assert len(text.splitlines()) <= 5
    assert len(text) < 700
    assert "36 are not in the checkpoint, such as model.layers.2.self_attn.q_proj.weight" in text
    assert "6 have another shape, such as model.layers.0.mlp.gate_proj.weight: (32, 16) instead of (48, 16)" in text
    assert "(--config)" in text
    with pytest.raises(PretrainedError, match=r"unknown to the model, such as model.layers.1.self_attn"):
        Loader(config=tf.LlamaConfig(**GROUPED | {"num_hidden_layers": 1})).load(
            Source(str(tmp_path / "step=3.ckpt"), 3)
        )


def test_a_state_of_several_such_networks_is_ambiguous(tmp_path):
    both = Wrapped(student=tf.LlamaForCausalLM(CONFIG), teacher=tf.LlamaForCausalLM(CONFIG))
    torch.save({"state_dict": both.state_dict()}, tmp_path / "step=3.ckpt")
    with pytest.raises(PretrainedError, match=r"several sets of weights .*'student.', 'teacher.'"):
        Loader(config=CONFIG).load(Source(str(tmp_path / "step=3.ckpt"), 3))


def test_one_gguf_file_in_a_folder_is_the_model(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    (tmp_path / "LICENSE").touch()
    assert [source.file for source in find_sources(tmp_path)] == [tmp_path / "tiny.gguf"]
    (tmp_path / "other.gguf").touch()
    with pytest.raises(PretrainedError, match=r"one .gguf file,"):
        find_sources(tmp_path)


def test_one_model_in_a_folder_is_the_model(tmp_path):
    save(tmp_path / "unpacked" / "all-mpnet-base-v2", tf.BertModel, tf.BertConfig(**SMALL))
    assert [(source.step, source.place[-4:]) for source in find_sources(tmp_path / "unpacked")] == [(0, "e-v2")]
    save(tmp_path / "run" / "checkpoint-20", tf.BertModel, tf.BertConfig(**SMALL))
    assert [source.step for source in find_sources(tmp_path / "run")] == [20]


@pytest.fixture
def adapters(tmp_path):
    """A base model, and a Trainer-like series of two LoRA adapters for it."""
    peft = pytest.importorskip("peft")
    base = save(tmp_path / "base", tf.LlamaForCausalLM, CONFIG)
    trained = {}
    for step in (10, 20):
        base = tf.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        torch.manual_seed(step)
        trained[step] = peft.get_peft_model(base, config).eval()
        trained[step].save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path, trained


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
def test_adapters_are_put_onto_their_base(adapters):
    folder, trained = adapters
    assert [source.step for source in find_sources(folder / "run")] == [10, 20]
    for place, steps in ((folder / "run", [10, 20]), (folder / "run" / "checkpoint-20", [0])):
        store = folder / f"{place.name}.zarr"
        for _ in range(2):
            recorded = record_pretrained([place], PROBE, ["model.layers[*]"], store, names=["m"])
            assert recorded == {"m": steps}
        values = ra.open_store(store).repaudit.activations("m", "model.layers.1")
        expected = ra.ActivationExtractor("model.layers[*]").extract(trained[20], PROBE)
        assert list(expected) == ra.open_store(store).repaudit.layers("m")
        np.testing.assert_allclose(values[-1], expected["model.layers.1"], rtol=1e-4, atol=1e-5)
        base = Loader().load(Source(str(folder / "base"), 0)).model
        plain = ra.ActivationExtractor("model.layers[1]").extract(base, PROBE)
        assert not np.allclose(values[-1], plain["model.layers.1"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
def test_checkpoints_of_a_real_training_of_an_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    save(tmp_path / "base", tf.LlamaForCausalLM, CONFIG)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tf.LlamaForCausalLM.from_pretrained(tmp_path / "base"), config)
    row = torch.arange(8) % 40
    options = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.05, "report_to": [], "use_cpu": True}
    options |= {"disable_tqdm": True, "dataloader_pin_memory": False, "logging_strategy": "no"}
    trainer = tf.Trainer(
        model=model,
        args=tf.TrainingArguments(output_dir=str(tmp_path / "run"), **options),
        train_dataset=[{"input_ids": row + k, "labels": row + k} for k in range(8)],
    )
    seen = {}

    class Watch(tf.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen[state.global_step] = ra.ActivationExtractor("model.layers[*]").extract(kwargs["model"], PROBE)

    trainer.add_callback(Watch())
    trainer.train()
    assert record_pretrained([tmp_path / "run"], PROBE, ["model.layers[*]"], tmp_path / "s.zarr") == {"run": [2, 4]}
    found = ra.open_store(tmp_path / "s.zarr").repaudit.activations("run", "model.layers.1")
    for step, expected in seen.items():
        np.testing.assert_allclose(found.sel(step=step), expected["model.layers.1"], rtol=1e-4, atol=1e-5)
    assert not np.allclose(seen[4]["model.layers.1"], seen[2]["model.layers.1"], atol=1e-3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
def test_a_base_that_moved_is_told_and_given(adapters):
    folder, _ = adapters
    place = folder / "run" / "checkpoint-10"
    shutil.move(folder / "base", folder / "moved")
    with pytest.raises(PretrainedError, match=r"its base model was at \S*base, where nothing is now.*--config"):
        record_pretrained([place], PROBE, ["model.norm"], folder / "s.zarr")
    steps = record_pretrained([place], PROBE, ["model.norm"], folder / "s.zarr", config=folder / "moved")
    assert steps == {"checkpoint-10": [0]}
    other = save(folder / "other", tf.BertModel, tf.BertConfig(**SMALL))
    assert type(other) is tf.BertModel
    with pytest.raises(PretrainedError, match=r"cannot be loaded.*AutoModelForCausalLM|does not fit"):
        record_pretrained([place], PROBE, ["encoder.layer[0]"], folder / "t.zarr", config=folder / "other")
    (place / "adapter_config.json").write_text("{}")
    with pytest.raises(PretrainedError, match="names no base model"):
        record_pretrained([place], PROBE, ["model.norm"], folder / "u.zarr")
    (place / "adapter_config.json").write_text("[")
    with pytest.raises(PretrainedError, match="is not JSON"):
        record_pretrained([place], PROBE, ["model.norm"], folder / "v.zarr")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("head", [tf.BertForSequenceClassification, tf.RobertaForSequenceClassification])
def test_an_adapter_brings_the_head_of_its_task(tmp_path, head):
    peft = pytest.importorskip("peft")
    bare = tf.BertModel if head is tf.BertForSequenceClassification else tf.RobertaModel
    save(tmp_path / "base", bare, bare.config_class(**SMALL))
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS")
    model = peft.get_peft_model(head.from_pretrained(tmp_path / "base", num_labels=5), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    layers = ["classifier", "hidden_states[-1]"]
    assert record_pretrained([tmp_path / "adapter"], PROBE, layers, tmp_path / "s.zarr") == {"adapter": [0]}
    found = ra.open_store(tmp_path / "s.zarr").repaudit
    for layer, value in ra.ActivationExtractor(layers).extract(model, PROBE).items():
        np.testing.assert_allclose(found.activations("adapter", layer)[0], value, rtol=1e-4, atol=1e-5)
    assert found.activations("adapter", "classifier").shape[-1] == 5
