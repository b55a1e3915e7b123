"""Relative depth, and entries of the hidden states, against what each architecture returns itself."""

import pytest
import torch
import transformers as tf
from torch import nn

from repaudit import ActivationExtractor, LayerSpec, ProbeSet
from repaudit.capture.extract.blocks import find_blocks
from repaudit.capture.extract.layer_paths import resolve_layers
from repaudit.errors import CaptureError, LayerPathError

SMALL = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 1}
IMAGES = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
SEQ2SEQ = {
    "vocab_size": 48, "d_model": 16, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "pad_token_id": 0, "decoder_start_token_id": 2,
}  # fmt: skip
SPEECH = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "conv_dim": (8, 8, 8), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
T5 = tf.T5Config(
    vocab_size=48, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=2, num_heads=2,
    decoder_start_token_id=0,
)  # fmt: skip
WHISPER = tf.WhisperConfig(
    **SEQ2SEQ | {"encoder_layers": 3}, num_mel_bins=8, max_source_positions=10, max_target_positions=16
)

IDS = torch.randint(3, 48, (4, 9), generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "attention_mask": (torch.arange(9)[None] < torch.tensor([9, 4, 6, 9])[:, None]).long()}
PIXELS = {"pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
SOUND = {"input_values": torch.randn(4, 800, generator=torch.Generator().manual_seed(0))}
SPECTRUM = {"input_features": torch.randn(4, 8, 20, generator=torch.Generator().manual_seed(0))}

MODELS = {
    "bert": (tf.BertForMaskedLM, tf.BertConfig(**SMALL), TEXT),
    "roberta": (tf.RobertaForSequenceClassification, tf.RobertaConfig(**SMALL), TEXT),
    "distilbert": (
        tf.DistilBertForQuestionAnswering,
        tf.DistilBertConfig(vocab_size=48, dim=16, hidden_dim=32, n_layers=3, n_heads=2, max_position_embeddings=64),
        TEXT,
    ),
    "mpnet": (tf.MPNetModel, tf.MPNetConfig(**SMALL), TEXT),
    "albert": (tf.AlbertForMaskedLM, tf.AlbertConfig(**SMALL, embedding_size=8), TEXT),
    "deberta": (tf.DebertaV2Model, tf.DebertaV2Config(**SMALL), TEXT),
    "xlnet": (tf.XLNetModel, tf.XLNetConfig(vocab_size=48, d_model=16, n_layer=3, n_head=2, d_inner=32), TEXT),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config(vocab_size=48, n_embd=16, n_layer=3, n_head=2, n_positions=32), TEXT),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**GROUPED), TEXT),
    "mixtral": (tf.MixtralForCausalLM, tf.MixtralConfig(**GROUPED, num_local_experts=3, num_experts_per_tok=2), TEXT),
    "opt": (
        tf.OPTForCausalLM,
        tf.OPTConfig(vocab_size=48, hidden_size=16, num_hidden_layers=3, ffn_dim=32, num_attention_heads=2),
        TEXT,
    ),
    "mamba": (
        tf.MambaForCausalLM, tf.MambaConfig(vocab_size=48, hidden_size=16, num_hidden_layers=3, state_size=4), TEXT,
    ),
    "t5_encoder": (tf.T5EncoderModel, T5, TEXT),
    "vit": (tf.ViTForImageClassification, tf.ViTConfig(**IMAGES), PIXELS),
    "dinov2": (tf.Dinov2Model, tf.Dinov2Config(**IMAGES), PIXELS),
    "clip_vision": (tf.CLIPVisionModel, tf.CLIPVisionConfig(**IMAGES), PIXELS),
    "wav2vec2": (tf.Wav2Vec2ForCTC, tf.Wav2Vec2Config(**SPEECH), SOUND),
    "whisper_encoder": (tf.WhisperForAudioClassification, WHISPER, SPECTRUM),
}  # fmt: skip


def build(name):
    model_class, config, inputs = MODELS[name]
    torch.manual_seed(0)
    return model_class(config).eval(), inputs


def own(model, inputs, field="hidden_states"):
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True)[field]


def extract(model, inputs, *specs):
    return ActivationExtractor(specs).extract(model, ProbeSet.from_tensors(inputs), batch_size=4)


