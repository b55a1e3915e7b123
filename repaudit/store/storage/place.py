"""From a path or URL to the storage behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from repaudit.errors import StoreNotFoundError
from repaudit.extras import require
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.remote import RemoteStorage
from repaudit.store.storage.s3 import S3Storage
from repaudit.store.storage.storage import Storage


def open_storage(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, durable: bool = True
) -> Storage:
    """Return the storage behind a path or an fsspec URL; nothing is created or read yet.

    Parameters
    ----------
    url : path or URL
        A local path, or anything fsspec knows (``file://``, ``memory://``, ``s3://``).
    storage_options : mapping, optional
        Passed to the fsspec file system.
    durable : bool
        Whether writes to local disks are forced to the device (fsync) before they count.

    Raises
    ------
    StoreNotFoundError
        If the path is empty, or fsspec does not know the URL.
    MissingPartError
        If s3fs is not installed.

    Examples
    --------
    >>> open_storage("memory://doc").get("zarr.json") is None
    True
    """
    text = os.fspath(url)
    if not text:
        raise StoreNotFoundError("expected the path or URL of a store, found an empty text")
    if "://" not in text and "::" not in text:
        return LocalStorage(Path(os.path.expanduser(text)), durable=durable)  # noqa: PTH111 - keeps an unknown ~name
    try:
        filesystem, path = url_to_fs(text, **without_listings(text, storage_options))
    except (ConnectionError, PermissionError, TimeoutError):
        raise
    except Exception as error:  # every file system has errors of its own for what is not its kind
        if isinstance(error, ImportError) and text.startswith("s3"):
            require(text, "s3fs")
        raise StoreNotFoundError(f"{text} cannot be opened: {type(error).__name__}: {error}") from error
    if isinstance(filesystem, LocalFileSystem):
        return LocalStorage(Path(path), durable=durable)
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return (S3Storage if "s3" in protocols else RemoteStorage)(filesystem, path, text)


def without_listings(url: str, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of a file system that remembers no listings, where it would read by them.

    s3fs looks in them for an object that it is to read: one that another writer has made since a listing was asked for
    would be missing until the next.

    Examples
    --------
    >>> without_listings("s3://bucket/run.zarr", {"anon": True})
    {'anon': True, 'use_listings_cache': False}
    """
    given = dict(storage_options or {})
    return given | {"use_listings_cache": False} if url.startswith(("s3://", "s3a://")) else given


def location(storage: Storage) -> str:
    """Return where a storage is, the same for all paths and URLs that lead there.

    Examples
    --------
    >>> location(open_storage("~/run.zarr")) == location(open_storage(f"file://{Path.home()}/run.zarr"))
    True
    """
    return os.path.realpath(storage.url) if isinstance(storage, LocalStorage) else storage.url.rstrip("/")
