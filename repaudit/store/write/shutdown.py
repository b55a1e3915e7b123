"""Close open writers when the interpreter exits, and flush them when the process is asked to stop (SIGTERM)."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, Final, Protocol

_LOGGER = logging.getLogger(__name__)


class Closable(Protocol):
    """What must be closed before the process ends."""

    def flush(self) -> None:
        """Wait until everything queued is committed."""

    def close(self) -> None:
        """Flush, and release what is held."""


class _Shutdown:
    """The writers open in this process, and the signal handler that stands while there are any."""

    def __init__(self) -> None:
        self.open: dict[Closable, int] = {}
        self.previous: Any = None
        self.installed = False
        self.depth = 0
        self.pending = False
        self.finalized = 0

    def writers(self) -> list[Closable]:
        """Return the writers that this process opened: a forked child has none of their threads."""
        return [writer for writer, process in list(self.open.items()) if process == os.getpid()]

    def outlive_multiprocessing(self) -> None:
        """Have the writers closed at the end of a multiprocessing child too, which skips `atexit`."""
        if self.finalized != os.getpid():
            Finalize(None, lambda: _for_each(self.writers(), "close"), exitpriority=100)
            self.finalized = os.getpid()

    def install(self) -> None:
        """Install the signal handler, unless another one must stay."""
        if self.installed or threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous is signal.SIG_IGN:  # set outside Python, or to be ignored
            return
        self.previous = previous
        signal.signal(signal.SIGTERM, self.handle)
        self.installed = True

    def remove(self) -> None:
        """Put the earlier signal handler back."""
        if not self.installed or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self.handle:  # else another handler calls this one: leave it
            signal.signal(signal.SIGTERM, self.previous)
            self.installed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Store the queued steps, then do what the earlier handler does."""
        if self.depth:
            self.pending = True
            return
        if callable(self.previous):  # another handler decides whether the process goes on
            _for_each(self.writers(), "flush")
            self.previous(number, frame)
            return
        _for_each(self.writers(), "close")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Delay a signal that arrives inside the block: its handler would need a lock that is held here."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if self.pending and not self.depth:
                self.pending = False
                self.handle(signal.SIGTERM, None)


def _for_each(writers: list[Closable], action: str) -> None:
    for writer in writers:
        try:
            method: Callable[[], None] = getattr(writer, action)
            method()
        except Exception as error:  # noqa: BLE001 - the next writer must still be closed
            _LOGGER.error("at the end of the process: %s", error)


_SHUTDOWN: Final = _Shutdown()
atexit.register(lambda: _for_each(_SHUTDOWN.writers(), "close"))

postponed = _SHUTDOWN.postponed


def watch(writer: Closable) -> None:
    """Close `writer` at interpreter exit and flush it on SIGTERM, until :func:`forget`."""
    _SHUTDOWN.open[writer] = os.getpid()
    _SHUTDOWN.outlive_multiprocessing()
    _SHUTDOWN.install()


def forget(writer: Closable) -> None:
    """Forget a closed writer; with the last one the signal handler is removed too."""
    _SHUTDOWN.open.pop(writer, None)
    if not _SHUTDOWN.writers():
        _SHUTDOWN.remove()
