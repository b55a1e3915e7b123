"""What is read of a store before anything else: its documents, checked, and the small arrays that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from repaudit.errors import CorruptStoreError, ForeignPathError, StoreError
from repaudit.names import ATTRS, CHECKSUM, MODELS, PROBE, SAMPLE, SHA256, STEP
from repaudit.store.check.lost_parts import contradicted, damaged_inputs, empty_chunk, is_lost, replaced_columns
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import DOCUMENT, chunk_key, dump, read_document
from repaudit.store.format.keys import model_key
from repaudit.store.format.layout import COLUMNS, LOST
from repaudit.store.format.model_facts import era_of
from repaudit.store.format.root_document import root_seal
from repaudit.store.format.schema import unbelievable, violations
from repaudit.store.format.seal import broken_seal, unsealed
from repaudit.store.read.model_columns import read_columns
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.storage import Storage

_LOOKS: Final = 8
"""Attempts to read a model's coordinates without a truncation or another writer in between."""


@dataclass
class Snapshot:
    """What was read, of one version.

    Attributes
    ----------
    pinned : dict
        Objects by key, in the place of those in the store.
    arrays : dict
        The documents of the models' arrays, by key.
    absent : list of str
        The keys of the inputs of which chunks are missing or damaged.
    lost : dict
        By key of a group, the columns of which values are missing because they were lost.
    unreadable : dict
        By key of a model that is left out, why.
    """

    pinned: dict[str, bytes] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def take_snapshot(storage: Storage) -> Snapshot:
    """Read and check the documents: none may break the format, or make a reader allocate absurd amounts.

    A model whose document is damaged is left out, if another one can be read.

    Raises
    ------
    CorruptStoreError
        Naming the document and what is wrong with it.
    """
    snapshot = Snapshot()
    document = read_document(storage, DOCUMENT) or {}
    attributes = document.get("attributes", {})
    refuse(storage, DOCUMENT, violations("root", document, version := attributes[ATTRS]["version"]))
    refuse(storage, DOCUMENT, [wrong] if (wrong := root_seal(document)) else [])
    snapshot.pinned[DOCUMENT] = dump(unsealed(document))
    root = RootInspection(storage, attributes[ATTRS], attributes.get("coordinates"))
    for problem in root.visible_problems():
        refuse(storage, problem.location, [problem.message] if problem.remedy is None else [])
        root.assume(problem)  # the rest of the store says what belongs there
        snapshot.pinned[problem.location] = dump(problem.remedy or {})
    _take_samples(snapshot, root, attributes[ATTRS])
    _take_inputs(snapshot, root)
    _take_models(snapshot, storage, version)
    return snapshot


def _take_samples(snapshot: Snapshot, root: RootInspection, facts: Mapping[str, Any]) -> None:
    if root.samples is not None and isinstance(wrong := root.texts(SAMPLE), str):
        raise CorruptStoreError(
            f"{root.storage.url}: the ids of the samples cannot be read: {SAMPLE}/{chunk_key(0)}: {wrong}; they "
            "have no second copy: restore that file from a backup"
        )
    if SAMPLE in contradicted(root, facts):
        raise CorruptStoreError(
            f"{root.storage.url}: {SAMPLE}/{chunk_key(0)} or {SHA256}/{chunk_key(0)}: the ids of the samples or their "
            "hashes are not those that the store was made of, and have no second copy: restore them from a backup"
        )
    recorded = facts.get(LOST)
    lost = set(COLUMNS) & {name for name in recorded if isinstance(name, str)} if isinstance(recorded, list) else set()
    for name, (data, is_gone) in replaced_columns(root, facts).items():
        snapshot.pinned[f"{name}/{chunk_key(0)}"] = b"".join(data)
        lost |= {name} if is_gone else set()
    if lost:
        snapshot.lost[""] = sorted(lost)


def _take_inputs(snapshot: Snapshot, root: RootInspection) -> None:
    listed, damaged = root.listed_inputs(), damaged_inputs(root, every=False)
    for key, chunks in damaged.items():
        empty = b"".join(empty_chunk(listed[key]))
        snapshot.pinned |= {f"{PROBE}/{key}/{chunk}": empty for chunk in chunks}
    gone = damaged.keys() | {key for key, array in listed.items() if is_lost(array)}
    snapshot.absent = sorted(f"{PROBE}/{key}" for key in gone)


