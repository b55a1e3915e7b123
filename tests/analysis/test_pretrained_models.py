"""Models of other tokenizers and architectures side by side: from the command to the same numbers as by hand."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

import repaudit as ra
from repaudit.cli import app

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/gauge"), str(ROOT / "scripts")]

import perplexity_reference  # noqa: E402 - lies beside the gauge's tests
import pretrained  # noqa: E402 - lies with the scripts

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "log", "fast", "slow", "red", "blue", "big", "old", "new"]


def by_hand(one, other, perplexity):
    """The squared distance of two representations over its expected value under relabelling, in plain NumPy."""
    p, q = (perplexity_reference.operator(x, perplexity)[0] for x in (one, other))
    n = len(p)
    off = (p.sum() - np.trace(p)) * (q.sum() - np.trace(q)) / (n * (n - 1))
    null = (p**2).sum() + (q**2).sum() - 2 * (np.trace(p) * np.trace(q) / n + off)
    return ((p - q) ** 2).sum() / null


def compare(results, activations, perplexities):
    for (a, x), (b, y) in combinations(activations.items(), 2):
        for scale in perplexities:
            found = results["pairs"]["distance"].sel(layer="penultimate", scale=scale, model=a, other=b).squeeze()
            assert float(found) ** 2 == pytest.approx(by_hand(x, y, scale), abs=1e-5), (a, b, scale)
            again = results["pairs"]["distance"].sel(layer="penultimate", scale=scale, model=b, other=a).squeeze()
            assert float(again) == float(found)
    for scale in perplexities:
        merged = ra.DiffusionOperator.from_results(results, "penultimate", scale).to_numpy()
        mean = np.mean([perplexity_reference.operator(x, scale)[0] for x in activations.values()], axis=0)
        np.testing.assert_allclose(merged, mean, atol=1e-5)


def save(folder, model, tokenizer):
    backend = Tokenizer(tokenizer)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_two_architectures_of_two_tokenizers_from_the_command_to_the_numbers(tmp_path):
    rng = np.random.default_rng(0)
    lines = [{"id": f"t{i}", "text": " ".join(rng.choice(WORDS, 7)), "label": WORDS[i % 3]} for i in range(60)]
    probe = tmp_path / "probe.jsonl"
    probe.write_text("\n".join(map(json.dumps, lines)))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 64}
    words = models.WordLevel({word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}, unk_token="<unk>")
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = {word: i for i, word in enumerate(["<pad>", "<unk>", *letters, *(f"##{x}" for x in letters)])}
    bert = save(tmp_path / "bert", tf.BertModel(tf.BertConfig(num_hidden_layers=3, **size)), words)
    llama = save(
        tmp_path / "llama",
        tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=5, **size)),
        models.WordPiece(pieces, unk_token="<unk>"),
    )
    store, out = tmp_path / "s.zarr", tmp_path / "out"
    layers = ["--layers", "penultimate=encoder.layer[-2]", "--layers", "llama:penultimate=model.layers[-2]"]
    run = CliRunner().invoke(
        app, ["record", str(bert), str(llama), "--probe", str(probe), *layers, "--store", str(store)]
    )
    assert run.exit_code == 0, run.output
    assert "bert: recorded at step 0 (tokenizer bert, no text cut)" in run.stdout
    results = ra.analyze(store, out, scales=(10,), frames=1, units=0)
    assert (out / "report.html").exists()
    assert "from_untrained" not in results["comparison"]  # step 0 is all there is of them, and they are trained
    entry = results.repaudit.summary["layers"]["penultimate"]
    assert (entry["untrained"], entry["agreement"]) == (None, None)
    assert results["merged"]["sample"].values.tolist() == [line["id"] for line in lines]
    texts, activations = [line["text"] for line in lines], {}
    for place, layer in ((bert, "encoder.layer[-2]"), (llama, "model.layers[-2]")):
        tokenizer, auto = tf.AutoTokenizer.from_pretrained(place), tf.AutoModel
        model = (auto if place == bert else tf.AutoModelForCausalLM).from_pretrained(place).eval()
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = model(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], output_hidden_states=True
            ).hidden_states[-2]
        mask = encoded["attention_mask"][..., None]
        activations[place.name] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        assert layer.endswith("[-2]")
    compare(results, activations, (10,))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_four_pretrained_models_on_labelled_mails(tmp_path):
    places, store = pretrained.models(), tmp_path / "s.zarr"
    probe = pretrained.write_probe(tmp_path / "mails.jsonl", pretrained.emails(300))
    names = [word for name in places for word in ("--name", name)]
    given = [*map(str, places.values()), *names, "--probe", str(probe), "--store", str(store)]
    run = CliRunner().invoke(app, ["record", *given, "--layers", "penultimate=hidden_states[-2]"])
    assert run.exit_code == 0, run.output
    results = ra.analyze(store, tmp_path / "out")
    assert results.repaudit.summary["models"] == sorted(places)
    tree = ra.open_store(store)
    assert tree.repaudit.activations("mpnet", "penultimate").sizes["feature"] == 768
    activations = {
        name: tree.repaudit.activations(name, "penultimate").isel(step=0).values.astype(np.float64) for name in places
    }
    compare(results, activations, (15, 75))
    pvalues = results["pairs"]["pvalue_holm"].isel(step=0, scale=0).sel(layer="penultimate")
    off = [float(pvalues.sel(model=a, other=b)) for a, b in combinations(places, 2)]
    assert max(off) < 0.05
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
