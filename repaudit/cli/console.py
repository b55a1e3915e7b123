"""What all commands share: one line per error, exit codes, progress on stderr, lists as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from repaudit.errors import CorruptStoreError, NotAStoreError, RepauditError, UnknownVersionError

PROBLEMS, USAGE, BAD_STORE = 1, 2, 3

Store = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of the store.")]
Stores = Annotated[
    list[str], typer.Argument(metavar="STORE...", help="Path or URL of the store, or several of the same samples.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
Models = Annotated[str | None, typer.Option(help="Models, separated by commas.")]
Layers = Annotated[str | None, typer.Option(help="Layer names as `repaudit info` shows them, separated by commas.")]
Steps = Annotated[str | None, typer.Option(help="Steps and ranges, e.g. 0,10,100:200.")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors raised on purpose into one line on stderr and an exit code."""
    try:
        yield
    except (NotAStoreError, UnknownVersionError, CorruptStoreError) as error:
        _fail(error, BAD_STORE)
    except (RepauditError, OSError) as error:
        _fail(error, USAGE)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(error: object, code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", highlight=False
    )
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
def progress_bars(quiet: bool) -> Iterator[Any]:
    """Provide a function of (what, done, total) that draws bars on stderr."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=Console(stderr=True), disable=quiet)

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
            bars.start()  # only when there is something to show: an error before that stays one line
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
