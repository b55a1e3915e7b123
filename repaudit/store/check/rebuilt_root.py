"""A root document that is damaged, made again from the samples and inputs that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from repaudit.errors import CorruptStoreError, NotAStoreError, UnknownVersionError
from repaudit.names import ATTRS, FORMAT_VERSION, LABEL, MODELS, PROBE, SAMPLE, SHA256, TEXT
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import DOCUMENT, chunk_key, group_document, read_document
from repaudit.store.format.encoding import decode_column
from repaudit.store.format.layout import COLUMNS, INPUTS_FINGERPRINT, LOST, OFFSETS
from repaudit.store.format.provenance import now
from repaudit.store.format.root_document import root_seal, store_attributes
from repaudit.store.format.sample_set import SampleSet, inputs_key, row_hashes
from repaudit.store.format.seal import SEAL
from repaudit.store.storage.storage import Storage

_UNCONFIRMED: Final = ("created", "versions")


def attributes_of(storage: Storage) -> dict[str, Any] | None:
    """Return the root's repaudit attributes, or None where there is neither a Zarr group nor what is left of a store.

    Raises
    ------
    CorruptStoreError
        If the root document is lost, and the rest of the store says that there was one.
    NotAStoreError, UnknownVersionError
        If the path or URL is something else, or a store that this library does not know.
    """
    if is_lost(storage):
        raise CorruptStoreError(
            f"{storage.url}: {DOCUMENT} is missing or damaged beyond reading, but the samples and inputs that it is "
            "about are there: run `repaudit repair`, which makes it again"
        )
    return store_attributes(storage)


def is_lost(storage: Storage) -> bool:
    """Return whether nothing can be read of the root document, in a place where the rest of a store of version 2 is.

    The document is what makes a store: without it and without models there is an attempt at creation that died.
    """
    try:
        return store_attributes(storage) is None and _has_models(storage) and _has_samples(storage)
    except UnknownVersionError:
        document = read_document(storage, DOCUMENT) or {}
        document["attributes"][ATTRS]["version"] = FORMAT_VERSION
        return SEAL in document["attributes"] and root_seal(document) is None
    except (CorruptStoreError, NotAStoreError):
        return _has_samples(storage)


def _has_models(storage: Storage) -> bool:
    return any(storage.size(f"{MODELS}/{name}/{DOCUMENT}") is not None for name in storage.children(MODELS))


def _has_samples(storage: Storage) -> bool:
    ids = _texts(storage, SAMPLE)
    return bool(ids) and len(ids) == len(_texts(storage, SHA256)) and bool(_encodings(storage))


def rebuilt_root(storage: Storage, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the root document that the rest of a store of version 2 determines, and what is left of its `facts`.

    When and with what the store was created is told nowhere else: it stays as it is, and the document says that it
    could not be confirmed.

    Raises
    ------
    CorruptStoreError
        If the ids or hashes of the samples are lost as well.
    """
    ids, hashes = (_texts(storage, name) for name in (SAMPLE, SHA256))
    encodings = _encodings(storage)
    if not _has_samples(storage):
        raise CorruptStoreError(
            f"{storage.url}: {DOCUMENT} is damaged, and so is what it could be made of again (the ids and hashes of "
            f"the samples, and {PROBE}/{DOCUMENT}): restore one of them from a backup"
        )
    fingerprint = min(encodings, key=lambda one: _distance(one, str(facts.get("fingerprint"))))
    told = fingerprint == facts.get("fingerprint") or len(encodings) == 1
    sets = [_sample_set(ids, hashes, raw, fingerprint) for raw in _raws(storage, facts, fingerprint)]
    known = [one for one in sets if one.fingerprint == facts.get("samples_fingerprint")]
    samples = (known or sets)[0]
    present = [name for name in COLUMNS if name != SAMPLE and storage.children(name)]
    lost = {name for name in (LABEL, TEXT) if name in present and not any(_texts(storage, name) or [True])}
    rebuilt = {
        "version": FORMAT_VERSION,
        "samples_fingerprint": samples.fingerprint,
        "raw": samples.raw,
        "fingerprint": fingerprint,
        "samples": len(ids),
        "created": facts.get("created", "unknown"),
        "versions": facts.get("versions", {}),
        "repaired": now(),
        "unconfirmed": [*_UNCONFIRMED, *([] if told else ["fingerprint"])],
        **({LOST: sorted(lost)} if lost else {}),
    }
    return group_document({ATTRS: rebuilt, "coordinates": " ".join(present)})


def _raws(storage: Storage, facts: Mapping[str, Any], fingerprint: str) -> list[Any]:
    """Return what the samples may be: first what the document says, else what their hashes prove to be hashes of."""
    raw = facts.get("raw")
    if raw not in {"text", "inputs"}:
        raw = "inputs" if _texts(storage, SHA256) == _input_hashes(storage, fingerprint) else "text"
    return ["inputs", "text"] if raw == "inputs" else ["text", "inputs"]


def _input_hashes(storage: Storage, fingerprint: str) -> list[str]:
    """Return the hashes of the samples by their inputs in one encoding, or none where an input cannot be read."""
    facts = {"version": FORMAT_VERSION, "samples": len(_texts(storage, SAMPLE))}
    root = RootInspection(storage, facts, None, certain=True)
    listed = {
        key: array for key, array in root.listed_inputs().items() if key.startswith(f"{inputs_key(fingerprint)}/")
    }
    try:
        arrays = {str(array["attributes"]["input"]): _input(storage, key, array) for key, array in listed.items()}
    except (ValueError, CorruptStoreError):
        return []
    return row_hashes({name: array for name, array in arrays.items() if name != OFFSETS}, root.samples or 0)


def _input(storage: Storage, key: str, array: Mapping[str, Any]) -> NDArray[Any]:
    rows, *rest = array["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(array["data_type"]).newbyteorder("<")
    names = [chunk_key(chunk, *(0 for _ in rest)) for chunk in range(-(-array["shape"][0] // rows))]
    parts = [decode_column(storage.get(f"{PROBE}/{key}/{name}") or b"", dtype) for name in names]
    flat = np.array([value for part in parts for value in part], dtype)
    return flat.reshape(-1, *rest)[: array["shape"][0]]


def _sample_set(ids: Sequence[str], hashes: Sequence[str], raw: Any, fingerprint: str) -> SampleSet:
    return SampleSet(ids, hashes, raw, fingerprint if raw == "inputs" else "")


def _texts(storage: Storage, name: str) -> list[str]:
    try:
        return [str(text) for text in decode_column(storage.get(f"{name}/{chunk_key(0)}") or b"", np.dtype(object))]
    except (OSError, MemoryError):  # it may be whole
        raise
    except Exception:  # noqa: BLE001 - a damaged chunk may fail anywhere in the decoder
        return []


def _encodings(storage: Storage) -> list[str]:
    """Return the fingerprints of the listed inputs."""
    try:
        document = read_document(storage, f"{PROBE}/{DOCUMENT}") or {}
        listed = document["consolidated_metadata"]["metadata"].values()
        return [one["attributes"][INPUTS_FINGERPRINT] for one in listed if one["node_type"] == "group"]
    except (CorruptStoreError, KeyError, TypeError, AttributeError):
        return []


def _distance(one: str, other: str) -> int:
    """Return at how many places two texts differ."""
    return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
