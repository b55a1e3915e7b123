"""Where a store's bytes live: atomic puts, exclusive creates and durable batches, on local disks or by fsspec."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from repaudit.errors import ForeignPathError
from repaudit.names import PROBE

Parts = Sequence[bytes | memoryview]
"""The pieces of one object, written one after the other without being joined in memory."""

TEMPORARY: Final = ".partial"
"""Ending of files that a put has not finished."""

_SYNC_THREADS: Final = 8


class Storage(ABC):
    """A flat map from keys to bytes: what the commit protocol asks of a place, and no more."""

    url: str

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Give the bytes under `key`, or None where there are none."""

    @abstractmethod
    def put(self, key: str, parts: Parts) -> None:
        """Write one object so that a reader sees the old bytes or the new ones, never a mixture."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write one object only if there is none; tell whether it was written."""

    @abstractmethod
    def put_many(self, objects: Mapping[str, Parts]) -> None:
        """Write several objects, each atomic, in any order; all of them are safe when this returns."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one object; a missing one is no error."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Remove every object below `prefix`."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys of all objects below `prefix`."""

    @abstractmethod
    def children(self, prefix: str = "") -> list[str]:
        """Give the sorted names directly below `prefix`."""

    def links(self) -> Iterator[str]:
        """Give the keys below the root that are symbolic links; an object store has none."""
        yield from ()

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Give the length in bytes of the object under `key`, or None where there is none."""


def open_storage(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, durable: bool = True
) -> Storage:
    """Open the place that a path or an fsspec URL names; nothing is created or read yet.

    Parameters
    ----------
    url : path or URL
        A local path, or anything fsspec knows (``file://``, ``memory://``, ``s3://``).
    storage_options : mapping, optional
        Handed to the fsspec file system.
    durable : bool
        Whether writes to local disks are forced to the device (fsync) before they count.

    Examples
    --------
    >>> open_storage("memory://doc").get("zarr.json") is None
    True
    """
    text = os.fspath(url)
    if "://" not in text and "::" not in text:
        return LocalStorage(Path(text), durable=durable)
    filesystem, path = url_to_fs(text, **(storage_options or {}))
    if isinstance(filesystem, LocalFileSystem):
        return LocalStorage(Path(path), durable=durable)
    return RemoteStorage(filesystem, path, text)


class LocalStorage(Storage):
    """A directory on a local or mounted file system.

    Objects are written beside their place and renamed into it. In durable mode the files are forced to the device
    before the rename and the directories after it.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow a symlinked root
        self.url = str(self.root)
        self.durable = durable
        self._pool: ThreadPoolExecutor | None = None
        self._safe: set[Path] = set()
        self._lock = threading.Lock()

    def path(self, key: str) -> Path:
        """Give the file of `key`, refusing keys that lead out of the store."""
        path = self.root / key
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise ForeignPathError(f"Key {key!r} leads out of the store {self.url}.")
        self._refuse_links(path)
        return path

    def _refuse_links(self, path: Path) -> None:
        """Refuse a path of which a directory below the root is a link, so that no write or read leaves the store."""
        parent = path.parent
        if parent not in self._safe:
            for directory in (parent, *parent.parents):
                if directory in (self.root, self.root.parent):
                    break
                if directory.is_symlink():
                    raise ForeignPathError(
                        f"{directory} is a symbolic link: expected a plain directory inside the store {self.url}."
                    )
            self._safe.add(parent)
        if path.is_symlink():
            raise ForeignPathError(f"{path} is a symbolic link: expected a plain file inside the store {self.url}.")

    def get(self, key: str) -> bytes | None:
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def put(self, key: str, parts: Parts) -> None:
        self.put_many({key: parts})

    def create(self, key: str, data: bytes) -> bool:
        path = self.path(key)
        if path.exists():
            return False
        if not path.parent.exists():
            return self._create_with_directory(path, data)
        temporary = self._write([data])
        try:
            if self.durable:
                _sync(temporary)
            os.link(temporary, path)  # unlike a rename, a link never replaces
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        self._sync_directories({path.parent})
        return True

    def _create_with_directory(self, path: Path, data: bytes) -> bool:
        """Make a new directory appear together with its first file, so that no reader meets it empty."""
        changed = self._make_directories(path.parent.parent)
        made = self._staged()
        made.mkdir()
        try:
            _write_file(made / path.name, [data])
            if self.durable:
                _sync(made / path.name)
                _sync(made)
            made.rename(path.parent)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._sync_directories(changed)
        return True

    def _staged(self) -> Path:
        """Name a new file in the one place that no Zarr reader lists: inside the consolidated probe group."""
        staging = self.root / PROBE
        if not staging.is_dir():
            staging.mkdir(parents=True, exist_ok=True)
        return staging / f".{uuid.uuid4().hex}{TEMPORARY}"

    def put_many(self, objects: Mapping[str, Parts]) -> None:
        written: list[tuple[Path, Path]] = []
        directories: set[Path] = set()
        syncs = []
        try:
            for key, parts in objects.items():
                path = self.path(key)
                directories |= self._make_directories(path.parent)
                temporary = self._write(parts)
                written.append((temporary, path))
                if self.durable:
                    syncs.append(self._later(_sync, temporary))
            for sync in syncs:
                sync()
            for temporary, path in written:
                temporary.replace(path)
        except BaseException:
            for temporary, _ in written:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            raise
        self._sync_directories(directories)

    def _make_directories(self, directory: Path) -> set[Path]:
        """Make a directory with its parents, and give all whose entries changed."""
        changed = {directory}
        missing = directory
        while not missing.exists() and missing != missing.parent:
            missing = missing.parent
            changed.add(missing)
        directory.mkdir(parents=True, exist_ok=True)
        return changed

    def _write(self, parts: Parts) -> Path:
        temporary = self._staged()
        try:
            _write_file(temporary, parts)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _sync_directories(self, directories: set[Path]) -> None:
        if self.durable:
            for wait in [self._later(_sync, directory) for directory in directories]:
                wait()

    def _later(self, function: Any, path: Path) -> Any:
        """Start `function(path)`, so that the device takes several requests at once; call the result to wait."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="repaudit-sync")
        try:
            return self._pool.submit(function, path).result
        except RuntimeError:  # the interpreter is shutting down and takes no more work: do it here
            function(path)
            return lambda: None

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        path = self.path(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        self._safe.clear()

    def keys(self, prefix: str = "") -> Iterator[str]:
        for directory, _, files in os.walk(self.root / prefix):
            for name in sorted(files):
                yield (Path(directory) / name).relative_to(self.root).as_posix()

    def children(self, prefix: str = "") -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / prefix).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def links(self) -> Iterator[str]:
        for directory, folders, files in os.walk(self.root):
            for name in sorted([*folders, *files]):
                path = Path(directory) / name
                if path.is_symlink():
                    yield path.relative_to(self.root).as_posix()

    def size(self, key: str) -> int | None:
        try:
            return self.path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None


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


def _write_file(path: Path, parts: Parts) -> None:
    with path.open("xb", buffering=0) as file:
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[file.write(view) :]


def _sync(path: Path) -> None:
    """Force one file's bytes, or one directory's entries, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
