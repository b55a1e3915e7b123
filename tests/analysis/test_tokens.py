"""Tokens in the place of samples: which are compared, what a row is made of, and what cannot be compared."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast
from typer.testing import CliRunner

import repaudit as ra
from repaudit.analysis.contract import contract_violations
from repaudit.analysis.selection import select
from repaudit.analysis.settings import Settings
from repaudit.analysis.sources import open_sources
from repaudit.analysis.token_samples import rows_and_scales
from repaudit.cli import app
from repaudit.errors import AnalysisError
from repaudit.report.figures.embeddings import sample_texts
from repaudit.store.format.sample_set import text_hash
from repaudit.store.read.stored_probe_set import StoredProbeSet

WORDS = ["one", "three", "seven", "eleven", "twelve", "a", "of"]
BARE = {"frames": 0, "units": 0, "similarity": (), "scales": (8,)}
MORE = {"frames": 1, "units": 4, "similarity": ("mutual_knn",), "scales": (8,)}
LETTERS = ["<pad>", "<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz"]
WIDTH = 7


def texts(count=6, longest=12):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, longest - i)) for i in range(count)]


def words(side="right", special=False):
    tokens = ["<pad>", "<unk>", "<s>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", padding_side=side)


def letters():
    backend = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<unk>"))
    split = pre_tokenizers.Split("", "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), split])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def encoded(tokenizer, chosen=None, max_length=64, **more):
    every = texts()
    chosen = range(len(every)) if chosen is None else chosen
    ids, labels = [f"mail {i}" for i in chosen], [str(i % 2) for i in chosen]
    return ra.ProbeSet.from_texts([every[i] for i in chosen], tokenizer, max_length, ids=ids, labels=labels, **more)


def without_characters(probe_set):
    probe_set.offsets = None
    return probe_set


def own(model: str, probe_set) -> list[np.ndarray]:
    """Return what a model makes of the tokens of each sample, whatever their place in the padded inputs."""
    rows = []
    for name, mask in zip(probe_set.ids, probe_set.inputs["attention_mask"].numpy(), strict=True):
        shared = np.random.default_rng([*name.encode()]).normal(size=(200, WIDTH))[: mask.sum()]
        rng = np.random.default_rng([*f"{model} {name}".encode()])
        rows.append((shared + 0.5 * rng.normal(size=shared.shape)).astype(np.float32))
    return rows


def record(url, model, probe_set, steps=(0,), layer="last:all"):
    """Record the tokens where the mask has them, NaN elsewhere."""
    mask = probe_set.inputs["attention_mask"].numpy().astype(bool)
    values = np.full((*mask.shape, WIDTH), np.nan, np.float32)
    values[mask] = np.concatenate(own(model, probe_set))
    shape = {layer: (values.shape, "float32"), "pooled": ((len(mask), WIDTH), "float32")}
    with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers=shape, durable=False) as writer:
        for step in steps:
            writer.append(step, {layer: values, "pooled": values[:, 0] * 0 + 1})
    return url


def distance(one, other):
    gauge = ra.DiffusionGauge(perplexity=8)
    return ra.spread({"a": gauge(one), "b": gauge(other)}).value


def shown(*urls, tokens="samples", **choices):
    """Return the sources of an analysis with the rows that it has."""
    settings = Settings(tokens=tokens, **choices)
    sources = open_sources(urls, settings)
    return rows_and_scales(sources, select(sources.tree, tokens=True), settings)[0]


def read(sources, model):
    return sources.read(model, "last:all", 0).values


def found(results) -> float:
    return float(results["spread"]["spread"].sel(layer="last:all").squeeze())


def notes(results) -> list[str]:
    return [line for line in results.repaudit.summary["left_out"] if line.startswith("tokens")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Results of two models of one tokenizer, with the store."""
    url = tmp_path_factory.mktemp("pair") / "store.zarr"
    for model in ("a", "b"):
        record(url, model, encoded(words()), steps=(0, 3))
    return url, ra.analyze(url, tokens="samples", **MORE)


