"""Open a store: lazy, committed steps only, and only if it is ours, of a known version and of believable size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import xarray as xr

from repaudit.errors import CorruptStoreError
from repaudit.names import MODELS, PROBE, STEP
from repaudit.schema import unbelievable
from repaudit.store.layout import DOCUMENT
from repaudit.store.local import LocalStorage
from repaudit.store.place import open_storage
from repaudit.store.root import nothing_there, read_document, store_attributes
from repaudit.store.storage import Storage


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
    place = storage.url if isinstance(storage, LocalStorage) else os.fspath(url)
    options = None if isinstance(storage, LocalStorage) else dict(storage_options or {})
    return xr.open_datatree(place, engine="zarr", consolidated=False, chunks={}, storage_options=options)


def check_documents(storage: Storage) -> None:
    """Refuse metadata that would make a reader allocate absurd amounts, before anything is opened."""
    for name in storage.children():
        document = read_document(storage, f"{name}/{DOCUMENT}")
        if document is not None and document.get("node_type") == "array":
            _refuse_unbelievable(storage, name, document)
    for key in [PROBE, *(f"{MODELS}/{name}" for name in storage.children(MODELS) if name != DOCUMENT)]:
        document = read_document(storage, f"{key}/{DOCUMENT}")
        if document is None:
            continue
        consolidated = document.get("consolidated_metadata")
        arrays = consolidated.get("metadata") if isinstance(consolidated, dict) else None
        if not isinstance(arrays, dict):
            raise CorruptStoreError(
                f"{storage.url}: {key}/{DOCUMENT} has no consolidated metadata, so no committed record."
            )
        for name, array in arrays.items():
            _refuse_unbelievable(storage, f"{key}/{name}", array)
        lengths = {array["shape"][0] for array in arrays.values() if (array.get("dimension_names") or [])[:1] == [STEP]}
        if len(lengths) > 1:
            raise CorruptStoreError(
                f"{storage.url}: the arrays of {key} have {sorted(lengths)} steps, expected one number. "
                f"Run `repaudit verify`, then `repaudit repair`."
            )


def _refuse_unbelievable(storage: Storage, key: str, document: Mapping[str, Any]) -> None:
    reason = unbelievable(document)
    if reason is not None:
        raise CorruptStoreError(f"{storage.url}: the metadata of {key} cannot be right: {reason}. Nothing was read.")