def all_tokens(path, **options):
    return LayerSpec(path, reduce="all", **options)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_the_models_own(name):
    model, inputs = build(name)
    last = all_tokens("hidden_states[-1]", name="last")
    found = extract(model, inputs, all_tokens("hidden_states[*]"), last, all_tokens("hidden_states[2]", name="third"))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    expected = own(model, inputs)
    assert list(found)[: len(expected)] == [f"hidden_states.{i}:all" for i in range(len(expected))]
    for i, state in enumerate(expected):
        torch.testing.assert_close(found[f"hidden_states.{i}:all"], state)
    torch.testing.assert_close(found["last"], expected[-1])
    torch.testing.assert_close(found["third"], expected[2])


# XLNet's blocks put tokens before samples, which is refused; Mamba's hidden states begin with the first block's output
@pytest.mark.parametrize("name", [name for name in MODELS if name not in {"xlnet", "mamba"}])
def test_depth_is_what_blocks_put_out(name):
    model, inputs = build(name)
    expected = own(model, inputs)
    found = extract(model, inputs, *(all_tokens(f"depth:{text}") for text in ("0", "0.4", "0.66", "1")))
    assert list(found) == ["depth:0:all", "depth:0.4:all", "depth:0.66:all", "depth:1:all"]
    for value, state in zip(list(found.values())[:3], expected[:3], strict=True):
        torch.testing.assert_close(value, state)
    by_path = resolve_layers(model, ["depth:1"])[0]
    if name != "albert":  # the model's last hidden state may come after a final norm, the block's output never does
        torch.testing.assert_close(found["depth:1:all"], extract(model, inputs, all_tokens(by_path.path)).popitem()[1])
    else:
        torch.testing.assert_close(found["depth:1:all"], expected[-1])


