"""Files that appear whole: written under another name, then renamed, readable as any new file would be."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file, to write and read, that replaces `target` when the block succeeds; the parent is created if needed.

    Earlier content stays readable until then, and for good if the block raises. The umask decides who may read it.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> target = Path(mkdtemp(), "folder", "page.html")
    >>> with replacing(target) as stream:
    ...     written = stream.write(b"<html>")
    >>> target.read_bytes()
    b'<html>'
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    begins = os.fsencode(target.name)[:100].decode(errors="ignore")  # a name may be as long as file systems take
    temporary = target.with_name(f".{begins}-{os.getpid()}-{uuid.uuid4().hex}")
    try:
        with naming(target), temporary.open("x+b") as stream:
            yield stream
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Give an error of the file system that names no file, as of a full disk, the name of this place.

    Examples
    --------
    >>> with naming(Path("results")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'results'
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise
