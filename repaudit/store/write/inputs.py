"""The encoded inputs of a store: one group per encoding of its samples, added while models are being written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repaudit.errors import CorruptStoreError, FingerprintError, ProbeSetError
from repaudit.names import PROBE, SAMPLE, TOKEN, encode_name
from repaudit.store.format.documents import (
    DOCUMENT,
    FILLS,
    chunk_key,
    column_document,
    dump,
    group_document,
    is_chunk,
    read_document,
)
from repaudit.store.format.encoding import CHUNK_BYTES, encode_column
from repaudit.store.format.layout import INPUTS_FINGERPRINT, LEASE, LOST, OFFSETS, START_END, ProbeSetLike
from repaudit.store.format.sample_set import inputs_key
from repaudit.store.storage.fenced import Fenced
from repaudit.store.storage.storage import Parts, Storage
from repaudit.store.write.retrying import lease_within


def ensure_inputs(storage: Storage, probe_set: ProbeSetLike, wait: float) -> None:
    """Add a probe set's inputs to a store of the same samples, unless it has them whole.

    The arrays come first; the commit is one put of the group that lists all inputs.
    """
    if _has(storage, probe_set):
        return
    lease = lease_within(wait, storage, f"{PROBE}/{LEASE}", f"the inputs of {storage.url}")
    try:
        if not _has(storage, probe_set):
            objects, documents = encoded_inputs(probe_set)
            fenced = Fenced(storage, lease)
            fenced.put_many(objects)
            fenced.put(f"{PROBE}/{DOCUMENT}", [dump(group_document({}, {**_listed(storage), **documents}))])
    finally:
        lease.release()


def encoded_inputs(probe_set: ProbeSetLike) -> tuple[dict[str, Parts], dict[str, dict[str, Any]]]:
    """Return the objects of a probe set's inputs by key, and their documents by key below the group of all inputs."""
    arrays = {name: np.asarray(values) for name, values in probe_set.arrays().items()}
    group = inputs_key(probe_set.fingerprint)
    objects: dict[str, Parts] = {}
    documents = {group: group_document({INPUTS_FINGERPRINT: probe_set.fingerprint})}
    for name, values in arrays.items():
        key = f"{group}/{encode_name(name)}"
        attributes: dict[str, Any] = {"long_name": name, "input": name}
        attributes |= {LOST: True} if name in lost_inputs(probe_set) else {}
        documents[key] = add_array(objects, f"{PROBE}/{key}", values, probe_dimensions(name, arrays), attributes)
    own = {key.partition("/")[2]: document for key, document in documents.items() if key != group}
    objects[f"{PROBE}/{group}/{DOCUMENT}"] = [dump(group_document(documents[group]["attributes"], own))]
    return objects, documents


def _listed(storage: Storage) -> dict[str, Any]:
    try:
        document = read_document(storage, f"{PROBE}/{DOCUMENT}")
        return dict(document["consolidated_metadata"]["metadata"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStoreError(
            f"{storage.url}: the list of its inputs cannot be read ({error}): run `repaudit repair`"
        ) from error


def lost_inputs(probe_set: ProbeSetLike) -> frozenset[str]:
    """Return the names of the inputs of which a probe set, which was read from a damaged store, lacks values."""
    return frozenset(getattr(probe_set, "lost_inputs", ()))


def _has(storage: Storage, probe_set: ProbeSetLike) -> bool:
    """Return whether a store has inputs, whole: lost chunks of them can be written again by who has the inputs."""
    fingerprint = probe_set.fingerprint
    listed, group = _listed(storage), inputs_key(fingerprint)
    if group not in listed:
        return False
    found = listed[group]["attributes"].get(INPUTS_FINGERPRINT)
    if found != fingerprint:
        raise FingerprintError(
            f"{storage.url}: expected inputs with the fingerprint {fingerprint} under {group!r}, found {found}; record "
            "into another store"
        )
    arrays = {key: document for key, document in listed.items() if key.startswith(f"{group}/")}
    if lost_inputs(probe_set):
        return True  # what it lacks is no better than what is there
    return all(
        _chunks(document) == _present(storage, key) and LOST not in document["attributes"]
        for key, document in arrays.items()
    )


def _chunks(document: Mapping[str, Any]) -> int:
    rows: int = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    return int(-(-document["shape"][0] // rows))


def _present(storage: Storage, key: str) -> int:
    return sum(is_chunk(name) for name in storage.children(f"{PROBE}/{key}"))


def add_array(
    objects: dict[str, Parts], key: str, values: NDArray[Any], dimensions: tuple[str, ...], attributes: dict[str, Any]
) -> dict[str, Any]:
    """Add a whole array with its document, in chunks of whole samples; return the document."""
    text = values.dtype.kind == "O"
    if not text:
        values = _storable(key, values)
    fill = "" if text else FILLS[values.dtype.kind]
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
    if values.dtype.kind not in FILLS or 0 in values.shape:
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
    if name == OFFSETS and values.ndim == 3 and lengths == {values.shape[1]}:
        return (SAMPLE, TOKEN, START_END)
    return (SAMPLE, *(f"{encode_name(name)}_{axis}" for axis in range(1, values.ndim)))