def _take_models(snapshot: Snapshot, storage: Storage, version: int) -> None:
    names: dict[str, list[str]] = {}
    for child in storage.children(MODELS):
        key = f"{MODELS}/{child}"
        if child == DOCUMENT:
            continue
        try:
            name = _take_model(snapshot, storage, key, version)
        except (CorruptStoreError, ForeignPathError) as error:
            snapshot.unreadable[key] = str(error)
            continue
        except OSError as error:  # a bad sector, or somebody's rights; of a service it may pass
            if not isinstance(storage, LocalStorage):
                raise
            snapshot.unreadable[key] = f"{storage.url}: {key} cannot be read now ({error})"
            continue
        if name is not None:
            names.setdefault(name, []).append(key)
    for name, keys in names.items():
        if len(keys) > 1:
            _leave_out_copies(snapshot, storage, name, keys)
    if snapshot.unreadable and not names:
        raise CorruptStoreError(next(iter(snapshot.unreadable.values())))


def _leave_out_copies(snapshot: Snapshot, storage: Storage, name: str, keys: list[str]) -> None:
    """Leave out the groups that hold another model's document; the one whose key is the name's is that model."""
    both = f"{storage.url}: {' and '.join(keys)} are both model {name!r}, expected one group per model"
    if model_key(name) not in keys:
        raise CorruptStoreError(f"{both}: move one of them out of the store")
    for key in keys:
        if key != model_key(name):
            for found in (snapshot.pinned, snapshot.arrays, snapshot.lost):
                for path in [path for path in found if path == key or path.startswith(f"{key}/")]:
                    del found[path]
            snapshot.unreadable[key] = f"{both}, and this one has another's document"


def _take_model(snapshot: Snapshot, storage: Storage, key: str, version: int) -> str | None:
    """Take a model's document and coordinates of one version, and return its name; None where there is no model."""
    path = f"{key}/{DOCUMENT}"
    document = read_document(storage, path)
    for _ in range(_LOOKS):
        if document is None:
            lost = storage.size(f"{key}/{STEP}/{DOCUMENT}") is not None or bool(storage.children(f"{key}/{CHECKSUM}"))
            refuse(storage, key, ["its document is missing, and with it the record of its steps"] * lost)
            return None
        try:
            dump(document)
        except ValueError as error:
            refuse(storage, path, [f"it holds what JSON has not ({error})"])
        _check_model(storage, key, document, version)
        bare = dump(unsealed(document))
        chunks, lost_columns = read_columns(storage, key, document)
        later = read_document(storage, path)
        if later is not None and era_of(later) == era_of(document):
            break
        document = later
    else:
        raise StoreError(f"{storage.url}: {key} kept changing while it was read: open the store again")
    facts = document["attributes"][ATTRS]
    snapshot.pinned[path] = bare
    snapshot.pinned |= {f"{key}/{chunk}": data for chunk, data in chunks.items()}
    snapshot.arrays |= {f"{key}/{name}": array for name, array in document["consolidated_metadata"]["metadata"].items()}
    if lost_columns:
        snapshot.lost[key] = lost_columns
    return str(facts["name"])


def _check_model(storage: Storage, key: str, document: Mapping[str, Any], version: int) -> None:
    path = f"{key}/{DOCUMENT}"
    refuse(storage, path, violations("model", document, version))
    arrays = document["consolidated_metadata"]["metadata"]
    for name, array in arrays.items():
        reason = unbelievable(array)
        refuse(storage, path, [f"the metadata of {name} cannot be right: {reason}"] if reason else [])
    committed = document["attributes"][ATTRS]["committed"]
    lengths = {array["shape"][0] for array in arrays.values() if array["dimension_names"][0] == STEP} | {committed}
    refuse(
        storage, path, [f"the arrays of {key} have {sorted(lengths)} steps, expected one number"] * (len(lengths) > 1)
    )
    refuse(storage, path, [wrong] if (wrong := broken_seal(document)) else [])


def refuse(storage: Storage, path: str, reasons: list[str]) -> None:
    """Raise CorruptStoreError with the first reason, if there is one."""
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise CorruptStoreError(
            f"{storage.url}: {path}: {reasons[0]}{more}; nothing was read, "
            f"run `repaudit verify`, then `repaudit repair`"
        )