def test_every_unmasked_token_is_a_sample(pair):
    _, results = pair
    one, other = (np.concatenate(own(model, encoded(words()))) for model in ("a", "b"))
    values = results["spread"]["spread"].sel(layer="last:all", scale=8, step=[0, 3])
    np.testing.assert_allclose(values, distance(one, other), atol=1e-5)
    assert results["spread"]["layer"].values.tolist() == ["last:all"]
    assert contract_violations(results) == []
    merged = results["merged"].to_dataset()
    lengths = [12, 11, 10, 9, 8, 7]
    assert merged["sample"].values.tolist() == [f"mail {i}@{k}" for i in range(6) for k in range(lengths[i])]
    assert merged["of_sample"].values[[0, 12]].tolist() == ["mail 0", "mail 1"]
    assert merged["position"].values[:13].tolist() == [*range(12), 0]
    assert merged["label"].values[[0, 12]].tolist() == ["0", "1"]
    assert " ".join(merged["text"].values) == " ".join(texts())
    assert results["merged/operator"]["sample"].values.tolist() == merged["sample"].values.tolist()
    assert "layer pooled: has its tokens pooled" in results.repaudit.summary["left_out"]
    assert "from_inputs" not in results["comparison"]
    assert sample_texts(merged)[0][1] == f"<b>mail 0@1</b><br>token 1 of mail 0<br>{texts()[0].split()[1]}"


def test_one_tokenizer_that_pads_on_either_side_reads_the_same_tokens(tmp_path):
    url = record(tmp_path / "s.zarr", "a", without_characters(encoded(words("left"))))
    sources = shown(record(url, "b", without_characters(encoded(words()))))
    for model in ("a", "b"):
        np.testing.assert_array_equal(read(sources, model), np.concatenate(own(model, encoded(words()))))
    assert sources.samples["position"].values.tolist() == [k for length in range(12, 6, -1) for k in range(length)]
    assert "text" not in sources.samples, "nobody knows the characters"


def test_a_row_of_another_tokenizer_is_the_mean_of_what_it_shares_characters_with(tmp_path):
    spans = {"a": [[0, 3], [4, 6], [7, 8]], "b": [[0, 1], [1, 5], [5, 6], [6, 8]]}
    for model, ends in spans.items():
        inputs = {"input_ids": np.arange(len(ends))[None] + len(ends), "offset_mapping": np.array([ends])}
        told = {"texts": ["abc de f"], "text_hashes": [text_hash("abc de f")]}
        probe_set = StoredProbeSet(text_hash(model), ["mail"], inputs, **told)
        shape = {"last:all": ((1, len(ends), 1), "float32")}
        with ra.TrajectoryWriter(tmp_path / "s.zarr", model_name=model, probe_set=probe_set, layers=shape) as writer:
            writer.append(0, {"last:all": np.arange(1, len(ends) + 1, dtype=np.float32)[None, :, None]})
    sources = shown(tmp_path / "s.zarr")
    assert read(sources, "a").ravel().tolist() == [1, 2, 3]
    np.testing.assert_allclose(read(sources, "b").ravel(), [(1 + 2 * 2) / 3, (2 + 3) / 2, 4])
    assert sources.samples["text"].values.tolist() == ["abc", "de", "f"]


def test_tokens_of_two_tokenizers_are_compared_through_their_characters(tmp_path):
    word_set, letter_set = encoded(words()), encoded(letters())
    sources = shown(record(record(tmp_path / "s.zarr", "letters", letter_set), "a", word_set))
    rows = []
    for text, values in zip(texts(), own("letters", letter_set), strict=True):
        ends = np.cumsum([len(word) for word in text.split()])
        rows += [values[end - len(word) : end].mean(0) for word, end in zip(text.split(), ends, strict=True)]
    np.testing.assert_array_equal(read(sources, "a"), np.concatenate(own("a", word_set)))
    np.testing.assert_allclose(read(sources, "letters"), rows, atol=1e-6)
    assert sources.notes == ()


