"""One store, one sample set: other encodings of the same samples are taken, other samples are not."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import repaudit as ra
from repaudit.errors import CorruptStoreError, FingerprintError, StoreWarning
from repaudit.store.copying import copy_store
from repaudit.store.format.sample_set import inputs_key, text_hash
from repaudit.store.read import catalog
from repaudit.store.read.stored_probe_set import StoredProbeSet

TEXTS = ["one", "two words", "three of them", "four"]
LAYERS = {"last": ((4, 3), "float32")}
GOLDEN_1 = Path(__file__).with_name("golden") / "v1.zarr"


def encoded(tokenizer: str, length: int, texts=TEXTS, **changes) -> StoredProbeSet:
    rng = np.random.default_rng(length)
    made = StoredProbeSet(
        text_hash(f"{tokenizer} {length} {texts}"),
        [f"mail {i}" for i in range(len(texts))],
        {"input_ids": rng.integers(1, 99, (len(texts), length))},
        labels=["ham", "spam"] * 2,
        texts=texts,
        text_hashes=[text_hash(text) for text in texts],
        encoding={"tokenizer": tokenizer, "max_length": length, "truncated": 2},
    )
    return replace(made, **changes)


def record(url, model: str, probe_set, steps=(0,)) -> None:
    with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers=LAYERS) as writer:
        for step in steps:
            writer.append(step, {"last": np.full((4, 3), step, "float32")})


def test_models_of_several_tokenizers_share_a_store(url):
    record(url, "bert", encoded("words", 5))
    record(url, "llama", encoded("bytes", 9))
    record(url, "bert-2", encoded("words", 5))
    tree = ra.open_store(url)
    assert {model: catalog.inputs(tree, model).sizes["token"] for model in catalog.models(tree)} == {
        "bert": 5,
        "bert-2": 5,
        "llama": 9,
    }
    assert len(tree["probe"].children) == 2
    assert catalog.encoding(tree, "llama") == {"tokenizer": "bytes", "max_length": 9, "truncated": 2}
    assert tree["text"].values.tolist() == TEXTS
    plain = xr.open_datatree(url, engine="zarr", consolidated=False)
    assert plain[f"probe/{inputs_key(encoded('bytes', 9).fingerprint)}/input_ids"].shape == (4, 9)
    assert ra.verify(url, data=True) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (encoded("words", 5, [*TEXTS[:2], "three of us", TEXTS[3]]), "sample 'mail 2' holds another text"),
        (encoded("words", 5, ids=["mail 0", "mail 7", "mail 2", "mail 3"]), "sample 1 is 'mail 1' there and 'mail 7'"),
        (encoded("words", 5, text_hashes=None), "known by their text there and by their inputs here"),
    ],
)
def test_other_samples_are_refused_with_the_first_difference(url, other, said):
    record(url, "bert", encoded("words", 5))
    before = sorted(Path(url).rglob("*"))
    with pytest.raises(FingerprintError, match=said):
        record(url, "other", other)
    assert sorted(Path(url).rglob("*")) == before


def test_inputs_that_stand_for_the_samples_are_compared_row_by_row(url, probe_set, layers):
    first = replace(probe_set, text_hashes=None)
    ra.TrajectoryWriter(url, model_name="a", probe_set=first, layers=layers).close()
    ids = first.inputs["input_ids"].copy()
    ids[4, 1] += 1
    other = replace(first, fingerprint="e" * 64, inputs={**first.inputs, "input_ids": ids})
    with pytest.raises(FingerprintError, match="sample 'passage-4' holds another input"):
        ra.TrajectoryWriter(url, model_name="b", probe_set=other, layers=layers)


TOKENS = np.arange(12).reshape(4, 3)
MASK = np.ones_like(TOKENS) - (TOKENS == 2)


@pytest.mark.parametrize(
    ("recorded", "given", "said"),
    [
        ({"input_ids": TOKENS, "attention_mask": MASK}, {"input_ids": TOKENS}, "with an attention_mask: pass it"),
        ({"input_ids": TOKENS}, {"input_ids": TOKENS, "kind": MASK}, "recorded without 'kind': leave it out"),
        ({"input_ids": TOKENS}, {"input_ids": TOKENS.astype("int32")}, "'input_ids' as int64, this one is int32"),
        ({"input_ids": TOKENS}, {"input_ids": TOKENS[::-1]}, "these are the same samples in another order"),
    ],
)
def test_how_inputs_became_others_is_said(url, recorded, given, said):
    names = [f"s{i}" for i in range(4)]
    record(url, "a", StoredProbeSet("a" * 64, names, recorded))
    with pytest.raises(FingerprintError, match=said):
        record(url, "b", StoredProbeSet("b" * 64, names, given))
    with pytest.raises(FingerprintError) as other:
        record(url, "b", StoredProbeSet("b" * 64, names, {"input_ids": TOKENS + 100}))
    assert "; those were" not in str(other.value)
    with pytest.raises(FingerprintError):  # and not a warning of a cast that such values do not survive
        record(url, "b", StoredProbeSet("c" * 64, names, {"input_ids": np.full((4, 3), 1e30)}))


def test_texts_need_not_be_stored(url):
    hidden = replace(encoded("words", 5), texts=None)
    record(url, "bert", hidden)
    record(url, "llama", encoded("bytes", 9))
    tree = ra.open_store(url)
    assert "text" not in tree.coords
    assert tree["sha256"].values.tolist() == list(hidden.text_hashes)
    assert b"three of them" not in b"".join(path.read_bytes() for path in Path(url).rglob("*") if path.is_file())


def test_a_model_keeps_its_inputs(url):
    record(url, "bert", encoded("words", 5))
    with pytest.raises(FingerprintError, match=r"model 'bert'.*tokenizer, max_length"):
        record(url, "bert", encoded("words", 4), steps=(1,))
    record(url, "bert", encoded("words", 5), steps=(1,))
    assert catalog.steps(ra.open_store(url), "bert") == [0, 1]


def test_inputs_added_at_the_same_time_are_all_there(url):
    record(url, "m0", encoded("t", 3))
    lengths = range(4, 10)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda length: record(url, f"m{length}", encoded("t", length)), lengths))
    tree = ra.open_store(url)
    assert [catalog.inputs(tree, f"m{length}").sizes["token"] for length in lengths] == list(lengths)
    assert ra.verify(url, data=True) == []


def test_inputs_that_were_being_added_are_a_leftover(url):
    record(url, "bert", encoded("words", 5))
    record(url, "llama", encoded("bytes", 9))
    group, listing = Path(url, "probe", inputs_key(encoded("bytes", 9).fingerprint)), Path(url, "probe/zarr.json")
    shutil.rmtree(Path(url, "models/llama"))
    document = json.loads(listing.read_text())
    listed = document["consolidated_metadata"]["metadata"]
    for key in [key for key in listed if key.startswith(group.name)]:
        del listed[key]
    listing.write_text(json.dumps(document))
    (group / "zarr.json").unlink()  # the process died before the group was whole
    assert [(problem.kind, problem.location) for problem in ra.verify(url)] == [("leftover", f"probe/{group.name}")]
    assert len(ra.open_store(url)["probe"].children) == 1
    assert [problem.kind for problem in ra.repair(url)] == ["leftover"]
    assert not group.exists()
    record(url, "llama", encoded("bytes", 9))
    assert ra.verify(url, data=True) == []


def test_inputs_that_are_whole_and_not_listed_yet_hide_nothing(url):
    record(url, "bert", encoded("words", 5))
    listing = Path(url, "probe/zarr.json")
    before = listing.read_bytes()
    record(url, "llama", encoded("bytes", 9))
    shutil.rmtree(Path(url, "models/llama"))
    listing.write_bytes(before)  # the process died between the inputs and their commit, or has not come to it
    assert catalog.models(ra.open_store(url)) == ["bert"]
    record(url, "third", encoded("more", 4))
    assert len(ra.open_store(url)["probe"].children) == 2
    assert [problem.kind for problem in ra.verify(url)] == ["misaligned"]
    ra.repair(url)
    assert ra.verify(url, data=True) == []
    assert len(ra.open_store(url)["probe"].children) == 3


def test_a_store_that_lost_the_ids_of_its_samples_is_refused(url):
    record(url, "bert", encoded("words", 5))
    Path(url, "sample/c.0").unlink()
    with pytest.raises(CorruptStoreError, match=r"sample.*missing"):
        ra.open_store(url)


def test_lost_inputs_cost_what_needs_them_and_nothing_else(url, tmp_path):
    record(url, "bert", encoded("words", 5))
    Path(url, "probe", inputs_key(encoded("words", 5).fingerprint), "input_ids/c.0.0").unlink()
    tree = ra.open_store(url)
    assert catalog.activations(tree, "bert", "last").values.shape == (1, 4, 3)
    with pytest.raises(CorruptStoreError, match=r"input_ids.*missing"):
        catalog.inputs(tree, "bert")
    copy_store(url, tmp_path / "copy.zarr")
    assert catalog.lost(ra.open_store(tmp_path / "copy.zarr")) == ["input input_ids of the samples"]
    results = ra.analyze(url, tmp_path / "out", gauge={"knn": 2}, frames=0, units=0, similarity=())
    assert any("geometry of the inputs" in line and "missing" in line for line in results.repaudit.summary["left_out"])
    record(url, "again", encoded("words", 5))  # whoever has the inputs writes what was lost
    assert ra.verify(url, data=True) == []


def test_the_same_inputs_are_the_same_samples_with_or_without_their_texts(url):
    bare = replace(encoded("words", 5), text_hashes=None)
    record(url, "a", bare)
    record(url, "b", encoded("words", 5))
    assert catalog.models(ra.open_store(url)) == ["a", "b"]


def test_a_repair_drops_no_inputs_that_a_model_names(url):
    record(url, "bert", encoded("words", 5))
    record(url, "llama", encoded("bytes", 9))
    group, listing = Path(url, "probe", inputs_key(encoded("bytes", 9).fingerprint)), Path(url, "probe/zarr.json")
    (group / "input_ids/c.0.0").unlink()
    before = listing.read_bytes()
    record(url, "third", encoded("more", 4))
    shutil.rmtree(Path(url, "models/third"))
    listing.write_bytes(before)
    ra.repair(url)
    assert len(ra.open_store(url)["probe"].children) == 3
    listing.unlink()
    ra.repair(url)
    assert (group / "input_ids/zarr.json").exists()


def test_other_labels_are_told(url):
    record(url, "a", encoded("words", 5))
    with pytest.warns(StoreWarning, match=r"sample 'mail 1' is 'spam' there and 'ham' here"):
        record(url, "b", replace(encoded("words", 5), labels=["ham"] * 4))
    assert ra.open_store(url)["label"].values.tolist() == ["ham", "spam"] * 2


@pytest.mark.parametrize("damage", ["listing", "group"])
def test_lost_documents_of_inputs_are_rebuilt(url, damage):
    record(url, "bert", encoded("words", 5))
    record(url, "llama", encoded("bytes", 9))
    group = Path(url, "probe", inputs_key(encoded("bytes", 9).fingerprint))
    (group if damage == "group" else group.parent).joinpath("zarr.json").unlink()
    assert {problem.kind for problem in ra.verify(url)} == {"damaged_metadata"}
    ra.repair(url)
    assert ra.verify(url, data=True) == []
    assert catalog.inputs(ra.open_store(url), "llama").sizes["token"] == 9


def test_a_model_whose_inputs_are_gone_is_named(url):
    record(url, "bert", encoded("words", 5))
    path = Path(url, "models/bert/zarr.json")
    path.write_text(path.read_text().replace(encoded("words", 5).fingerprint, "0" * 64))
    assert any("inputs 000" in problem.message and "'bert'" in problem.message for problem in ra.verify(url))


def test_a_store_of_version_1_goes_on_and_its_copy_is_of_version_2(tmp_path):
    url = tmp_path / "old.zarr"
    shutil.copytree(GOLDEN_1, url)
    tree = ra.open_store(url)
    assert tree.attrs["repaudit"]["version"] == 1
    probe_set = StoredProbeSet(
        tree.attrs["repaudit"]["fingerprint"],
        tree["sample"].values.tolist(),
        {name: array.values for name, array in catalog.inputs(tree).data_vars.items()},
    )
    for step in (10, 30):
        record(url, "seed2", probe_set, steps=[step])
    assert ra.verify(url, data=True) == []
    with pytest.raises(FingerprintError, match="version 1"):
        record(url, "other", encoded("words", 5))
    copy_store(url, tmp_path / "new.zarr")
    new = ra.open_store(tmp_path / "new.zarr")
    assert new.attrs["repaudit"]["version"] == 2
    assert (catalog.steps(new, "seed1"), catalog.steps(new, "seed2")) == ([0, 10, 25], [10, 30])
    assert ra.verify(tmp_path / "new.zarr", data=True) == []
    assert new.attrs["repaudit"]["raw"] == "text"  # its previews were whole, so any tokenizer can read them
    texts = new["text"].values.tolist()
    read = encoded("bytes", 9, texts, ids=new["sample"].values.tolist(), labels=new["label"].values.tolist())
    record(tmp_path / "new.zarr", "other", read)


def test_models_are_copied_into_a_store_that_has_others(tmp_path):
    record(tmp_path / "a.zarr", "bert", encoded("words", 5))
    record(tmp_path / "b.zarr", "llama", encoded("bytes", 9))
    copy_store(tmp_path / "b.zarr", tmp_path / "a.zarr")
    tree = ra.open_store(tmp_path / "a.zarr")
    assert catalog.models(tree) == ["bert", "llama"]
    assert catalog.encoding(tree, "llama")["tokenizer"] == "bytes"
    assert ra.verify(tmp_path / "a.zarr", data=True) == []
    record(tmp_path / "c.zarr", "gpt", encoded("bytes", 9, ["1", "2", "3", "4"]))
    with pytest.raises(FingerprintError, match="mail 0"):
        copy_store(tmp_path / "c.zarr", tmp_path / "a.zarr")


def test_the_characters_of_tokens_lie_beside_the_inputs_and_are_copied(tmp_path):
    plain = encoded("words", 5)
    offsets = np.arange(len(plain) * 5 * 2, dtype=np.int32).reshape(-1, 5, 2)
    probe_set = replace(plain, inputs={**plain.inputs, "offset_mapping": offsets})
    record(tmp_path / "a.zarr", "bert", probe_set)
    assert ra.verify(tmp_path / "a.zarr", data=True) == []
    copy_store(tmp_path / "a.zarr", tmp_path / "b.zarr")
    for name in ("a.zarr", "b.zarr"):
        found = catalog.inputs(ra.open_store(tmp_path / name), "bert")["offset_mapping"]
        assert (found.dims, found.dtype) == (("sample", "token", "start_end"), np.int32)
        np.testing.assert_array_equal(found, offsets)
