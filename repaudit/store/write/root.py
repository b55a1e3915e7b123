"""The root of a store: one sample set, written once, before any model."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Final

import numpy as np

from repaudit.errors import CorruptStoreError, FingerprintError, LeaseError, NotAStoreError, StoreWarning
from repaudit.main_guard import refuse_without_guard
from repaudit.names import ATTRS, FORMAT_VERSION, LABEL, MODELS, PROBE, SAMPLE, SHA256, TEXT
from repaudit.store.format.documents import DOCUMENT, chunk_key, dump, group_document
from repaudit.store.format.encoding import decode_column
from repaudit.store.format.layout import COLUMNS, LEASE, ProbeSetLike
from repaudit.store.format.provenance import now, package_versions
from repaudit.store.format.root_document import refuse_broken, store_attributes
from repaudit.store.format.sample_set import SampleSet, why_other_inputs
from repaudit.store.format.seal import seal
from repaudit.store.storage.fenced import Fenced
from repaudit.store.storage.lease import Holder, Lease, abandoned
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.storage import Parts, Storage, is_staged
from repaudit.store.write.foreign import foreign_models, foreign_parts, refuse_inside
from repaudit.store.write.inputs import add_array, encoded_inputs, ensure_inputs
from repaudit.store.write.retrying import lease_within

ROOT_WAIT: Final = 60.0
"""Seconds to wait for another process that is just creating the store, or adding inputs to it."""


def ensure_root(storage: Storage, probe_set: ProbeSetLike, *, wait: float = ROOT_WAIT) -> dict[str, Any]:
    """Create the store for a probe set, or check that an existing one is about the same samples; return its attributes.

    Inputs that encode the samples in a way that the store does not have yet are added to it. A store of version 1 has
    one probe set, and takes no other inputs.

    Raises
    ------
    FingerprintError
        The store is about other samples; the message names the first difference.
    SystemExit
        The process only imports the script that started it.
    NotAStoreError, UnknownVersionError, LeaseError
        There is something else, or another process does not get done with it.
    """
    refuse_without_guard(f"recording to {storage.url}")
    if isinstance(storage, LocalStorage) and storage.root.exists() and not storage.root.is_dir():
        raise NotAStoreError(f"{storage.url} is a file: expected a Zarr folder, or a new path")
    while (attributes := store_attributes(storage)) is None:
        refuse_inside(storage)
        _refuse_foreign(storage)  # before anything is put there
        lease = lease_within(wait, storage, f"{PROBE}/{LEASE}", f"the new store {storage.url}")
        try:
            if store_attributes(storage) is None:
                _refuse_foreign(storage)
                fenced = Fenced(storage, lease)
                _clear_attempt(fenced)
                _create_root(fenced, probe_set)
        finally:
            lease.release()
    refuse_broken(storage)
    if attributes["version"] == 1:
        _refuse_other_inputs(storage, attributes, probe_set)
    else:
        _refuse_other_samples(storage, attributes, probe_set)
        ensure_inputs(storage, probe_set, wait)
    _clear_dead(storage)
    return attributes


def _clear_dead(storage: Storage) -> None:
    """Remove what processes that died left in the group of inputs: a lease, unfinished files."""
    holder = Holder.read(storage, f"{PROBE}/{LEASE}")
    if holder is not None and holder.stale:
        with contextlib.suppress(LeaseError):  # another one is taking it over
            Lease(storage, f"{PROBE}/{LEASE}", f"the inputs of {storage.url}").release()
    for name in storage.children(PROBE):
        if is_staged(name) and abandoned(name):
            storage.delete_prefix(f"{PROBE}/{name}")
            storage.delete(f"{PROBE}/{name}")


def _clear_attempt(storage: Storage) -> None:
    """Remove what a creation that was interrupted left: it may have been about other samples."""
    for name in COLUMNS:
        storage.delete_prefix(name)
    for name in storage.children(PROBE):
        if not name.startswith("."):
            storage.delete_prefix(f"{PROBE}/{name}")
            storage.delete(f"{PROBE}/{name}")


def _refuse_other_inputs(storage: Storage, attributes: dict[str, Any], probe_set: ProbeSetLike) -> None:
    if attributes.get("fingerprint") != probe_set.fingerprint:
        raise FingerprintError(
            f"{storage.url} was created with the probe set {attributes.get('fingerprint')}, this one is "
            f"{probe_set.fingerprint}: a store of format version 1 holds one probe set; record the same inputs, use "
            "another store, or bring this one to the present version (repaudit copy)"
        )


def _refuse_other_samples(storage: Storage, attributes: dict[str, Any], probe_set: ProbeSetLike) -> None:
    here = SampleSet.of(probe_set)
    if attributes.get("samples_fingerprint") == here.fingerprint:
        _warn_of_other_labels(storage, probe_set)
        return
    ids, hashes = (_column(storage, name) for name in (SAMPLE, SHA256))
    if attributes.get("raw") == "inputs" and attributes.get("fingerprint") == probe_set.fingerprint and ids == here.ids:
        return  # the same inputs, which this probe set knows the texts of
    there = SampleSet(ids, hashes, attributes.get("raw", "inputs"), str(attributes.get("fingerprint")))
    why = why_other_inputs(there, probe_set)
    raise FingerprintError(
        f"{storage.url} holds other samples: {there.difference(here)}{f'; {why}' * bool(why)} (it was created with the "
        f"probe set {attributes.get('fingerprint')}, this one is {probe_set.fingerprint}); one store holds one sample "
        "set: record the same samples, or use another store"
    )


def _warn_of_other_labels(storage: Storage, probe_set: ProbeSetLike) -> None:
    if probe_set.labels is None:
        return
    there, here = _column(storage, LABEL), [str(label) for label in probe_set.labels]
    if there == here or (storage.children(LABEL) and not any(there)):  # the same, or lost
        return
    first = next((index for index, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0)
    has = f"{there[first]!r}" if there else "none"
    warnings.warn(
        f"{storage.url} keeps its own labels: the one of sample {probe_set.ids[first]!r} is {has} there and "
        f"{here[first]!r} here",
        StoreWarning,
        stacklevel=4,
    )


def _column(storage: Storage, name: str) -> list[str]:
    data = storage.get(f"{name}/{chunk_key(0)}")
    try:
        return [str(value) for value in decode_column(data, np.dtype(object))] if data is not None else []
    except Exception:  # noqa: BLE001 - a damaged chunk may fail anywhere in the decoder
        return []


def _refuse_foreign(storage: Storage) -> None:
    """Refuse a folder that holds other files."""
    expected = {PROBE, MODELS, *COLUMNS}
    foreign = [name for name in storage.children() if name not in expected]
    foreign += foreign_models(storage) + foreign_parts(storage)
    if foreign and store_attributes(storage) is None:  # else another process has made the store meanwhile
        raise NotAStoreError(
            f"{storage.url} exists and is not a repaudit store: it holds {', '.join(map(repr, foreign[:5]))}, "
            f"expected an empty folder or a new path"
        )
    models = [name for name in storage.children(MODELS) if name != DOCUMENT]
    if models and store_attributes(storage) is None:  # else another process has just created it
        raise CorruptStoreError(
            f"{storage.url} holds models ({', '.join(map(repr, models[:5]))}), but its root document is lost: restore "
            f"{DOCUMENT} from a backup, or record into another store"
        )


def _create_root(storage: Storage, probe_set: ProbeSetLike) -> None:
    """Write the samples, their inputs and, last of all, the root document that makes it a store."""
    sample_set = SampleSet.of(probe_set)
    objects: dict[str, Parts] = {}
    strings = {SAMPLE: probe_set.ids, LABEL: probe_set.labels, TEXT: probe_set.texts, SHA256: sample_set.hashes}
    for name, texts in strings.items():
        if texts is not None:
            column = np.array([str(text) for text in texts], dtype=object)
            if len(column) != len(probe_set):
                raise FingerprintError(f"the probe set has {len(probe_set)} samples, but {len(column)} of {name!r}")
            add_array(objects, name, column, (SAMPLE,), {"long_name": COLUMNS[name]})
    inputs, documents = encoded_inputs(probe_set)
    objects |= inputs
    objects[f"{PROBE}/{DOCUMENT}"] = [dump(group_document({}, documents))]
    objects[f"{MODELS}/{DOCUMENT}"] = [dump(group_document({}))]
    storage.put_many(objects)
    attributes = {
        "version": FORMAT_VERSION,
        "samples_fingerprint": sample_set.fingerprint,
        "raw": sample_set.raw,
        "fingerprint": probe_set.fingerprint,
        "samples": len(probe_set),
        "created": now(),
        "versions": package_versions(),
    }
    described = " ".join(name for name, texts in strings.items() if texts is not None and name != SAMPLE)
    storage.put(DOCUMENT, [seal(group_document({ATTRS: attributes, "coordinates": described}))])
