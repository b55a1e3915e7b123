"""What all commands share: one line per error, exit codes, progress on stderr, lists as text."""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from repaudit.errors import CorruptStoreError, NotAStoreError, RepauditError, UnknownVersionError

_DIRECTIONS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
PROBLEMS, USAGE, BAD_STORE = 1, 2, 3
SECONDS_BETWEEN_LINES = 30.0

Store = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of the store.")]
Stores = Annotated[
    list[str], typer.Argument(metavar="STORE...", help="Path or URL of the store, or several of the same samples.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
Models = Annotated[str | None, typer.Option(help="Models or patterns such as `seed*`, separated by commas.")]
Layers = Annotated[
    str | None,
    typer.Option(help="Layers as `repaudit info` names them, or patterns such as `model.layers[*]`, with commas."),
]
Steps = Annotated[str | None, typer.Option(help="Steps and ranges, e.g. 0,10,100:200.")]


@contextmanager
def one_line_errors(*, goes_on: bool = False) -> Iterator[None]:
    """Turn errors raised on purpose into one line on stderr and an exit code.

    Where running an interrupted command again goes on, the line says so.
    """
    try:
        yield
    except (NotAStoreError, UnknownVersionError, CorruptStoreError) as error:
        _fail(error, BAD_STORE)
    except (RepauditError, OSError) as error:
        _fail(error, USAGE)
    except KeyboardInterrupt:
        _fail("interrupted" + ("; run the command again to go on" if goes_on else ""), 130)


class PlainConsole(Console):
    """A console on which names from a store or a file system are text, and never instructions to the terminal.

    Line breaks count as such: a name must not forge a line. An empty line is a call without text.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render text and markup, with whatever a terminal would obey made visible."""
        return super().render_str(visible(text), **options)


def visible(text: str) -> str:
    r"""Return the text with escapes for control characters, line breaks, and what turns the direction of writing.

    Examples
    --------
    >>> visible("seed\x1b[2J0")
    'seed\\x1b[2J0'
    """
    return "".join(char.encode("unicode_escape").decode() if _commands(char) else char for char in text)


def _commands(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in _DIRECTIONS


def say(text: str) -> None:
    """Print one line on stdout."""
    typer.echo(visible(text))


def warn_of_lost(store: str, lost: Sequence[str]) -> None:
    """Print one line on stderr that says what of a store is read as missing."""
    if lost:
        what = f"{store}: read as missing, because damaged or lost: {', '.join(lost)} (see repaudit verify --data)"
        PlainConsole(stderr=True).print(f"[bold yellow]warning:[/] {escape(what)}", highlight=False)


def _fail(error: object, code: int) -> None:
    PlainConsole(stderr=True).print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", highlight=False)
    raise typer.Exit(code)


def parse_steps(text: str | None, stores: Sequence[str]) -> list[int] | None:
    """Parse ``0,10,100:200``: single steps and inclusive ranges of the steps recorded in some stores."""
    if text is None:
        return None
    from repaudit.store.read import catalog
    from repaudit.store.read.reader import open_store

    trees = [open_store(store) for store in stores]
    recorded = sorted({step for tree in trees for model in catalog.models(tree) for step in catalog.steps(tree, model)})
    chosen: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        try:
            if not colon:
                chosen.append(int(first))
                continue
            low, high = int(first or 0), int(last) if last else max(recorded, default=0)
        except ValueError:
            raise typer.BadParameter(f"expected steps like 0,10,100:200, found {text!r}") from None
        chosen += [step for step in recorded if low <= step <= high]
    return chosen


def parse_names(text: str | None) -> list[str] | None:
    """Parse names separated by commas."""
    return [name.strip() for name in text.split(",")] if text is not None else None


@contextmanager
def progress_bars(reading: str) -> Iterator[Any]:
    """Provide a function of (what, done, total) that draws bars on stderr, or prints lines where it is no terminal.

    After a second without news, a line says that `reading` is being read.
    """
    console = PlainConsole(stderr=True)
    shown = _Bars(console) if console.is_terminal else _Lines(console)
    sign = threading.Timer(1.0, shown.first_sign, [reading])
    sign.daemon = True
    sign.start()

    def report(what: str, done: int, total: int) -> None:
        sign.cancel()
        shown.report(what, done, total)

    try:
        yield report
    finally:
        sign.cancel()
        shown.stop()


class _Bars:
    """Bars, one per stage."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def first_sign(self, reading: str) -> None:
        self._bars.console.print(f"reading {escape(reading)}", highlight=False)

    def report(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.start()  # only when there is something to show: an error before that stays one line
        self._bars.update(self._tasks[what], completed=done, total=total)

    def stop(self) -> None:
        if self._tasks:
            self._bars.stop()


class _Lines:
    """A line at the beginning and the end of every stage, and every half minute."""

    def __init__(self, console: Console) -> None:
        self._console, self._began = console, time.monotonic()
        self._said: dict[str, float] = {}

    def first_sign(self, reading: str) -> None:
        self._say(f"reading {reading}")

    def report(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in self._said or done == total or now - self._said[what] >= SECONDS_BETWEEN_LINES:
            self._said[what] = now
            self._say(f"{what} {done}/{total}")

    def stop(self) -> None:
        """Lines need no end."""

    def _say(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._began:6.0f} s] {text}", highlight=False, markup=False)