def test_a_token_that_others_did_not_read_is_dropped_and_counted(tmp_path):
    url = record(tmp_path / "s.zarr", "a", encoded(words(special=True)))
    sources = shown(record(url, "b", encoded(letters(), max_length=20)))
    starts = [np.cumsum([0, *map(len, text.split())])[:-1] for text in texts()]
    kept, total = sum(int((some < 20).sum()) for some in starts), sum(len(some) + 1 for some in starts)
    assert sources.samples.sizes["sample"] == kept < total - 6
    assert sources.notes == (f"tokens: {total - kept} of {total} of a, without a character that all models read",)
    assert sources.samples["sample"].values[0] == "mail 0@1", "the special token comes before it"
    assert "" not in sources.samples["text"].values


def test_at_most_as_many_tokens_as_asked_for_are_drawn_by_the_seed(pair):
    drawn = [shown(pair[0], max_tokens=20, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (sources.samples["sample"].values.tolist() for sources in drawn)
    assert one == again != other
    places = [tuple(map(int, re.findall("[0-9]+", name))) for name in one]
    assert places == sorted(places)
    assert len(set(places)) == 20
    assert drawn[0].notes == ("tokens: all but 20 of 57, drawn by the seed (max_tokens)",)
    assert drawn[0].of_model["a"].identity("last:all") != drawn[2].of_model["a"].identity("last:all")


def test_tokens_of_several_stores_are_those_of_the_samples_they_share(tmp_path):
    chosen = [4, 3, 2, 1, 0]
    a = record(tmp_path / "a.zarr", "a", encoded(words()))
    b = record(tmp_path / "b.zarr", "b", encoded(words("left"), chosen))
    c = record(tmp_path / "c.zarr", "letters", encoded(letters(), chosen))
    one = record(record(tmp_path / "d.zarr", "a", encoded(words(), range(5))), "b", encoded(words(), range(5)))
    both, same = shown(a, b, c), shown(record(one, "letters", encoded(letters(), range(5))))
    assert both.samples.identical(same.samples)
    for model in ("a", "b", "letters"):
        np.testing.assert_array_equal(read(both, model), read(same, model))


@pytest.mark.usefixtures("undrawn")
def test_operators_within_samples_are_averaged_position_by_position(tmp_path):
    word_set = encoded(words())
    url = record(record(tmp_path / "s.zarr", "a", word_set), "b", encoded(words("left")))
    results = ra.analyze(url, tmp_path / "out", tokens="within", **MORE)  # a perplexity of 8 asks for 10 tokens
    assert contract_violations(results) == []
    assert "similarity" not in results.children
    means = {}
    for model in ("a", "b"):
        total, count = np.zeros((12, 12)), np.zeros(12)
        for values in own(model, word_set):
            if (n := len(values)) >= 10:
                total[:n, :n] += ra.DiffusionGauge(perplexity=8)(values).to_numpy()
                count[:n] += 1
        means[model] = total / count[:, None]
    assert found(results) == pytest.approx(ra.spread(means).value, abs=1e-5)
    assert notes(results) == ["tokens: 3 of 6 samples, which have fewer than 10 tokens"]
    merged = ra.DiffusionOperator.from_results(results, "last:all")
    np.testing.assert_allclose(merged.to_numpy(), (means["a"] + means["b"]) / 2, atol=1e-6)
    assert merged.samples.tolist() == [f"position {i}" for i in range(12)]
    assert results["merged"]["position"].values.tolist() == list(range(12))
    assert "of_sample" not in results["merged"].coords
    assert np.isfinite(results["comparison"]["feature_halves"]).all()


def test_within_samples_the_scale_is_a_quarter_of_a_usual_sample(pair):
    settings = Settings(tokens="within")
    sources = open_sources([pair[0]], settings)
    sources, scales = rows_and_scales(sources, select(sources.tree, tokens=True), settings)
    assert [(scale.value, scale.name) for scale in scales] == [(9 / 4, "shape")]
    assert sources.notes == ()


def test_what_cannot_be_compared_is_refused(tmp_path):
    url = record(tmp_path / "s.zarr", "a", encoded(words()))
    record(url, "letters", without_characters(encoded(letters())))
    with pytest.raises(AnalysisError, match=r"models a, letters read .* other tokens, .* those of letters stand for"):
        ra.analyze(url, tokens="samples", **BARE)
    with pytest.raises(AnalysisError, match="models a and letters read the samples as other tokens, whose positions"):
        ra.analyze(url, tokens="within", **BARE)
    with pytest.raises(AnalysisError, match=r"found only pooled ones.*reduce='all'"):
        ra.analyze(url, layers=["pooled"], tokens="samples", **BARE)
    with pytest.raises(AnalysisError, match=r"only layers with a token dimension.*tokens='samples'"):
        ra.analyze(url, layers=["last:all"], **BARE)
    with pytest.raises(AnalysisError, match=r"at least 17 tokens.*found at most 12"):
        ra.analyze(url, models=["a"], tokens="within", **(BARE | {"scales": (15,)}))
    with pytest.raises(AnalysisError, match=r"max_tokens.*needs tokens='samples'"):
        ra.analyze(url, max_tokens=20)
    with pytest.raises(AnalysisError, match=r"tokens: .*'samples' or 'within'"):
        ra.analyze(url, tokens="all")
    assert not (tmp_path / "s.analysis").exists()


def test_as_many_tokens_are_not_the_same_tokens(tmp_path):
    first, known = without_characters(encoded(words())), without_characters(encoded(words()))
    inputs = {name: values + (name == "input_ids") for name, values in first.inputs.items()}
    others = ra.ProbeSet(inputs, ids=first.ids, labels=first.labels, texts=first.texts), known
    known.encoding |= {"tokenizer_sha256": "of other words in the same places"}
    for index, other in enumerate(others):
        url = record(record(tmp_path / f"{index}.zarr", "a", first), "b", other)
        with pytest.raises(AnalysisError, match="models a, b read the samples as other tokens"):
            shown(url)


def test_a_layer_with_other_tokens_than_its_inputs_is_named(tmp_path):
    probe_set, url = encoded(words()), tmp_path / "s.zarr"
    shape = {"frames": ((6, 5, WIDTH), "float32")}
    with ra.TrajectoryWriter(url, model_name="a", probe_set=probe_set, layers=shape) as writer:
        writer.append(0, {"frames": np.ones((6, 5, WIDTH), np.float32)})
    with pytest.raises(AnalysisError, match=r"layer frames of model a: it keeps 5 tokens .* input_ids have 12"):
        ra.analyze(url, tokens="samples", **BARE)


def test_patches_of_images_are_tokens(tmp_path):
    url, rng = tmp_path / "s.zarr", np.random.default_rng(0)
    probe_set = ra.ProbeSet.from_tensors({"pixel_values": torch.rand(8, 3, 4, 4)})
    values = {model: rng.normal(size=(8, 4, WIDTH)).astype(np.float32) for model in ("a", "b")}
    for model, array in values.items():
        shape = {"last:all": (array.shape, "float32")}
        with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers=shape) as writer:
            writer.append(0, {"last:all": array})
    sources = shown(url)
    np.testing.assert_array_equal(read(sources, "b"), values["b"].reshape(-1, WIDTH))
    assert sources.samples["sample"].values[:5].tolist() == ["0@0", "0@1", "0@2", "0@3", "1@0"]


@pytest.mark.usefixtures("undrawn")
def test_models_recorded_with_all_their_tokens_are_compared_from_the_shell(tmp_path):
    url = tmp_path / "s.zarr"
    for name, tokenizer in (("words", words()), ("letters", letters())):
        torch.manual_seed(0)
        model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=40, n_positions=64))
        spec = ra.LayerSpec("h[0]", reduce="all", name="last")
        with ra.Recorder(url, name, encoded(tokenizer), [spec]) as recorder:
            recorder.audit(model, 0)
    given = ["--frames", "0", "--units", "0", "--scales", "8", "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(app, ["analyze", "--tokens", str(url), *given])
    assert run.exit_code == 0, run.output
    with xr.open_datatree(tmp_path / "out" / "results.zarr", engine="zarr") as stored:
        assert stored["merged"].sizes["sample"] == encoded(letters()).inputs["attention_mask"].sum()
    for within in (["--tokens", "within"], ["--tokens=within"]):
        refused = CliRunner().invoke(app, ["analyze", *within, str(url), *given])
        assert refused.exit_code == 2
        assert "whose positions are not the same" in refused.output
