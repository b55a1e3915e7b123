"""The probe set: what it holds, what it refuses, what its fingerprint depends on."""

import copy
import hashlib
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from repaudit import ActivationExtractor, ProbeSet
from repaudit.errors import ProbeSetError

WORDS = ["<pad>", "<unk>", "a", "b", "c", "d", "e"]


def make_tokenizer(**options):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_characters_of_tokens_are_kept_beside_the_inputs(side):
    probe_set = ProbeSet.from_texts(["a bb c", "d"], make_tokenizer(pad_token="<pad>", padding_side=side))
    padding = [[0, 0], [0, 0]]
    short = [*padding, [0, 1]] if side == "left" else [[0, 1], *padding]
    assert probe_set.arrays()["offset_mapping"].tolist() == [[[0, 1], [2, 4], [5, 6]], short]
    names = {"input_ids", "attention_mask", "token_type_ids"}
    assert set(probe_set.inputs) <= names >= set(next(probe_set.batches(2)))
    assert ProbeSet.from_tensors(probe_set.inputs).fingerprint == probe_set.fingerprint
    assert probe_set.select(1, 2).arrays()["offset_mapping"].tolist() == [short]
    cut = ProbeSet.from_texts(["a bb c"], make_tokenizer(pad_token="<pad>"), max_length=2)
    assert cut.arrays()["offset_mapping"].tolist() == [[[0, 1], [2, 4]]]


def test_a_tokenizer_that_does_not_tell_the_characters_of_its_tokens_is_not_asked():
    def tokenizer(texts, truncation, max_length=None):
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    probe_set = ProbeSet.from_texts(["a bb c", "d"], tokenizer)
    assert (probe_set.offsets, probe_set.select(0, 1).offsets) == (None, None)
    assert set(probe_set.arrays()) == {"input_ids", "attention_mask"}


def test_fingerprint_depends_on_inputs_alone():
    ids, mask = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 1], [1, 0]])
    base = ProbeSet.from_tensors({"input_ids": ids, "attention_mask": mask}).fingerprint
    assert len(base) == 64
    assert ProbeSet.from_tensors({"attention_mask": mask, "input_ids": ids}).fingerprint == base
    assert ProbeSet.from_tensors({"input_ids": ids, "attention_mask": mask}, ["x", "y"], ["p", "q"]).fingerprint == base
    others = [
        {"input_ids": ids + 1, "attention_mask": mask},
        {"input_ids": ids.int(), "attention_mask": mask},
        {"input_ids": ids},
        {"other": ids, "attention_mask": mask},
        {"input_ids": ids.flip(0), "attention_mask": mask.flip(0)},
    ]
    assert len({base, *(ProbeSet.from_tensors(other).fingerprint for other in others)}) == 6


def test_inputs_are_copied():
    ids = torch.tensor([[1, 2], [3, 4]])
    probe_set = ProbeSet.from_tensors({"input_ids": ids})
    before = copy.deepcopy(probe_set.arrays())
    ids.zero_()
    np.testing.assert_array_equal(probe_set.arrays()["input_ids"], before["input_ids"])


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([0, 1]), [torch.tensor(0), torch.tensor(1)], np.array([0, 1]), [np.int32(0), 1], [b"0", b"1"]],
)
def test_labels_and_ids_of_any_kind_are_the_texts_they_stand_for(labels):
    probe_set = ProbeSet.from_tensors({"x": torch.eye(2)}, ids=labels, labels=labels)
    assert probe_set.ids == probe_set.labels == ["0", "1"]


@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.float64("nan"), torch.tensor(float("nan")), Decimal("nan"), pd.NA, pd.NaT]
)
@pytest.mark.parametrize("what", ["ids", "labels"])
def test_a_missing_label_is_no_class(what, missing):
    with pytest.raises(ProbeSetError, match=f"{what}: sample 1 has none"):
        ProbeSet.from_tensors({"x": torch.eye(2)}, **{what: ["a", missing]})


@pytest.mark.parametrize("what", ["ids", "labels", "texts"])
def test_half_a_surrogate_pair_is_refused_by_its_sample(what):
    given = {"ids": ["0", "1"], "texts": ["a", "b"], what: ["a", "b\ud800"]}
    with pytest.raises(ProbeSetError, match=f"{what}: sample 1: character 1"):
        ProbeSet({"x": torch.eye(2)}, **given)


@pytest.mark.parametrize("wrong", [torch.zeros(2), np.zeros((1, 3)), b"\xff\xfe"])
def test_a_label_is_one_value(wrong):
    with pytest.raises(ProbeSetError, match="labels: sample 1"):
        ProbeSet.from_tensors({"x": torch.eye(2)}, labels=["a", wrong])


def test_arguments_in_each_others_place_are_told():
    with pytest.raises(
        ProbeSetError, match=r"texts: expected a sequence of strings, one per sample, found PreTrained|Tok"
    ):
        ProbeSet.from_texts(make_tokenizer(pad_token="<pad>"), ["a b"])
    tokenizer = make_tokenizer(pad_token="<pad>")
    for tokenized in (tokenizer(["a b", "b"]), {"input_ids": [[1, 2]]}):  # whose names would be two texts
        with pytest.raises(ProbeSetError, match=r"texts: expected a sequence of strings, .* found (BatchEnc|dict)"):
            ProbeSet.from_texts(tokenized, tokenizer)
    probe_set, model = ProbeSet.from_tensors({"x": torch.eye(2)}), torch.nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match="expected a torch module and a ProbeSet, in this order, found ProbeSet and Lin"
    ):
        ActivationExtractor("[*]").extract(probe_set, model)


