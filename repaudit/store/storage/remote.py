"""A store behind an fsspec URL: objects appear whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec.archive import AbstractArchiveFileSystem

from repaudit.errors import ForeignPathError, StoreError
from repaudit.store.storage.storage import Fence, Parts, Storage, TooLongError


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Raise every failure of a remote service as an OSError: it may pass when tried again."""
    try:
        yield
    except (OSError, StoreError, MemoryError):
        raise
    except Exception as error:
        raise ConnectionError(f"{url} cannot be reached ({type(error).__name__}: {error})") from error


def _check(fence: Fence | None) -> None:
    if fence is not None:
        fence.check()


class RemoteStorage(Storage):
    """An fsspec file system; an object there appears whole or not at all.

    A fence is checked before each change, and that is all that file systems without conditional requests allow.
    """

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self._prefix = f"{self.root}/" if self.root or root.startswith("/") else ""
        self.url = url

    @property
    def is_plain(self) -> bool:
        """Whether objects are best read one at a time: of an archive, or at the root of a file system."""
        return not self.root or isinstance(self.filesystem, AbstractArchiveFileSystem)

    def path(self, key: str) -> str:
        """Return the full path of `key`, refusing keys that lead out of the store."""
        if ".." in key.split("/"):
            raise ForeignPathError(f"key {key!r} leads out of the store {self.url}")
        return f"{self._prefix}{key}" if key else self.root

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Say that a file system is read-only, which its own errors rarely do."""
        read_only = StoreError(f"{self.url} is read-only: expected a place that can be written, such as a folder")
        if isinstance(self.filesystem, AbstractArchiveFileSystem):
            raise read_only
        with reached(self.url):
            try:
                yield
            except NotImplementedError as error:
                raise read_only from error

    def get(self, key: str) -> bytes | None:
        """Read one object, or return None where there is none."""
        with reached(self.url):
            try:
                return bytes(self.filesystem.cat_file(self.path(key)))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
            except KeyError:  # how archives of earlier fsspec versions say that there is no such file
                if isinstance(self.filesystem, AbstractArchiveFileSystem):
                    return None
                raise

    def get_short(self, key: str, most: int) -> bytes | None:
        """Read one object, of which an archive tells the length before; asking a service would be another request."""
        if self.is_plain:
            return super().get_short(key, most)
        data = self.get(key)
        if data is not None and len(data) > most:
            raise TooLongError(f"it has {len(data)} bytes, expected at most {most}")
        return data

    def put(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Write one object; the service makes it appear whole."""
        _check(fence)
        with self._written():
            self.filesystem.pipe_file(self.path(key), b"".join(parts))

    def create(self, key: str, data: bytes) -> bool:
        """Write one object only if there is none; return whether it was written."""
        with self._written():
            try:
                self.filesystem.pipe_file(self.path(key), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put_many(self, objects: Mapping[str, Parts], fence: Fence | None = None) -> None:
        """Write several objects; all of them are stored when this returns."""
        _check(fence)
        with self._written():
            self.filesystem.pipe({self.path(key): b"".join(parts) for key, parts in objects.items()})

    def delete(self, key: str, fence: Fence | None = None) -> None:
        """Remove one object, if it exists."""
        _check(fence)
        with self._written(), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(key))

    def delete_prefix(self, prefix: str, fence: Fence | None = None) -> None:
        """Remove every object below `prefix`."""
        _check(fence)
        with self._written(), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(self.path(prefix), recursive=True)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Return the keys of all objects below `prefix`."""
        self.filesystem.invalidate_cache()
        for path, found in self.filesystem.find(self.path(prefix), detail=True).items():
            if found["type"] != "directory":  # of a prefix that was empty a moment ago, s3fs names the prefix itself
                yield str(path).removeprefix(self._prefix)

    def children(self, prefix: str = "") -> list[str]:
        """Return the sorted names directly below `prefix`."""
        with reached(self.url):
            self.filesystem.invalidate_cache()
            try:
                paths = self.filesystem.ls(self.path(prefix), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            self.filesystem.invalidate_cache()  # later calls must not be answered from this listing
            return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths)

    def size(self, key: str) -> int | None:
        """Return the length of an object in bytes, or None where there is none."""
        with reached(self.url):
            self.filesystem.invalidate_cache()
            try:
                return int(self.filesystem.size(self.path(key)))
            except FileNotFoundError:
                return None
