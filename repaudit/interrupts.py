"""Sections that no signal's handler may interrupt: Ctrl-C while a model is restored would leave it half done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

Handler = Callable[[int, FrameType | None], Any]
_MARK: Final = "_repaudit_raised_by_handler"
"""An attribute of such errors themselves: a second one may be lost on the way, as in a finalizer."""


class Shield:
    """Delay signals that arrive inside the block until its end, and then call the handlers that were there before.

    A handler runs between any two instructions of the main thread, and may raise: Ctrl-C does, and so do handlers of
    SIGTERM. While the shield is :meth:`lifted`, handlers run at once; as one raises, the shield is up again. In other
    threads no handler runs, and a shield does nothing. Shields may be nested.

    Examples
    --------
    >>> seen = []
    >>> before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append("SIGTERM"))
    >>> with Shield():
    ...     signal.raise_signal(signal.SIGTERM)
    ...     seen.append("restored")
    >>> seen
    ['restored', 'SIGTERM']
    >>> before = signal.signal(signal.SIGTERM, before)
    """

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._was_lifted = _SIGNALS.lifted
            _SIGNALS.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_main:
            _SIGNALS.leave(lifted=self._was_lifted)

    def lifted(self) -> _Lifted:
        """Return a block in which handlers run at once: for what may take long."""
        return _Lifted(is_main=self._is_main)


class _Lifted:
    def __init__(self, *, is_main: bool) -> None:
        self._is_main = is_main

    def __enter__(self) -> None:
        if self._is_main:
            _SIGNALS.lift()

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            _SIGNALS.lifted = False


class _Signals:
    """The handlers that stand while there is a shield, and what they have noted."""

    def __init__(self) -> None:
        self.depth = 0
        self.owner = 0
        self.lifted = False
        self.noted: dict[int, FrameType | None] = {}
        self.replaced: list[int] = []
        self.handlers: dict[int, Handler] = {}

    def enter(self) -> None:
        """Note the signals that come from now on."""
        if self.depth == 0:
            self.owner = threading.get_ident()
            self._install()
        self.lifted = False  # after this, nothing raises
        self.depth += 1

    def leave(self, *, lifted: bool) -> None:
        """Go back to what was before the block, and call the handlers of what was noted."""
        self.depth -= 1
        if self.depth:
            if lifted:
                self.lift()
            return
        try:
            self._remove()
        finally:
            noted, self.noted = self.noted, {}
            self._call(noted)

    def lift(self) -> None:
        """Call the handlers of what was noted, and let those of what comes run at once."""
        self.lifted = True
        if self.noted:
            self.lifted = False
            noted, self.noted = self.noted, {}
            self._call(noted)
            self.lifted = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, or pass it on where no shield is up."""
        if self.replaced and not self.lifted:
            self.noted[number] = frame
            return
        lifted, self.lifted = self.lifted, False  # stays so if the handler raises
        self._run(number, frame)
        self.lifted = lifted

    def _install(self) -> None:
        """Take the place of every handler written in Python, that of Ctrl-C first."""
        self.lifted = False
        try:
            for number in sorted(signal.valid_signals(), key=lambda number: number != signal.SIGINT):
                handler = signal.getsignal(number)
                if callable(handler) and handler != self.handle:
                    self.handlers[number] = handler
                    self.replaced.append(number)
                    signal.signal(number, self.handle)
        except BaseException:
            self._remove()
            self.noted = {}
            raise

    def _remove(self) -> None:
        """Put the handlers back, that of Ctrl-C last."""
        while self.replaced:
            number = self.replaced[-1]
            if signal.getsignal(number) == self.handle:  # else the block has installed another
                signal.signal(number, self.handlers[number])
            self.replaced.pop()

    def after_fork(self) -> None:
        """Put the handlers back in a child whose shields stand in a thread that it has not: nobody else would."""
        if self.replaced and self.owner != threading.get_ident():
            self._remove()
            self.noted = {}
            self.depth = 0

    def _call(self, noted: dict[int, FrameType | None]) -> None:
        """Call the handlers of signals; one that raises does not keep the others from their turn."""
        while noted:
            number, frame = noted.popitem()
            try:
                self._run(number, frame)
            finally:
                self._call(noted)

    def _run(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handlers[number](number, frame)
        except BaseException as error:
            setattr(error, _MARK, True)
            raise


_SIGNALS: Final = _Signals()
os.register_at_fork(after_in_child=_SIGNALS.after_fork)


def was_raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal's handler raised this error: it is meant for the program, not for an audit."""
    return getattr(error, _MARK, False)


def handler_of(number: int) -> Any:
    """Return the handler of a signal, for which a shield may stand."""
    return _SIGNALS.handlers[number] if number in _SIGNALS.replaced else signal.getsignal(number)


def set_handler(number: int, handler: Any) -> None:
    """Install a handler; where a shield stands, at its end."""
    if number in _SIGNALS.replaced and callable(handler):
        _SIGNALS.handlers[number] = handler
    else:
        signal.signal(number, handler)
