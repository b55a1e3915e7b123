"""What of the samples and their inputs is damaged, and what takes its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repaudit.names import PROBE, SAMPLE, SHA256, TEXT
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import chunk_key
from repaudit.store.format.encoding import checksum, encode_column
from repaudit.store.format.layout import LOST
from repaudit.store.format.sample_set import SampleSet, text_hash
from repaudit.store.storage.storage import Parts

_CRC_BYTES = 4


def replaced_columns(root: RootInspection, facts: Mapping[str, Any]) -> dict[str, tuple[Parts, bool]]:
    """Return, for each damaged column of the samples but their ids, a chunk in its place, and whether values are lost.

    Hashes of texts are computed again; labels and texts become empty.
    """
    found = {}
    other = contradicted(root, facts)
    for name in root.coordinates:
        if name == SAMPLE or root.samples is None or (isinstance(root.texts(name), list) and name not in other):
            continue
        values = _hashes(root, facts) if name == SHA256 else None
        column = np.array(values or [], dtype=object)
        found[name] = encode_column(column, root.samples, ""), values is None
    return found


def contradicted(root: RootInspection, facts: Mapping[str, Any]) -> set[str]:
    """Return the columns that can be read, but are not those that the fingerprint of the samples was made of.

    `sample` stands for ids or hashes of which nothing tells which of them it is.
    """
    ids, hashes, known = root.texts(SAMPLE), root.texts(SHA256), facts.get("samples_fingerprint")
    gone = facts.get(LOST, ())
    if not isinstance(ids, list) or not isinstance(hashes, list) or not isinstance(known, str) or SHA256 in gone:
        return set()
    raw: Any = facts.get("raw")
    read = "" if raw == "text" else str(facts.get("fingerprint"))
    texts = root.texts(TEXT) if raw == "text" and TEXT in root.coordinates and TEXT not in gone else None
    again = [text_hash(text) for text in texts] if isinstance(texts, list) else None
    if SampleSet(ids, hashes, raw, read).fingerprint == known:
        return {TEXT} if again not in (None, hashes) else set()
    return {SHA256} if again is not None and SampleSet(ids, again, raw, read).fingerprint == known else {SAMPLE}


def _hashes(root: RootInspection, facts: Mapping[str, Any]) -> list[str] | None:
    """Return the hashes of the texts, where these prove to be those that the store was made of."""
    ids, texts = root.texts(SAMPLE), root.texts(TEXT)
    if facts.get("raw") != "text" or not isinstance(ids, list) or not isinstance(texts, list):
        return None
    hashes = [text_hash(text) for text in texts]
    return hashes if SampleSet(ids, hashes, "text").fingerprint == facts.get("samples_fingerprint") else None


def damaged_inputs(root: RootInspection, *, every: bool) -> dict[str, list[str]]:
    """Return the chunks that are missing of each input, or damaged; unless `every` is read, of small inputs only."""
    found = {key: list(_damaged(root, key, array, every=every)) for key, array in root.listed_inputs().items()}
    return {key: chunks for key, chunks in found.items() if chunks}


def _damaged(root: RootInspection, key: str, array: Mapping[str, Any], *, every: bool) -> Iterator[str]:
    count = -(-array["shape"][0] // array["chunk_grid"]["configuration"]["chunk_shape"][0])
    present = set(root.storage.children(f"{PROBE}/{key}"))
    for chunk in range(count):
        name = chunk_key(chunk, *(0 for _ in array["shape"][1:]))
        if name not in present or ((every or count == 1) and not is_whole(root, f"{PROBE}/{key}/{name}", array)):
            yield name


def is_whole(root: RootInspection, path: str, array: Mapping[str, Any]) -> bool:
    """Return whether a chunk of an input has its size and matches its own checksum."""
    try:
        if root.storage.size(path) != root.chunk_bytes(array):
            return False
        data = root.storage.get(path) or b""
    except OSError:
        if root.certain:
            raise
        return False
    return checksum(data[:-_CRC_BYTES]).to_bytes(_CRC_BYTES, "little") == data[-_CRC_BYTES:]


def empty_chunk(array: Mapping[str, Any]) -> Parts:
    """Return a chunk of an input without values: NaN, or 0 where the dtype has none that is missing."""
    rows, *rest = array["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(array["data_type"]).newbyteorder("<")
    return encode_column(np.empty((0, *rest), dtype), rows, np.nan if dtype.kind == "f" else 0)


def is_lost(array: Mapping[str, Any]) -> bool:
    """Return whether a document of an input says that values of it were lost."""
    return array["attributes"].get(LOST) is True
