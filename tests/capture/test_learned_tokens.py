"""Rows of parameters as tokens (latents, queries, registers): the inputs' mask is not theirs, however many they are."""

import pytest
import torch
import transformers as tf
from torch import nn
from transformers.models.perceiver.modeling_perceiver import PerceiverTextPreprocessor

import repaudit as ra
from repaudit.errors import CaptureError

IDS = torch.randint(3, 40, (5, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9)[None] < torch.tensor([9, 4, 6, 9, 1])[:, None]).long()
FULL = {"input_ids": IDS, "attention_mask": MASK}


def mean(tokens, mask):
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def perceiver(latents, build=tf.PerceiverModel):
    torch.manual_seed(0)
    config = tf.PerceiverConfig(
        num_latents=latents, d_latents=16, d_model=16, num_blocks=1, num_self_attends_per_block=2, vocab_size=48,
        num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=9, qk_channels=16,
        v_channels=16,
    )  # fmt: skip
    more = {"input_preprocessor": PerceiverTextPreprocessor(config)} if build is tf.PerceiverModel else {}
    return build(config, **more)


@pytest.mark.parametrize("latents", [9, 4])  # as many as tokens, and others
def test_latents_of_a_perceiver_are_not_tokens_of_the_text(latents, seen, extract):
    model, inputs = perceiver(latents), {"inputs": IDS, "attention_mask": MASK}
    names = ["encoder.self_attends.1", "encoder.cross_attention", "encoder.self_attends.0.attention.self.query"]
    own, found = seen(model, names, **inputs), extract(names, model, **inputs)
    for name in names:
        assert own[name].shape == (5, latents, 16)
        torch.testing.assert_close(found[name], own[name].mean(1), msg=name)


def test_what_a_perceiver_puts_out_for_each_token_is_masked(seen, extract):
    model, name = perceiver(4, tf.PerceiverForMaskedLM), "perceiver.decoder.decoding_cross_attention"
    inputs = {"inputs": IDS, "attention_mask": MASK}
    own, found = seen(model, [name], **inputs)[name], extract(name, model, **inputs)[name]
    torch.testing.assert_close(found, mean(own, MASK))


class Queries(nn.Module):
    """Learned queries that look at a text, as object queries do at an image."""

    def __init__(self, how, rows=9):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.embed = how, nn.Embedding(48, 16)
        self.text, self.queries, self.table = (
            nn.Linear(16, 16),
            nn.Parameter(torch.randn(rows, 16)),
            nn.Embedding(rows, 16),
        )
        batch_first = how != "queries first"
        self.decoder = nn.TransformerDecoderLayer(16, 2, 16, batch_first=batch_first)
        self.seen, self.out, self.both = nn.Identity(), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, input_ids, attention_mask):
        text, n = self.text(self.embed(input_ids)), len(input_ids)
        queries = {
            "expand": lambda: self.queries.expand(n, -1, -1),
            "repeat": lambda: self.table.weight[None].repeat(n, 1, 1),
            "indexed": lambda: self.table(torch.arange(len(self.queries)))[None].expand(n, -1, -1),
            "added": lambda: text.mean(1, keepdim=True) + self.queries,
            "queries first": lambda: self.table.weight[:, None].repeat(1, n, 1),
        }[self.how]()
        self.both(torch.cat([queries.reshape(n, -1, 16), text], 1)) if self.how != "queries first" else None
        if self.how == "queries first":
            return self.out(self.seen(self.decoder(queries, text.transpose(0, 1)).transpose(0, 1)))
        return self.out(self.seen(self.decoder(queries, text)))


@pytest.mark.parametrize("how", ["expand", "repeat", "indexed", "added", "queries first"])
@pytest.mark.parametrize("rows", [9, 6])
def test_learned_queries_are_not_tokens_of_the_text(how, rows, seen, extract):
    model, names = Queries(how, rows), ["seen", "out", "text"]
    own, found = seen(model, names, **FULL), extract(names, model, **FULL)
    assert own["out"].shape == (5, rows, 8)
    for name in names[:2]:
        torch.testing.assert_close(found[name], own[name].mean(1), msg=name)
    torch.testing.assert_close(found["text"], mean(own["text"], MASK))


def test_learned_rows_before_the_tokens_are_not_left_out_in_silence(seen, extract):
    model = Queries("expand", 4)
    with pytest.raises(CaptureError, match=r"mask has 9 tokens and the activation \(2, 13, 8\).*mask=None"):
        extract("both", model, **FULL)
    found = extract(ra.LayerSpec("both", mask=None), model, **FULL)["both"]
    torch.testing.assert_close(found, seen(model, ["both"], **FULL)["both"].mean(1))


