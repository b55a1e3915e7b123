"""A store behind an fsspec URL: objects appear whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from repaudit.errors import ForeignPathError
from repaudit.store.storage import Parts, Storage


class RemoteStorage(Storage):
    """An fsspec file system; an object there appears whole or not at all."""

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.url = url

    def path(self, key: str) -> str:
        """Give the full path of `key`, refusing keys that lead out of the store."""
        if ".." in key.split("/"):
            raise ForeignPathError(f"Key {key!r} leads out of the store {self.url}.")
        return f"{self.root}/{key}" if key else self.root

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(self.filesystem.cat_file(self.path(key)))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def put(self, key: str, parts: Parts) -> None:
        self.filesystem.pipe_file(self.path(key), b"".join(parts))

    def create(self, key: str, data: bytes) -> bool:
        try:
            self.filesystem.pipe_file(self.path(key), data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_many(self, objects: Mapping[str, Parts]) -> None:
        self.filesystem.pipe({self.path(key): b"".join(parts) for key, parts in objects.items()})

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(key))

    def delete_prefix(self, prefix: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(self.path(prefix), recursive=True)

    def keys(self, prefix: str = "") -> Iterator[str]:
        self.filesystem.invalidate_cache()
        for path in self.filesystem.find(self.path(prefix)):
            yield str(path).removeprefix(self.root + "/")

    def children(self, prefix: str = "") -> list[str]:
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.ls(self.path(prefix), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

    def size(self, key: str) -> int | None:
        try:
            return int(self.filesystem.size(self.path(key)))
        except FileNotFoundError:
            return None
