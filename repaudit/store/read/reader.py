"""Open a store: lazy, committed steps only, and only a repaudit store of a known version and a believable size."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import xarray as xr
from zarr.storage import FsspecStore, LocalStore

from repaudit.errors import CorruptStoreError
from repaudit.names import ATTRS, CHECKSUM, MODELS, STEP
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import DOCUMENT, dump, read_document
from repaudit.store.format.layout import ABSENT, COLUMNS
from repaudit.store.format.model_facts import step_chunks
from repaudit.store.format.root_document import nothing_there, root_seal, store_attributes
from repaudit.store.format.schema import unbelievable, violations
from repaudit.store.format.seal import broken_seal, unsealed
from repaudit.store.read.guarded_store import GuardedStore
from repaudit.store.read.pinned import PinnedStore
from repaudit.store.read.plain_store import PlainStore
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.place import open_storage
from repaudit.store.storage.remote import RemoteStorage
from repaudit.store.storage.storage import Storage


def open_store(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> xr.DataTree:
    """Open a trajectory store as a lazy tree of datasets.

    ``tree["models/seed0"]["model.layers.3"]`` is a DataArray (step, sample[, token], feature) over dask chunks of one
    step each; sample ids, labels and texts are at the root, the encoded inputs in ``probe``.

    Parameters
    ----------
    url : path or URL
        A local path, or any URL that fsspec knows.
    storage_options : mapping, optional
        Passed to fsspec.

    Returns
    -------
    DataTree
        A node ``models/<name>`` per model, whose layers are variables (step, sample[, token], feature).

    Raises
    ------
    StoreNotFoundError
        If nothing exists there.
    NotAStoreError
        If it is something else than a repaudit store.
    UnknownVersionError
        If its format version is not one that this library reads.
    CorruptStoreError
        If its metadata is damaged.

    See Also
    --------
    repaudit.TrajectoryWriter : Writes a store.
    repaudit.verify : Checks a store.

    Examples
    --------
    >>> import numpy as np
    >>> from repaudit.store.read.stored_probe_set import StoredProbeSet
    >>> from repaudit.store.write.writer import TrajectoryWriter
    >>> probe_set = StoredProbeSet("abc", ["s0", "s1"], {"x": np.eye(2)})
    >>> with TrajectoryWriter("memory://open.zarr", model_name="seed0", probe_set=probe_set,
    ...                       layers={"layer.0": ((2, 3), "float32")}) as writer:
    ...     writer.append(10, {"layer.0": np.ones((2, 3), "float32")})
    >>> open_store("memory://open.zarr")["models/seed0"]["layer.0"].dims
    ('step', 'sample', 'feature')
    """
    storage = open_storage(url, storage_options)
    if store_attributes(storage) is None:
        raise nothing_there(storage)
    pinned: dict[str, bytes] = {}
    arrays: dict[str, Any] = {}
    absent = check_documents(storage, pinned, arrays)
    try:
        folder = storage.root if isinstance(storage, LocalStorage) else None
        guarded = GuardedStore(_zarr_store(storage, url, storage_options), arrays, folder)
        zarr_store: Any = PinnedStore(guarded, pinned)
        tree = xr.open_datatree(zarr_store, engine="zarr", consolidated=False, chunks={})
    except (PermissionError, ConnectionError, TimeoutError, Warning):
        raise
    except Exception as error:  # any part of the store may be damaged
        raise CorruptStoreError(
            f"{storage.url} cannot be opened ({type(error).__name__}: {error}): run `repaudit verify --data`"
        ) from error
    _keep_checksums(tree)
    tree.dataset = tree.to_dataset().assign_coords(_plain_texts(tree))
    for key in absent:  # where they are read, they would be zeros
        group, _, name = key.rpartition("/")
        tree[group].attrs.setdefault(ABSENT, []).append(name)
    return tree


def _plain_texts(tree: xr.DataTree) -> dict[str, xr.DataArray]:
    """Return ids, labels and texts as arrays of ``str``: other libraries do not know NumPy's own type of strings."""
    present = {name: tree.variables[name] for name in COLUMNS if name in tree.variables}
    try:
        return {
            name: xr.DataArray(column.values.astype(object), dims=column.dims, attrs=column.attrs)
            for name, column in present.items()
        }
    except (OSError, ValueError) as error:
        raise CorruptStoreError(
            f"the ids, labels or texts of the samples cannot be read ({error}): run `repaudit verify --data`"
        ) from error


