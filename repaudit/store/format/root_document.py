"""The root document: whether a place holds a store of ours, and of which version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repaudit.errors import NotAStoreError, StoreError, StoreNotFoundError, UnknownVersionError
from repaudit.names import ATTRS, FORMAT_VERSION
from repaudit.store.format.documents import DOCUMENT, read_document
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.storage import Storage


def store_attributes(storage: Storage) -> dict[str, Any] | None:
    """Give the root's own attributes, or None where there is no Zarr v3 group.

    Raises
    ------
    NotAStoreError
        If a Zarr hierarchy is there that is not ours.
    UnknownVersionError
        If the store has a format version that this library does not know.
    """
    document = read_document(storage, DOCUMENT)
    if document is None:
        return None
    attributes = document.get("attributes")
    own = attributes.get(ATTRS) if isinstance(attributes, dict) else None
    if document.get("node_type") != "group" or not isinstance(own, dict) or "version" not in own:
        raise NotAStoreError(f"{storage.url} is a Zarr hierarchy, but not a repaudit store: no attribute {ATTRS!r}.")
    if own["version"] != FORMAT_VERSION:
        raise UnknownVersionError(
            f"{storage.url} has format version {own['version']!r}; this repaudit reads version {FORMAT_VERSION}. "
            f"Use a repaudit that knows it."
        )
    return own


def nothing_there(storage: Storage) -> StoreError:
    """The error for a place without a root document: nothing at all, or something else."""
    if storage.children() or (isinstance(storage, LocalStorage) and Path(storage.url).exists()):
        return NotAStoreError(f"{storage.url} is no repaudit store: expected a Zarr group, whose root has a zarr.json.")
    return StoreNotFoundError(f"There is no store at {storage.url}.")
