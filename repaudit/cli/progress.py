"""Signs of life of a command that takes long: bars on a terminal, else lines, both on stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from repaudit.cli.console import PlainConsole, visible

FIRST_SIGN: Final = 0.5
"""Seconds without news after which a command says what it does: an error that comes earlier stays one line."""

SECONDS_BETWEEN_LINES: Final = 30.0


@contextmanager
def shown_progress(doing: str) -> Iterator[_Bars | _Lines]:
    """Show what is reported inside the block, and before there is news, what is being done.

    The block calls what it gets with what is being done, how much of it is done, and how much there is. It writes to
    the terminal within ``aside()``, as bars would draw over other lines.
    """
    console = PlainConsole(stderr=True)
    shown = _Bars(console, doing) if console.is_terminal else _Lines(console, doing)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(shown, ended), name="repaudit-progress", daemon=True).start()
    try:
        yield shown
    finally:
        ended.set()
        shown.stop()


def _watch(shown: _Bars | _Lines, ended: threading.Event) -> None:
    """Give a sign of life where a report is long in coming."""
    seconds = FIRST_SIGN
    while not ended.wait(seconds):
        shown.tick()
        seconds = SECONDS_BETWEEN_LINES / 30


class _Bars:
    """Bars, one per stage."""

    def __init__(self, console: Console, doing: str) -> None:
        self._doing, self._was_said, self._console = doing, False, console
        self._begin()

    def _begin(self) -> None:
        what = TextColumn("{task.description:>10}", markup=False)  # renders past the console's own rendering
        columns = (what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console)
        self._tasks: dict[str, TaskID] = {}

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal to the block: the bars so far stay above it, those of what follows come below."""
        for task in self._bars.tasks:  # one that goes on would stay as if it had stopped
            self._bars.update(task.id, visible=task.finished)
        self.stop()
        self._was_said = True
        yield
        self._begin()

    def tick(self) -> None:
        if not self._tasks and not self._was_said:
            self._was_said = True
            self._bars.console.print(escape(self._doing), highlight=False)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(visible(what), total=total)
            self._bars.start()  # only when there is something to show: an error before that stays one line
        self._bars.update(self._tasks[what], completed=done, total=total)

    def stop(self) -> None:
        if self._tasks:
            self._bars.stop()


class _Lines:
    """A line at the beginning and the end of every stage, and every half minute, with news or without."""

    def __init__(self, console: Console, doing: str) -> None:
        self._console, self._began = console, time.monotonic()
        self._now, self._stages = doing, set[str]()
        self._said: float | None = None
        self._lock = threading.Lock()

    def tick(self) -> None:
        with self._lock:
            self._say_if(self._said is None)

    def __call__(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._now = f"{what} {done}/{total}"
            self._say_if(what not in self._stages or done == total)
            self._stages.add(what)

    def stop(self) -> None:
        """Lines need no end."""

    aside = staticmethod(nullcontext)

    def _say_if(self, due: bool) -> None:
        now = time.monotonic()
        if due or (self._said is not None and now - self._said >= SECONDS_BETWEEN_LINES):
            self._said = now
            self._console.print(f"[{now - self._began:6.0f} s] {self._now}", highlight=False, markup=False)
