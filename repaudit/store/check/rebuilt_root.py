"""A root document that is damaged, made again from the samples and inputs that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from repaudit.errors import CorruptStoreError
from repaudit.names import ATTRS, FORMAT_VERSION, PROBE, SAMPLE, SHA256
from repaudit.store.format.documents import DOCUMENT, chunk_key, group_document, read_document
from repaudit.store.format.encoding import decode_column
from repaudit.store.format.layout import COLUMNS, INPUTS_FINGERPRINT
from repaudit.store.format.provenance import now
from repaudit.store.format.sample_set import SampleSet
from repaudit.store.storage.storage import Storage

_UNCONFIRMED: Final = ("created", "versions")


def rebuilt_root(storage: Storage, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the root document that the rest of a store of version 2 determines.

    When and with what the store was created is told nowhere else: it stays as it is, and the document says that it
    could not be confirmed.

    Raises
    ------
    CorruptStoreError
        If the ids or hashes of the samples are lost as well.
    """
    facts = document["attributes"][ATTRS]
    ids, hashes = (_texts(storage, name) for name in (SAMPLE, SHA256))
    encodings = _encodings(storage)
    if not ids or len(ids) != len(hashes) or not encodings:
        raise CorruptStoreError(
            f"{storage.url}: {DOCUMENT} is damaged, and so is what it could be made of again (the ids and hashes of "
            f"the samples, and {PROBE}/{DOCUMENT}): restore one of them from a backup"
        )
    fingerprint = min(encodings, key=lambda one: _distance(one, str(facts.get("fingerprint"))))
    sets = [_sample_set(ids, hashes, raw, fingerprint) for raw in _raws(facts)]
    known = [one for one in sets if one.fingerprint == facts.get("samples_fingerprint")]
    samples = (known or sets)[0]
    rebuilt = {
        "version": FORMAT_VERSION,
        "samples_fingerprint": samples.fingerprint,
        "raw": samples.raw,
        "fingerprint": fingerprint,
        "samples": len(ids),
        "created": facts.get("created", "unknown"),
        "versions": facts.get("versions", {}),
        "repaired": now(),
        "unconfirmed": list(_UNCONFIRMED),
    }
    present = [name for name in COLUMNS if name != SAMPLE and storage.children(name)]
    return group_document({ATTRS: rebuilt, "coordinates": " ".join(present)})


def _raws(facts: Mapping[str, Any]) -> list[Any]:
    """Return what the samples may be, first what the document says."""
    return ["inputs", "text"] if facts.get("raw") == "inputs" else ["text", "inputs"]


def _sample_set(ids: Sequence[str], hashes: Sequence[str], raw: Any, fingerprint: str) -> SampleSet:
    return SampleSet(ids, hashes, raw, fingerprint if raw == "inputs" else "")


def _texts(storage: Storage, name: str) -> list[str]:
    try:
        return [str(text) for text in decode_column(storage.get(f"{name}/{chunk_key(0)}") or b"", np.dtype(object))]
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
