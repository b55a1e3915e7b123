"""Reading regular files only: a pipe or a device in the place of one may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from repaudit.errors import ForeignPathError


def read_regular(path: Path) -> bytes:
    """Read a regular file.

    Raises
    ------
    ForeignPathError
        It is a pipe, a device or the like.
    OSError
        It cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ForeignPathError(f"{path} is not a regular file: expected only those here")
        return file.read()
