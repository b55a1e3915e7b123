"""The sample set: which samples a store is about, whatever encodes them for a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from repaudit.names import encode_name
from repaudit.store.format.layout import ProbeSetLike

PREVIEW_1: Final = 200
"""Characters of a text that a store of version 1 keeps: a shorter one is whole."""

Raw: TypeAlias = Literal["text", "inputs"]
"""What a sample is before any model reads it: a text, or where there is none the inputs themselves."""


@dataclass(frozen=True)
class SampleSet:
    """Ids of the samples, the SHA-256 of what each is, and the fingerprint over both.

    Examples
    --------
    >>> SampleSet(["a"], ["0" * 64], "text").fingerprint[:12]
    'a8530ea4b027'
    """

    ids: Sequence[str]
    hashes: Sequence[str]
    raw: Raw
    inputs_fingerprint: str = ""

    @classmethod
    def of(cls, probe_set: ProbeSetLike) -> SampleSet:
        """Return the sample set of a probe set: of its texts, or where it has none of its inputs."""
        hashes = getattr(probe_set, "text_hashes", None)
        ids = [str(name) for name in probe_set.ids]
        if hashes is not None:
            return cls(ids, [str(one) for one in hashes], "text")
        known = getattr(probe_set, "input_hashes", None)
        rows = row_hashes(probe_set.arrays(), len(ids)) if known is None else [str(one) for one in known]
        return cls(ids, rows, "inputs", probe_set.fingerprint)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids and raw inputs, in hexadecimal."""
        content = [self.raw, self.inputs_fingerprint, list(zip(self.ids, self.hashes, strict=True))]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def difference(self, other: SampleSet) -> str:
        """Say in words where another sample set first differs from this one.

        Examples
        --------
        >>> SampleSet(["a", "b"], ["0", "1"], "text").difference(SampleSet(["a", "c"], ["0", "1"], "text"))
        "sample 1 is 'b' there and 'c' here"
        """
        for index, (there, here) in enumerate(zip(self.ids, other.ids, strict=False)):
            if there != here:
                return f"sample {index} is {there!r} there and {here!r} here"
        if len(self.ids) != len(other.ids):
            return f"there are {len(self.ids)} samples there and {len(other.ids)} here"
        if self.raw != other.raw:
            return f"its samples are known by their {self.raw} there and by their {other.raw} here"
        for name, there, here in zip(self.ids, self.hashes, other.hashes, strict=False):
            if there != here:
                return f"sample {name!r} holds another {'text' if self.raw == 'text' else 'input'} there than here"
        return "the inputs differ in their names or types"


MASK: Final = "attention_mask"
MOST_TRIED: Final = 64
"""Samples, one of which is whole: its mask is of ones."""


def why_other_inputs(there: SampleSet, probe_set: ProbeSetLike) -> str:
    """Say how the inputs of a probe set became others than those of a sample set: a mask, an order, a type.

    Empty where that is not one of these, or the samples are known by their texts.

    Examples
    --------
    >>> from repaudit.store.read.stored_probe_set import StoredProbeSet
    >>> ids = np.arange(6).reshape(2, 3)
    >>> with_mask = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    >>> there = SampleSet.of(StoredProbeSet("a", ["s0", "s1"], with_mask))
    >>> why_other_inputs(there, StoredProbeSet("b", ["s0", "s1"], {"input_ids": ids}))
    'those were recorded with an attention_mask: pass it, too'
    """
    here = SampleSet.of(probe_set)
    if there.raw != "inputs" or here.raw != "inputs" or not there.hashes or not here.hashes:
        return ""
    if list(there.hashes) == list(here.hashes):
        return "these are the same samples under other ids: pass the recorded ids"
    if sorted(there.hashes) == sorted(here.hashes):
        return "these are the same samples in another order: pass them in the order of the recorded ones"
    arrays = {name: np.asarray(values)[:MOST_TRIED] for name, values in probe_set.arrays().items()}
    rows, known = min(MOST_TRIED, len(here.hashes)), set(there.hashes)
    with np.errstate(all="ignore"):  # a type that does not hold the values is not the one
        return next((said for said, other in _variants(arrays) if known & set(row_hashes(other, rows))), "")


def _variants(arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, Mapping[str, NDArray[Any]]]]:
    """Yield what inputs may have been, each with what to do about it."""
    for name, values in arrays.items():
        if MASK not in arrays and values.ndim == 2 and values.dtype.kind in "iu":
            for kind in ("int64", "bool", "float32"):
                yield f"those were recorded with an {MASK}: pass it, too", {**arrays, MASK: np.ones_like(values, kind)}
        rest = {other: array for other, array in arrays.items() if other != name}
        if rest:
            yield f"those were recorded without {name!r}: leave it out", rest
        for kind in ("int64", "int32", "float32", "float64", "float16", "bool"):
            if kind != str(values.dtype):
                said = f"those were recorded with {name!r} as {kind}, this one is {values.dtype}: pass it so"
                yield said, {**arrays, name: values.astype(kind)}


def row_hashes(arrays: Mapping[str, NDArray[Any]], count: int) -> list[str]:
    """Return the SHA-256 of the inputs of so many samples, which lie along the first dim of every array.

    Examples
    --------
    >>> one, other = row_hashes({"x": np.array([[1, 2], [1, 3]])}, 2)
    >>> one == other
    False
    """
    named = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    kinds = {name: f"{name}\0{values.dtype}\0{values.shape[1:]}\0".encode() for name, values in named.items()}
    hashes = []
    for index in range(count):
        digest = hashlib.sha256()
        for name, values in named.items():
            digest.update(kinds[name])
            digest.update(values[index].tobytes())
        hashes.append(digest.hexdigest())
    return hashes


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, lone surrogates as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def inputs_key(fingerprint: str) -> str:
    """Return the key of a set of encoded inputs among those of a store.

    Examples
    --------
    >>> inputs_key("0123456789abcdef0123")
    '0123456789abcdef'
    """
    return encode_name(fingerprint[:16])