def test_texts_are_known_whole_whether_they_are_kept_or_not():
    tokenizer, long = make_tokenizer(pad_token="<pad>"), "a b " * 200
    kept = ProbeSet.from_texts([long, "c d e"], tokenizer, max_length=3)
    hidden = ProbeSet.from_texts([long, "c d e"], tokenizer, max_length=3, store_texts=False)
    assert kept.texts == [long, "c d e"]
    assert hidden.texts is None
    assert kept.text_hashes == hidden.text_hashes == [hashlib.sha256(text.encode()).hexdigest() for text in kept.texts]
    assert kept.encoding == hidden.encoding
    assert (kept.encoding["max_length"], kept.encoding["truncated"]) == (3, 1)
    assert "; 1 text cut to 3 tokens; " in repr(kept)
    assert kept.select(1, 2).text_hashes == kept.text_hashes[1:]


def test_the_hash_of_a_tokenizer_is_of_its_rules():
    hashes = {
        ProbeSet.from_texts(["a b"], make_tokenizer(pad_token="<pad>", **options)).encoding["tokenizer_sha256"]
        for options in ({}, {"padding_side": "left"})
    }
    assert len(hashes) == 1
    other = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS[::-1])}, unk_token="<unk>"))
    changed = PreTrainedTokenizerFast(tokenizer_object=other, pad_token="<pad>")
    assert ProbeSet.from_texts(["a b"], changed).encoding["tokenizer_sha256"] not in hashes


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_on_the_tokenizers_side(side):
    tokenizer = make_tokenizer(pad_token="<pad>", padding_side=side)
    probe_set = ProbeSet.from_texts(["a b c d e", "b"], tokenizer, max_length=3, labels=[1, 2])
    expected = [[2, 3, 4], [0, 0, 3] if side == "left" else [3, 0, 0]]
    assert probe_set.inputs["input_ids"].tolist() == expected
    assert probe_set.inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1] if side == "left" else [1, 0, 0]]
    assert (probe_set.padding_side, probe_set.labels, probe_set.texts) == (side, ["1", "2"], ["a b c d e", "b"])


def test_tokenizer_without_padding_token_is_left_as_it_is():
    tokenizer = make_tokenizer(eos_token="e")
    probe_set = ProbeSet.from_texts(["a b", "c"], tokenizer)
    assert tokenizer.pad_token is None
    assert probe_set.inputs["input_ids"].tolist() == [[2, 3], [4, WORDS.index("e")]]
    assert probe_set.inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({}, {}, "at least one sample"),
        ({"x": torch.zeros(0, 3)}, {}, "at least one sample"),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(3)}, {}, "one length over samples"),
        ({"x": torch.tensor(1.0)}, {}, "scalar"),
        ({"x": torch.tensor([[0.0], [float("nan")]])}, {}, "sample 1 holds NaN"),
        ({"x": torch.zeros(2, 3)}, {"ids": ["a", "a"]}, "'a' occurs more than once"),
        ({"x": torch.zeros(2, 3)}, {"labels": ["a"]}, "labels: expected one per sample, 2 in all, found 1"),
        ({"attention_mask": torch.tensor([[1, 1], [0, 0]])}, {}, r"samples \[1\] have no unmasked token"),
        ({"attention_mask": torch.tensor([[1, 2]])}, {}, "zeros and ones"),
        ({"x": "text"}, {}, "expected a tensor over samples, found str"),
    ],
)
def test_bad_inputs_are_refused(tensors, options, message):
    with pytest.raises(ProbeSetError, match=message):
        ProbeSet.from_tensors(tensors, **options)


def test_bad_texts_are_refused():
    tokenizer = make_tokenizer(pad_token="<pad>")
    with pytest.raises(ProbeSetError, match="no unmasked token"):
        ProbeSet.from_texts(["a", ""], tokenizer)
    with pytest.raises(ProbeSetError, match="sequence of strings"):
        ProbeSet.from_texts("a b c", tokenizer)
    with pytest.raises(ProbeSetError, match="no texts"):
        ProbeSet.from_texts([], tokenizer)


def test_batches_and_selections_keep_order():
    probe_set = ProbeSet.from_tensors({"x": torch.arange(7)}, labels=list("abcdefg"))
    assert [batch["x"].tolist() for batch in probe_set.batches(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    part = probe_set.select(2, 4)
    assert (part.ids, part.labels, part.inputs["x"].tolist()) == (["2", "3"], ["c", "d"], [2, 3])
    with pytest.raises(ValueError, match="at least 1"):
        next(probe_set.batches(0))


@pytest.mark.parametrize("make", [ProbeSet, ProbeSet.from_tensors])
def test_a_bare_tensor_is_told_from_a_mapping(make):
    with pytest.raises(ProbeSetError, match=r"inputs: expected a mapping .* found Tensor"):
        make(torch.eye(3))


def test_a_string_is_no_sequence_of_labels():
    with pytest.raises(ProbeSetError, match="labels: expected a sequence, one per sample, found the string 'abc'"):
        ProbeSet.from_tensors({"x": torch.eye(3)}, labels="abc")
