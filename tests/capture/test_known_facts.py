"""What the inputs of one shape told of a layer's dims is learned again from inputs of another."""

import torch
import transformers as tf

import repaudit as ra


def test_one_token_does_not_tell_the_dims_of_several(seen, extract):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 6,
    }  # fmt: skip
    model, name = tf.Gemma3TextModel(tf.Gemma3TextConfig(**sizes)), "layers.0.self_attn.q_norm"
    extractor, ids = ra.ActivationExtractor(name), torch.randint(3, 40, (5, 9))
    for batch in (ids[:, :1], ids, ids[:, :4], ids[:, :1]):
        own = seen(model, [name], input_ids=batch)[name]
        assert own.shape == (5, 1, batch.shape[1], 6)  # one head before the tokens
        found = extractor.extract(model, ra.ProbeSet.from_tensors({"input_ids": batch}))[name]
        torch.testing.assert_close(found, own.mean((1, 2)))
    extractor = ra.ActivationExtractor(name)
    for _ in range(2):
        with extractor.capture(model), torch.no_grad():
            for batch in (ids[:, :1], ids):
                model(batch)
        own = [seen(model, [name], input_ids=batch)[name].mean((1, 2)) for batch in (ids[:, :1], ids)]
        torch.testing.assert_close(extractor.activations[name], torch.cat(own))


def test_a_router_of_one_token_each_does_not_tell_that_there_are_none(seen):
    torch.manual_seed(0)
    config = tf.MixtralConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    model, ids, name = tf.MixtralModel(config), torch.randint(3, 40, (5, 7)), "layers.0.mlp.gate"
    extractor = ra.ActivationExtractor(name)
    for batch in (ids[:, :1], ids):
        found = extractor.extract(model, ra.ProbeSet.from_tensors({"input_ids": batch}))[name]
        torch.testing.assert_close(found, seen(model, [name], input_ids=batch)[name].view(5, -1, 3).mean(1))
