"""The sample set: which samples a store is about, whatever encodes them for a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
