"""The root document: whether a path or URL is a repaudit store, and of which version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from repaudit.errors import CorruptStoreError, NotAStoreError, StoreError, StoreNotFoundError, UnknownVersionError
from repaudit.names import ATTRS, FORMAT_VERSION, beside
from repaudit.store.format.documents import DOCUMENT, read_document
from repaudit.store.format.seal import broken_seal
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.storage import Storage

_SUMMARY: Final = "summary"
"""An attribute of the results of an analysis."""


def store_attributes(storage: Storage) -> dict[str, Any] | None:
    """Return the root's repaudit attributes, or None where there is no Zarr v3 group.

    Raises
    ------
    NotAStoreError
        If the path or URL is another Zarr hierarchy.
    UnknownVersionError
        If the store has a format version that this library does not know.
    """
    document = read_document(storage, DOCUMENT)
    if document is None:
        return None
    attributes = document.get("attributes")
    local = attributes.get(ATTRS) if isinstance(attributes, dict) else None
    if document.get("node_type") != "group" or not isinstance(local, dict) or "version" not in local:
        what = f"a Zarr hierarchy, not a repaudit store: expected attribute {ATTRS!r}"
        if isinstance(attributes, dict) and _SUMMARY in attributes:
            what = "the results of an analysis, not a store: read them with xarray.open_datatree(path, engine='zarr')"
        raise NotAStoreError(f"{storage.url} is {what}")
    if type(local["version"]) is not int or not 1 <= local["version"] <= FORMAT_VERSION:
        raise UnknownVersionError(
            f"{storage.url} has format version {local['version']!r}, this repaudit reads versions up to "
            f"{FORMAT_VERSION}: use a repaudit that knows it"
        )
    return local


def root_seal(document: Mapping[str, Any]) -> str | None:
    """Return in words that the root document does not match its checksum, which does not cover what others add to it.

    Examples
    --------
    >>> root_seal({"attributes": {}, "consolidated_metadata": {}}) is None
    True
    """
    return broken_seal({name: part for name, part in document.items() if name != "consolidated_metadata"})


def refuse_broken(storage: Storage) -> None:
    """Refuse a root document that does not match its checksum.

    Raises
    ------
    CorruptStoreError
        Saying what to do.
    """
    wrong = root_seal(read_document(storage, DOCUMENT) or {})
    if wrong is not None:
        raise CorruptStoreError(f"{storage.url}: {DOCUMENT}: {wrong}; run `repaudit verify`, then `repaudit repair`")


def nothing_there(storage: Storage) -> StoreError:
    """Return the error for a place without a root document: nothing at all, or something else."""
    if storage.children() or (isinstance(storage, LocalStorage) and Path(storage.url).exists()):
        analysis = ": is it the folder of an analysis? Its results are in results.zarr" if _has_results(storage) else ""
        return NotAStoreError(
            f"{storage.url} is not a repaudit store: expected a Zarr group with a zarr.json{analysis}"
        )
    like = beside(Path(storage.url), _is_group) if isinstance(storage, LocalStorage) else ""
    return StoreNotFoundError(f"there is no store at {storage.url}{f'; did you mean {like}?' if like else ''}")


def _has_results(storage: Storage) -> bool:
    return isinstance(storage, LocalStorage) and _is_group(Path(storage.url, "results.zarr"))


def _is_group(folder: Path) -> bool:
    return (folder / DOCUMENT).is_file()
