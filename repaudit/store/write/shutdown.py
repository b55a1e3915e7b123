"""Close open writers when the interpreter exits, and flush them when the process is asked to stop (SIGTERM)."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, Final, Protocol

from repaudit.interrupts import handler_of, set_handler, was_raised_by_handler

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
        previous = handler_of(signal.SIGTERM)
        if previous is None or previous is signal.SIG_IGN:  # set outside Python, or to be ignored
            return
        self.previous = previous
        set_handler(signal.SIGTERM, self.handle)
        self.installed = True

    def remove(self) -> None:
        """Put the earlier signal handler back."""
        if not self.installed or threading.current_thread() is not threading.main_thread():
            return
        if handler_of(signal.SIGTERM) == self.handle:  # else another handler calls this one: leave it
            set_handler(signal.SIGTERM, self.previous)
            self.installed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Store the queued steps, then do what the earlier handler does; where a lock is held, a shield delays it."""
        if callable(self.previous):  # another handler decides whether the process goes on
            _for_each(self.writers(), "flush")
            self.previous(number, frame)
            return
        _for_each(self.writers(), "close")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _for_each(writers: list[Closable], action: str) -> None:
    for writer in writers:
        try:
            method: Callable[[], None] = getattr(writer, action)
            method()
        except Exception as error:
            if was_raised_by_handler(error):  # a second signal, while the first one's steps were stored
                raise
            _LOGGER.error("at the end of the process: %s", error)


_SHUTDOWN: Final = _Shutdown()
atexit.register(lambda: _for_each(_SHUTDOWN.writers(), "close"))


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