def _keep_checksums(tree: xr.DataTree) -> None:
    """Load the checksums of the tree's steps: chunks replaced after a truncation must not match them."""
    for model in tree.children[MODELS].children.values() if MODELS in tree.children else ():
        with contextlib.suppress(OSError, ValueError):  # damaged ones raise where they are read
            model.variables[CHECKSUM].load(scheduler="synchronous")


def _zarr_store(storage: Storage, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Any:
    """Return the Zarr store of a storage, without remembered listings."""
    if isinstance(storage, LocalStorage):
        return LocalStore(storage.root, read_only=True)
    if isinstance(storage, RemoteStorage) and storage.is_plain:
        return PlainStore(storage)
    store = FsspecStore.from_url(os.fspath(url), storage_options=dict(storage_options or {}), read_only=True)
    store.fs.invalidate_cache()  # an earlier instance would answer from the listings it remembers
    return store


def check_documents(storage: Storage, pinned: dict[str, bytes], arrays: dict[str, Any]) -> list[str]:
    """Refuse metadata that breaks the format, or would make a reader allocate absurd amounts, before anything is read.

    Parameters
    ----------
    storage : Storage
    pinned : dict
        Filled with what is to be read of each model in the version that was checked: its document, and the numbers of
        its steps.
    arrays : dict
        Filled with the documents of the models' arrays, by key.

    Returns
    -------
    list of str
        The keys of the inputs of which chunks are missing.

    Raises
    ------
    CorruptStoreError
        Naming the document and what is wrong with it.
    """
    document = read_document(storage, DOCUMENT) or {}
    attributes = document.get("attributes", {})
    _refuse(storage, DOCUMENT, violations("root", document, version := attributes[ATTRS]["version"]))
    _refuse(storage, DOCUMENT, [wrong] if (wrong := root_seal(document)) else [])
    pinned[DOCUMENT] = dump(unsealed(document))
    root = RootInspection(storage, attributes[ATTRS], attributes.get("coordinates"))
    for problem in root.visible_problems():
        _refuse(storage, problem.location, [problem.message] if problem.remedy is None else [])
        root.assume(problem)  # the rest of the store says what belongs there
        pinned[problem.location] = dump(problem.remedy or {})
    absent = root.absent_chunks()
    for name in absent.keys() & COLUMNS.keys():
        _refuse(storage, name, [f"the {COLUMNS[name]} of every sample is missing"])
    names: dict[str, str] = {}
    for child in storage.children(MODELS):
        key = f"{MODELS}/{child}"
        if child == DOCUMENT or (model := read_document(storage, f"{key}/{DOCUMENT}")) is None:
            lost = child != DOCUMENT and storage.size(f"{key}/{STEP}/{DOCUMENT}") is not None
            _refuse(storage, key, ["its document is missing, and with it the record of its steps"] * lost)
            continue
        _check_model(storage, key, model, version)
        listed = model["consolidated_metadata"]["metadata"]
        arrays |= {f"{key}/{array}": document for array, document in listed.items()}
        name = model["attributes"][ATTRS]["name"]
        if name in names:
            raise CorruptStoreError(
                f"{storage.url}: {names[name]} and {key} are both model {name!r}, expected one group per model: "
                f"move one of them out of the store"
            )
        names[name] = key
        try:
            pinned[f"{key}/{DOCUMENT}"] = dump(unsealed(model))
        except ValueError as error:
            _refuse(storage, f"{key}/{DOCUMENT}", [f"it holds what JSON has not ({error})"])
        pinned |= {f"{key}/{STEP}/{chunk}": data for chunk, data in step_chunks(model).items()}
    return sorted(absent)


def _check_model(storage: Storage, key: str, document: Mapping[str, Any], version: int) -> None:
    path = f"{key}/{DOCUMENT}"
    _refuse(storage, path, violations("model", document, version))
    arrays = document["consolidated_metadata"]["metadata"]
    for name, array in arrays.items():
        reason = unbelievable(array)
        _refuse(storage, path, [f"the metadata of {name} cannot be right: {reason}"] if reason else [])
    committed = document["attributes"][ATTRS]["committed"]
    lengths = {array["shape"][0] for array in arrays.values() if array["dimension_names"][0] == STEP} | {committed}
    _refuse(
        storage, path, [f"the arrays of {key} have {sorted(lengths)} steps, expected one number"] * (len(lengths) > 1)
    )
    _refuse(storage, path, [wrong] if (wrong := broken_seal(document)) else [])


def _refuse(storage: Storage, path: str, reasons: list[str]) -> None:
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise CorruptStoreError(
            f"{storage.url}: {path}: {reasons[0]}{more}; nothing was read, "
            f"run `repaudit verify`, then `repaudit repair`"
        )