@pytest.mark.parametrize(
    ("model_class", "config", "before", "inputs"),
    [
        (tf.T5ForConditionalGeneration, T5, "", TEXT),
        (tf.T5Model, T5, "", TEXT),
        (tf.BartForConditionalGeneration, tf.BartConfig(**SEQ2SEQ), "model.", TEXT),
        (tf.WhisperModel, WHISPER, "", SPECTRUM),
    ],
)
def test_encoder_and_decoder_are_told_apart(model_class, config, before, inputs):
    torch.manual_seed(0)
    model = model_class(config).eval()
    inputs = inputs | {"decoder_input_ids": IDS[:, :5]}
    for part in ("encoder", "decoder"):
        path = f"{before}{part}"
        expected = own(model, inputs, f"{part}_hidden_states")
        depth = all_tokens(f"{path}.depth:0.5", name="half")
        found = extract(model, inputs, all_tokens(f"{path}.hidden_states[*]"), depth)
        for i, state in enumerate(expected):
            torch.testing.assert_close(found[f"{path}.hidden_states.{i}:all"], state)
        torch.testing.assert_close(
            found["half"], expected[len(expected) // 2]
        )  # of 3 blocks the second, of 2 the first
    both = rf"several lists of blocks.*'{before}encoder.depth:0.5', '{before}decoder.depth:0.5'"
    with pytest.raises(LayerPathError, match=both):
        extract(model, inputs, "depth:0.5")


def test_towers_are_told_apart():
    config = tf.CLIPConfig(text_config=SMALL, vision_config=IMAGES)
    model = tf.CLIPModel(config).eval()
    with pytest.raises(LayerPathError, match=r"'text_model.hidden_states\[-1\]', 'vision_model.hidden_states\[-1\]'"):
        resolve_layers(model, ["hidden_states[-1]"])
    layers = resolve_layers(model, ["text_model.depth:0.5", "vision_model.depth:1"])
    assert [(layer.name, layer.path) for layer in layers] == [
        ("text_model.depth:0.5", "text_model.encoder.layers.1"),
        ("vision_model.depth:1", "vision_model.encoder.layers.2"),
    ]


def paths(n_blocks, *texts):
    net = nn.ModuleDict(
        {"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(n_blocks)), "few": nn.ModuleList([nn.Linear(2, 1)])}
    )
    return [f"{layer.path}@{layer.point}" for layer in resolve_layers(net, texts)]


def test_depth_is_the_nearest_block_and_the_deeper_of_two():
    assert paths(6, "depth:0.5", "depth:0.75", "depth:1") == [f"layers.{i}@output" for i in (2, 4, 5)]
    assert paths(3, "depth:0.5", "depth:0.499") == ["layers.1@output", "layers.0@output"]
    assert paths(24, "depth:0") == ["layers.0@input"]
    assert paths(10, "depth:.35") == ["layers.3@output"]  # 3.5 exactly, which no binary fraction is
    assert paths(6, "layers.depth:0.5", "few.depth:1") == ["layers.2@output", "few.0@output"]


def test_a_wrapped_model_is_found_by_what_it_holds():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = tf.BertModel(tf.BertConfig(**SMALL)), nn.Linear(16, 2)

        def forward(self, input_ids, attention_mask):
            return self.head(self.body(input_ids, attention_mask).pooler_output)

    torch.manual_seed(0)
    model = Classifier().eval()
    found = extract(model, TEXT, all_tokens("hidden_states[-2]"), all_tokens("body.hidden_states[2]"), "depth:1")
    assert list(found) == ["hidden_states.2:all", "body.hidden_states.2:all", "depth:1"]
    for name in list(found)[:2]:
        torch.testing.assert_close(found[name], own(model.body, TEXT)[2])


def test_the_states_are_pooled_with_the_mask():
    model, inputs = build("llama")
    found = extract(model, inputs, "hidden_states[1]", LayerSpec("hidden_states[1]", reduce="last_token"))
    state, mask = own(model, inputs)[1], inputs["attention_mask"]
    torch.testing.assert_close(found["hidden_states.1"], (state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    torch.testing.assert_close(found["hidden_states.1:last_token"], state[torch.arange(4), mask.sum(1) - 1])


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("hidden_states[9]", CaptureError, "expected at least 10 hidden_states of LlamaModel, found 4"),
        ("hidden_states[-9]", LayerPathError, "LlamaModel has 4 hidden_states"),
        ("hidden_states[7:]", LayerPathError, "LlamaModel has 4 hidden_states"),
        ("hidden_states", LayerPathError, "expected an index behind hidden_states"),
        ("hidden_states[1].mlp", LayerPathError, "'hidden_states' not found at the top"),
        ("bert.hidden_states[1]", LayerPathError, r"did you mean 'hidden_states\[1\]'"),
        ("transformer.depth:0.5", LayerPathError, "did you mean 'depth:0.5'"),
        ("model.norm.depth:0.5", LayerPathError, "LlamaRMSNorm holds no list of modules"),
        ("depth:1.5", LayerPathError, "expected a relative depth from 0 .* to 1 .* found '1.5'"),
        ("depth:half", LayerPathError, "found 'half'"),
        ("depth:0.5[0]", LayerPathError, "nothing can follow it"),
    ],
)
def test_what_is_not_there_is_told(path, error, message):
    model, inputs = build("llama")
    with pytest.raises(error, match=message):
        extract(model, inputs, path)


def test_states_are_those_of_hugging_face_models():
    net = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})
    with pytest.raises(LayerPathError, match="hidden_states are those of a Hugging Face model"):
        resolve_layers(net, ["hidden_states[0]"])
    with pytest.raises(LayerPathError, match="leave out extraction_point='input'"):
        resolve_layers(net, [LayerSpec("depth:0.5", extraction_point="input")])
    with pytest.raises(LayerPathError, match="ReLU holds no list of modules"):
        resolve_layers(nn.ReLU(), ["depth:0.5"])


def test_a_module_of_that_name_comes_first():
    net = nn.ModuleDict({"hidden_states": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    assert [layer.path for layer in resolve_layers(net, ["hidden_states[-1]"])] == ["hidden_states.1"]


def test_states_are_read_again_after_a_forward_that_failed():
    model, inputs = build("opt")
    with ActivationExtractor("hidden_states[1]").capture(model) as extractor:
        with pytest.raises(IndexError):
            model(input_ids=torch.full((1, 3), 99))
        model(**inputs)
    assert extractor.activations["hidden_states.1"].shape == (4, 16)


def test_a_model_of_parallel_lists_has_no_list_of_blocks():
    model = tf.XLMModel(tf.XLMConfig(vocab_size=32, emb_dim=16, n_layers=4, n_heads=2))
    with pytest.raises(LayerPathError, match=r"several lists.*attentions.*ffns"):
        find_blocks(model, "depth:0.5")
