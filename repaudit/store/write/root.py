"""The root of a store: one probe set, written once, before any model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from repaudit.errors import (
    FingerprintError,
    LeaseError,
    NotAStoreError,
    ProbeSetError,
)
from repaudit.names import ATTRS, FORMAT_VERSION, LABEL, MODELS, PROBE, SAMPLE, TEXT, TOKEN, encode_name
from repaudit.store.format.documents import DOCUMENT, chunk_key, column_document, dump, group_document
from repaudit.store.format.encoding import CHUNK_BYTES, encode_column
from repaudit.store.format.layout import LEASE, ProbeSetLike
from repaudit.store.format.provenance import now, package_versions
from repaudit.store.format.root_document import store_attributes
from repaudit.store.storage.lease import Holder, Lease
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.storage import Parts, Storage

ROOT_WAIT: Final = 60.0
"""Seconds to wait for another process that is just creating the store."""

_KINDS: Final = {"f": "NaN", "i": 0, "u": 0, "b": False}


def ensure_root(storage: Storage, probe_set: ProbeSetLike, *, wait: float = ROOT_WAIT) -> dict[str, Any]:
    """Create the store for a probe set, or check that an existing one was created with the same probe set."""
    if isinstance(storage, LocalStorage) and storage.root.exists() and not storage.root.is_dir():
        raise NotAStoreError(f"{storage.url} is a file: expected a Zarr folder, or a new path")
    deadline = time.monotonic() + wait
    while (attributes := store_attributes(storage)) is None:
        try:
            lease = Lease(storage, f"{PROBE}/{LEASE}", f"the new store {storage.url}")
        except LeaseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        try:
            if store_attributes(storage) is None:
                _refuse_foreign(storage)
                _create_root(storage, probe_set)
        finally:
            lease.release()
    if attributes.get("fingerprint") != probe_set.fingerprint:
        raise FingerprintError(
            f"{storage.url} was created with the probe set {attributes.get('fingerprint')}, this one is "
            f"{probe_set.fingerprint}: one store holds one probe set; record the same inputs, or use another store"
        )
    lease_data = storage.get(f"{PROBE}/{LEASE}")
    if lease_data is not None and Holder.parse(lease_data).stale:  # its process died before it released it
        storage.delete(f"{PROBE}/{LEASE}")
    return attributes


def _refuse_foreign(storage: Storage) -> None:
    """Refuse a folder that holds other files."""
    expected = {PROBE, MODELS, SAMPLE, LABEL, TEXT}
    foreign = [name for name in storage.children() if name not in expected]
    if foreign:
        raise NotAStoreError(
            f"{storage.url} exists and is not a repaudit store: it holds {', '.join(map(repr, foreign[:5]))}, "
            f"expected an empty folder or a new path"
        )


def _create_root(storage: Storage, probe_set: ProbeSetLike) -> None:
    """Write the probe set and, last of all, the root document that makes it a store."""
    objects: dict[str, Parts] = {}
    strings = {SAMPLE: probe_set.ids, LABEL: probe_set.labels, TEXT: probe_set.texts}
    for name, texts in strings.items():
        if texts is not None:
            column = np.array([str(text) for text in texts], dtype=object)
            if len(column) != len(probe_set):
                raise FingerprintError(f"the probe set has {len(probe_set)} samples, but {len(column)} of {name!r}")
            _add_array(objects, name, column, (SAMPLE,), {"long_name": name})
    optional = [name for name in (LABEL, TEXT) if strings[name] is not None]
    described = {"coordinates": " ".join(optional)} if optional else {}
    inputs: dict[str, dict[str, Any]] = {}
    arrays = {name: np.asarray(values) for name, values in probe_set.arrays().items()}
    for name, values in arrays.items():
        key = encode_name(name)
        dimensions = probe_dimensions(name, arrays)
        inputs[key] = _add_array(objects, f"{PROBE}/{key}", values, dimensions, {"long_name": name, "input": name})
    objects[f"{PROBE}/{DOCUMENT}"] = [dump(group_document({}, inputs))]
    objects[f"{MODELS}/{DOCUMENT}"] = [dump(group_document({}))]
    storage.put_many(objects)
    attributes = {
        "version": FORMAT_VERSION,
        "fingerprint": probe_set.fingerprint,
        "samples": len(probe_set),
        "created": now(),
        "versions": package_versions(),
    }
    storage.put(DOCUMENT, [dump(group_document({ATTRS: attributes, **described}))])


def _add_array(
    objects: dict[str, Parts], key: str, values: NDArray[Any], dimensions: tuple[str, ...], attributes: dict[str, Any]
) -> dict[str, Any]:
    """Add a whole array with its document, in chunks of whole samples."""
    text = values.dtype.kind == "O"
    if not text:
        values = _storable(key, values)
    fill = "" if text else _KINDS[values.dtype.kind]
    data_type = "string" if text else values.dtype.name
    rows = len(values) if text else min(len(values), max(1, CHUNK_BYTES // max(1, values[:1].nbytes)))
    document = column_document(values.shape, data_type, (rows, *values.shape[1:]), dimensions, fill, attributes)
    objects[f"{key}/{DOCUMENT}"] = [dump(document)]
    for start in range(0, len(values), rows):
        chunk = f"{key}/{chunk_key(start // rows, *(0 for _ in values.shape[1:]))}"
        objects[chunk] = encode_column(values[start : start + rows], rows, "" if text else 0)
    return document


def _storable(key: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return an input as Zarr can hold it; bfloat16 as float32, exactly."""
    if values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
    if values.dtype.kind not in _KINDS or 0 in values.shape:
        raise ProbeSetError(
            f"{key} has dtype {values.dtype} and shape {values.shape}: expected numbers, one or more per sample"
        )
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def probe_dimensions(name: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """Return the dimensions of one input: `token` where all two-dimensional integer inputs share one length.

    Examples
    --------
    >>> probe_dimensions("input_ids", {"input_ids": np.zeros((2, 5), int)})
    ('sample', 'token')
    """
    values = arrays[name]
    lengths = {other.shape[1] for other in arrays.values() if other.ndim == 2 and other.dtype.kind in "iub"}
    if values.ndim == 2 and lengths == {values.shape[1]}:
        return (SAMPLE, TOKEN)
    return (SAMPLE, *(f"{encode_name(name)}_{axis}" for axis in range(1, values.ndim)))
