"""A lock in a folder: one process at a time moves its pieces, so that all of them are of one run."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from repaudit.errors import AnalysisError

LOCK: Final = ".repaudit.lock"
PATIENCE: Final = 60.0
"""Seconds to wait for another process: it moves or reads a few files, unless it was stopped."""
_FOR_ALL: Final = 0o666
"""Whoever may write into the folder may lock it, whoever made the file."""
_QUIET: Final = 3.0
"""Seconds after which it is said who is waited for."""
_BETWEEN_TRIES: Final = 0.02

_LOGGER = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, patience: float | None = None) -> Iterator[None]:
    """Hold the folder's lock inside the block, waiting for another process that has it; the file is gone afterwards.

    Raises
    ------
    AnalysisError
        Another process has not let go of it for so many seconds, a minute by default.
    """
    path = folder / LOCK
    descriptor = _taken(path, PATIENCE if patience is None else patience)
    try:
        yield
    finally:
        if _is_at(descriptor, path):
            with contextlib.suppress(OSError):  # in a folder where each user removes only their own, it stays
                path.unlink()
        os.close(descriptor)


def _taken(path: Path, patience: float) -> int:
    """Return the open file of the lock once it is ours; who waits says so, and gives up in the end."""
    began, said = time.monotonic(), False
    descriptor = _opened(path)
    try:
        while not _is_ours(descriptor, path):
            waited = time.monotonic() - began
            if waited > patience:
                raise AnalysisError(
                    f"{path} was held by {_holder(path)} for {waited:.0f} s: expected it to move or read the files of "
                    f"this folder and let go; let that process end, or end it, and run this again, which goes on"
                )
            if waited > _QUIET and not said:
                said = True
                _LOGGER.warning("waiting for %s, which holds %r", _holder(path), str(path))
            time.sleep(_BETWEEN_TRIES)
            if not _is_at(descriptor, path):  # its holder has removed it: the file of that name is another one now
                os.close(descriptor)
                descriptor = -1
                descriptor = _opened(path)
    except BaseException:
        if descriptor >= 0:
            os.close(descriptor)
        raise
    return descriptor


def _is_ours(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_at(descriptor, path)


def _holder(path: Path) -> str:
    """Return which process holds a lock, where Linux tells."""
    try:
        place = path.stat()
        file = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}:{place.st_ino}"
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        return next(f"process {words[4]}" for words in locks if words[1] == "FLOCK" and words[5] == file)
    except (OSError, ValueError, IndexError, StopIteration):
        return "another process"


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, _FOR_ALL)
    except FileExistsError:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            return _opened(path)
    with contextlib.suppress(OSError):  # some file systems know no rights
        os.fchmod(descriptor, _FOR_ALL)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
