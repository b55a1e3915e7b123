"""A store on a local or mounted file system: files renamed into place, forced to the device in durable mode."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from repaudit.errors import ForeignPathError, LeaseError, StoreError
from repaudit.names import PROBE
from repaudit.store.storage.lease import mark
from repaudit.store.storage.regular import read_regular
from repaudit.store.storage.storage import TEMPORARY, Fence, Parts, Storage, is_staged

_SYNC_THREADS: Final = 8
_WITHOUT_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})

LOCK: Final = ".lock"
_LOCK_WAIT: Final = 10.0
"""Seconds to wait for a deletion, which takes no longer than a moment unless its process was stopped."""

_FOR_ALL: Final = 0o666

_STAGINGS: Final = 3


class LocalStorage(Storage):
    """A directory on a local or mounted file system.

    Objects are written to a temporary file and renamed. In durable mode the files are forced to the device
    before the rename and the directories after it.

    A fenced write stages its temporary file in the home of its fence, then checks the fence, then renames. Who takes
    the lease over removes what is staged there: a writer that was stopped after its check finds nothing to rename.
    A fenced deletion checks and unlinks under a lock, which a lease that changes hands waits for.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow a symlinked root
        self.url = str(self.root)
        self.durable = durable
        self._pool: ThreadPoolExecutor | None = None
        self._safe: set[Path] = set()
        self._lock = threading.Lock()

    def path(self, key: str) -> Path:
        """Return the file of `key`, refusing keys that lead out of the store."""
        path = self.root / key
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise ForeignPathError(f"key {key!r} leads out of the store {self.url}")
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
                        f"{directory} is a symbolic link: expected a plain directory inside the store {self.url}"
                    )
            self._safe.add(parent)
        if path.is_symlink():
            raise ForeignPathError(f"{path} is a symbolic link: expected a plain file inside the store {self.url}")

    def get(self, key: str) -> bytes | None:
        """Read one file, or return None where there is none."""
        try:
            return read_regular(self.path(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def put(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Write one file atomically."""
        self.put_many({key: parts}, fence)

    def create(self, key: str, data: bytes) -> bool:
        """Write one file only if there is none; return whether it was written."""
        for _ in range(_STAGINGS - 1):  # somebody may clear what is staged here
            with contextlib.suppress(FileNotFoundError):
                return self._create(self.path(key), data)
        return self._create(self.path(key), data)

    def _create(self, path: Path, data: bytes) -> bool:
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
        except OSError as error:
            if error.errno in _WITHOUT_LINKS:
                raise StoreError(
                    f"the file system of {self.root} has no hard links ({error.strerror}), by which one of several "
                    f"writers is let in: expected a store on another one"
                ) from error
            raise
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

    def _staged(self, home: str = PROBE) -> Path:
        """Return a new path where no Zarr reader lists it: inside a consolidated group."""
        staging = self.root / home
        if not staging.is_dir():
            staging.mkdir(parents=True, exist_ok=True)
        return staging / f".{mark()}-{uuid.uuid4().hex}{TEMPORARY}"

    def secure(self, key: str, fence: Fence | None = None) -> None:
        """Write a file anew: a rename that happened is lost where the device then refused to keep the directory."""
        data = self.get(key)
        if self.durable and data is not None:
            self.put_many({key: [data]}, fence)

    def put_many(self, objects: Mapping[str, Parts], fence: Fence | None = None) -> None:
        """Write several files, each atomically; all of them are safe when this returns."""
        if fence is not None:
            fence.check()  # before a folder is made where a store was deleted
        written: list[tuple[Path, Path]] = []
        directories: set[Path] = set()
        syncs = []
        try:
            for key, parts in objects.items():
                path = self.path(key)
                directories |= self._make_directories(path.parent)
                temporary = self._write(parts, PROBE if fence is None else fence.home)
                written.append((temporary, path))
                if self.durable:
                    syncs.append(self._later(_sync, temporary))
            for sync in syncs:
                sync()
            _rename_all(written, fence)
        except BaseException:
            for temporary, _ in written:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            raise
        self._sync_directories(directories)

    def _make_directories(self, directory: Path) -> set[Path]:
        """Make a directory with its parents, and return all whose entries changed."""
        changed = {directory}
        missing = directory
        while not missing.exists() and missing != missing.parent:
            missing = missing.parent
            changed.add(missing)
        directory.mkdir(parents=True, exist_ok=True)
        return changed

    def _write(self, parts: Parts, home: str = PROBE) -> Path:
        temporary = self._staged(home)
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

    def delete(self, key: str, fence: Fence | None = None) -> None:
        """Remove one file, if it exists."""
        with self._held(fence):
            self.path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str, fence: Fence | None = None) -> None:
        """Remove a directory with all its files."""
        path = self.path(prefix)
        if path.is_dir():
            trash = self._staged(PROBE if fence is None else fence.home)
            with self._held(fence):
                path.rename(trash)
            shutil.rmtree(trash, ignore_errors=fence is not None)  # the next holder may be removing it as well
        self._safe.clear()

    @contextlib.contextmanager
    def _held(self, fence: Fence | None) -> Iterator[None]:
        """Keep the fence from changing hands, after a check that it has not."""
        if fence is None:
            yield
            return
        with self.exclusive(fence.home):
            fence.check()
            yield

    @contextlib.contextmanager
    def exclusive(self, home: str) -> Iterator[None]:
        """Keep fenced deletions below `home` out while a lease there changes hands."""
        path = self.path(f"{home}/{LOCK}")
        if not path.parent.is_dir():
            yield
            return
        lock = FileLock(path, timeout=_LOCK_WAIT)
        try:
            _made_for_all(path)
            lock.acquire()
        except Timeout as error:
            raise LeaseError(
                f"{path} is held: a writer of {home} was stopped in the middle of a deletion; let its process go on, "
                "or end it"
            ) from error
        except NotImplementedError:  # a file system without locks
            pass
        try:
            yield
        finally:
            lock.release()

    def discard_staged(self, home: str) -> None:
        """Remove unfinished files in `home`."""
        for name in self.children(home):
            if is_staged(name):
                path = self.path(f"{home}/{name}")
                if path.is_dir():  # moved first: who renames it into place meanwhile must not get it emptied
                    trash = self._staged(home)
                    with contextlib.suppress(FileNotFoundError):
                        path.rename(trash)
                    shutil.rmtree(trash, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Return the keys of all files below `prefix`."""
        for directory, _, files in os.walk(self.root / prefix):
            for name in sorted(files):
                yield (Path(directory) / name).relative_to(self.root).as_posix()

    def children(self, prefix: str = "") -> list[str]:
        """Return the sorted names directly below `prefix`."""
        try:
            return sorted(entry.name for entry in (self.root / prefix).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def links(self) -> Iterator[str]:
        """Return the keys that are symbolic links."""
        for directory, folders, files in os.walk(self.root):
            for name in sorted([*folders, *files]):
                path = Path(directory) / name
                if path.is_symlink():
                    yield path.relative_to(self.root).as_posix()

    def size(self, key: str) -> int | None:
        """Return the length of a file in bytes, or None where there is none."""
        try:
            return self.path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None


def _made_for_all(path: Path) -> None:
    """Make a lock that whoever may write into the folder may hold, whoever made it."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _FOR_ALL)
    except FileExistsError:
        return
    with contextlib.suppress(OSError):  # some file systems know no rights
        os.fchmod(descriptor, _FOR_ALL)  # whatever the umask takes away
    os.close(descriptor)


def _rename_all(written: Sequence[tuple[Path, Path]], fence: Fence | None) -> None:
    """Rename temporary files into place; those that are gone were removed by who holds the fence now."""
    if fence is not None:
        fence.check()
    try:
        for temporary, path in written:
            temporary.replace(path)
    except FileNotFoundError:
        if fence is not None:
            fence.check()
        raise
    except IsADirectoryError as error:
        raise ForeignPathError(f"{path} is a directory, expected a file: move it out of the store") from error


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
