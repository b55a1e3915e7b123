"""Open a store: lazy, committed steps only, and only if it is ours, of a known version and of believable size."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import xarray as xr
from zarr.storage import FsspecStore

from repaudit.errors import CorruptStoreError
from repaudit.names import ATTRS, CHECKSUM, MODELS, STEP
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import DOCUMENT, read_document
from repaudit.store.format.root_document import nothing_there, store_attributes
from repaudit.store.format.schema import unbelievable, violations
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.place import open_storage
from repaudit.store.storage.storage import Storage


def open_store(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> xr.DataTree:
    """Open a trajectory store as a lazy tree of datasets.

    ``tree["models/seed0"]["model.layers.3"]`` is a DataArray (step, sample[, token], feature) over dask chunks of one
    step each; sample ids, labels and text previews are at the root.

    Parameters
    ----------
    url : path or URL
        A local path, or any URL that fsspec knows.
    storage_options : mapping, optional
        Handed to fsspec.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, UnknownVersionError, CorruptStoreError
    """
    storage = open_storage(url, storage_options)
    if store_attributes(storage) is None:
        raise nothing_there(storage)
    check_documents(storage)
    try:
        place = _zarr_store(storage, url, storage_options)
        tree = xr.open_datatree(place, engine="zarr", consolidated=False, chunks={})
    except (PermissionError, ConnectionError, TimeoutError, Warning):
        raise
    except Exception as error:  # what it reads was there a moment ago: any part of it may be damaged
        raise CorruptStoreError(
            f"{storage.url} cannot be opened ({type(error).__name__}: {error}). Run `repaudit verify --data`."
        ) from error
    _keep_checksums(tree)
    return tree


def _keep_checksums(tree: xr.DataTree) -> None:
    """Hold the checksums of the steps that the tree names: chunks replaced after a truncation must not fit them."""
    for model in tree.children[MODELS].children.values() if MODELS in tree.children else ():
        with contextlib.suppress(OSError, ValueError):  # damaged ones are told of where they are asked for
            model.variables[CHECKSUM].load(scheduler="synchronous")


def _zarr_store(storage: Storage, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Any:
    """Give what xarray opens: a path, or a Zarr store that sees what is there now."""
    if isinstance(storage, LocalStorage):
        return storage.url
    store = FsspecStore.from_url(os.fspath(url), storage_options=dict(storage_options or {}), read_only=True)
    store.fs.invalidate_cache()  # a file system that was here before would answer from the listings it remembers
    return store


def check_documents(storage: Storage) -> None:
    """Refuse metadata that breaks the format, or would make a reader allocate absurd amounts, before all else."""
    document = read_document(storage, DOCUMENT) or {}
    _refuse(storage, DOCUMENT, violations("root", document))
    attributes = document["attributes"]
    root = RootInspection(storage, attributes[ATTRS], attributes.get("coordinates"))
    for problem in root.visible_problems():
        _refuse(storage, problem.location, [problem.message])
    names: dict[str, str] = {}
    for child in storage.children(MODELS):
        key = f"{MODELS}/{child}"
        if child == DOCUMENT or (model := read_document(storage, f"{key}/{DOCUMENT}")) is None:
            lost = child != DOCUMENT and storage.size(f"{key}/{STEP}/{DOCUMENT}") is not None
            _refuse(storage, key, ["its document is missing, and with it the record of its steps"] * lost)
            continue
        _check_model(storage, key, model)
        name = model["attributes"][ATTRS]["name"]
        if name in names:
            raise CorruptStoreError(
                f"{storage.url}: {names[name]} and {key} are both model {name!r}: expected one group a model. "
                f"Move one of them out of the store."
            )
        names[name] = key


def _check_model(storage: Storage, key: str, document: Mapping[str, Any]) -> None:
    place = f"{key}/{DOCUMENT}"
    _refuse(storage, place, violations("model", document))
    arrays = document["consolidated_metadata"]["metadata"]
    for name, array in arrays.items():
        reason = unbelievable(array)
        _refuse(storage, place, [f"the metadata of {name} cannot be right: {reason}"] if reason else [])
    committed = document["attributes"][ATTRS]["committed"]
    lengths = {array["shape"][0] for array in arrays.values() if array["dimension_names"][0] == STEP} | {committed}
    _refuse(
        storage, place, [f"the arrays of {key} have {sorted(lengths)} steps, expected one number"] * (len(lengths) > 1)
    )


def _refuse(storage: Storage, place: str, found: list[str]) -> None:
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CorruptStoreError(
            f"{storage.url}: {place}: {found[0]}{more}. Nothing was read. "
            f"Run `repaudit verify`, then `repaudit repair`."
        )