class Unfollowed(nn.Module):
    """Loses track of which tokens are latents behind an operation that is not known."""

    def __init__(self, latents):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.latents, self.out = (
            nn.Embedding(48, 16),
            nn.Parameter(torch.randn(latents, 16)),
            nn.Linear(16, 8),
        )

    def forward(self, input_ids, attention_mask):
        text = self.embed(input_ids)
        near = torch.cdist(self.latents.expand(len(text), -1, -1), text)
        return self.out(torch.tensordot(near.softmax(-1)[:, :, :1], text[0, :1], ([2], [0])))


def test_where_it_cannot_be_told_it_is_asked(seen, extract):
    model = Unfollowed(9)
    with pytest.raises(CaptureError, match=r"layer 'out': its 9 tokens are as many as the mask's .*mask=None"):
        extract("out", model, **FULL)
    own = seen(model, ["out"], **FULL)["out"]
    torch.testing.assert_close(extract(ra.LayerSpec("out", mask=None), model, **FULL)["out"], own.mean(1))
    masked = extract(ra.LayerSpec("out", mask="attention_mask"), model, **FULL)["out"]
    torch.testing.assert_close(masked, mean(own, MASK))


class Registers(nn.Module):
    """Puts learned rows before a text that is lost on the way, and a convolution over learned rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.registers, self.out = nn.Embedding(48, 16), nn.Parameter(torch.randn(4, 16)), nn.Linear(16, 8)
        self.conv, self.latents = nn.Conv1d(16, 8, 1), nn.Parameter(torch.randn(9, 16))

    def forward(self, input_ids, attention_mask):
        text = self.embed(input_ids)
        lost = torch.tensordot(text, torch.eye(16), ([2], [0]))
        near = (self.latents.expand(len(text), -1, -1) @ text.mT).softmax(-1) @ text
        return self.conv(near.mT), self.out(torch.cat([self.registers.expand(len(text), -1, -1), lost], 1))


def test_learned_rows_beside_what_was_lost_are_not_all_learned(extract):
    with pytest.raises(CaptureError, match=r"mask has 9 tokens and the activation \(2, 13, 8\).*mask=None"):
        extract("out", Registers(), **FULL)


def test_a_convolution_of_learned_rows_keeps_them(seen, extract):
    model = Registers()
    torch.testing.assert_close(extract("conv", model, **FULL)["conv"], seen(model, ["conv"], **FULL)["conv"].mean(2))


class Positions(nn.Module):
    """Adds learned positions, repeated for each sample, to the tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.extra, self.out = nn.Embedding(48, 16), nn.Parameter(torch.randn(9, 16)), nn.Linear(16, 8)

    def forward(self, input_ids, attention_mask):
        return self.out(self.extra.expand(len(input_ids), -1, -1) + self.embed(input_ids))


def test_tokens_to_which_learned_rows_are_added_are_tokens(seen, extract):
    model = Positions()
    torch.testing.assert_close(extract("out", model, **FULL)["out"], mean(seen(model, ["out"], **FULL)["out"], MASK))


def test_queries_of_blip2_beside_a_text_of_as_many_tokens(seen, extract):
    torch.manual_seed(0)
    parts = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tf.OPTConfig(
        vocab_size=48, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=40,
    )  # fmt: skip
    config = tf.Blip2Config(
        vision_config={**parts, "image_size": 8, "patch_size": 4}, num_query_tokens=5, image_token_index=2,
        qformer_config={**parts, "encoder_hidden_size": 16, "vocab_size": 48}, text_config=text.to_dict(),
    )  # fmt: skip
    model = tf.Blip2ForConditionalGeneration(config)
    ids, mask = torch.full((5, 9), 2), MASK.clone()
    ids[:, 5:] = IDS[:, 5:]
    mask[:, :5] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(5, 3, 8, 8)}
    names = ["qformer.encoder.layer.1.output_query", "language_projection"]
    own, found = seen(model, names, **inputs), extract(names, model, **inputs)
    for name in names:
        assert own[name].shape == (5, 5, 16)
        torch.testing.assert_close(found[name], own[name].mean(1), msg=name)


class Remakes(tf.PreTrainedModel):
    """A model of transformers that gives the one inside as many tokens as the text has, which it made itself."""

    config_class = tf.BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.mix, self.inner = nn.Embedding(48, 16), nn.Linear(9, 9), tf.BertModel(config)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        return self.inner(inputs_embeds=self.mix(self.embed(input_ids).mT).mT)


def test_tokens_that_a_model_makes_itself_have_no_mask(seen, extract):
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model, name = Remakes(config), "inner.encoder.layer.1"
    own = seen(model, [name], **FULL)[name]
    torch.testing.assert_close(extract(name, model, **FULL)[name], own.mean(1))
