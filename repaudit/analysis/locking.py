"""A lock in a folder: one process at a time moves its pieces, so that all of them are of one run."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOCK: Final = ".repaudit.lock"
_FOR_ALL: Final = 0o666
"""Whoever may write into the folder may lock it, whoever made the file."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock inside the block, waiting for another process that has it; the file is gone afterwards."""
    path = folder / LOCK
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        while not _is_at(descriptor, path):  # its holder has removed it: the file of that name is another one now
            os.close(descriptor)
            descriptor = _opened(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if _is_at(descriptor, path):
            with contextlib.suppress(OSError):  # in a folder where each user removes only their own, it stays
                path.unlink()
        os.close(descriptor)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, _FOR_ALL)
    except FileExistsError:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            return _opened(path)
    os.fchmod(descriptor, _FOR_ALL)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
