"""The ``repaudit`` command: progress on stderr, ``--json`` on stdout, one clear line for bad input.

Exit codes: 0 done, 1 findings, 2 wrong usage or a missing path, 3 not a repaudit store, damaged, or of an unknown
version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from repaudit import __version__
from repaudit.errors import CorruptStoreError, NotAStoreError, RepauditError, UnknownVersionError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None)
FINDINGS, USAGE, BAD_STORE = 1, 2, 3

Store = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of the store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


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


def _steps(text: str | None, store: str) -> list[int] | None:
    """Parse ``0,10,100:200``: single steps and inclusive ranges of recorded steps."""
    if text is None:
        return None
    from repaudit.store import catalog
    from repaudit.store.reader import open_store

    tree = open_store(store)
    recorded = sorted({step for model in catalog.models(tree) for step in catalog.steps(tree, model)})
    chosen: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        try:
            if not colon:
                chosen.append(int(first))
                continue
            low, high = int(first or recorded[0]), int(last or recorded[-1])
        except ValueError:
            raise typer.BadParameter(f"expected steps like 0,10,100:200, found {text!r}") from None
        chosen += [step for step in recorded if low <= step <= high]
    return chosen


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text is not None else None


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=Console(stderr=True), disable=quiet)

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
            bars.start()  # only once there is something to show: an error before that stays one line
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Audit what neural networks represent while they train."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def info(store: Store, as_json: AsJson = False) -> None:
    """Say what a store holds: models, layers, steps, the probe set."""
    with one_line_errors():
        from repaudit.store import catalog
        from repaudit.store.reader import open_store

        found = {"url": store, **catalog.describe(open_store(store))}
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        _print_info(found)


def _print_info(found: dict[str, Any]) -> None:
    console = Console(soft_wrap=True)
    console.print(
        f"[bold]{escape(found['url'])}[/]  format {found['version']}, {found['samples']} samples, "
        f"probe set {found['fingerprint'][:12]}",
        highlight=False,
    )
    table = Table("model", "steps", "first", "last", "layers", box=None, pad_edge=False, header_style="dim")
    if found["labels"]:
        console.print(f"labels: {escape(_brief(found['labels']))}", highlight=False)
    for model in found["models"]:
        steps = model["steps"]
        ends = (str(steps[0]), str(steps[-1])) if steps else ("-", "-")
        table.add_row(escape(model["name"]), str(len(steps)), *ends, escape(_layers(model["layers"])))
    console.print(table)


def _layers(layers: list[dict[str, Any]]) -> str:
    return _brief([f"{layer['name']} ({' x '.join(map(str, layer['shape'][2:]))})" for layer in layers])


def _brief(words: list[str], most: int = 8) -> str:
    return ", ".join(words) if len(words) <= most else f"{', '.join(words[:3])} ... {words[-1]} ({len(words)} in all)"


@app.command()
def verify(
    store: Store,
    data: Annotated[
        bool, typer.Option("--data", help="Also read every step and compare it with its checksum.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every problem of a store; exit code 1 where there is one."""
    with one_line_errors():
        from repaudit.store.verify import verify as find

        problems = [{"location": p.location, "kind": p.kind, "message": p.message} for p in find(store, data=data)]
    _print_findings(problems, as_json, none="no problem found")
    raise typer.Exit(FINDINGS if problems else 0)


@app.command()
def repair(
    store: Store,
    force: Annotated[bool, typer.Option("--force", help="Also models whose writer seems alive.")] = False,
    as_json: AsJson = False,
) -> None:
    """Mend what can be mended, and say what was lost."""
    with one_line_errors():
        from repaudit.store.repair import repair as mend

        done = [{"location": r.location, "kind": r.kind, "message": r.message} for r in mend(store, force=force)]
    _print_findings(done, as_json, none="nothing to repair")


def _print_findings(rows: list[dict[str, str]], as_json: bool, none: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console(soft_wrap=True)
    for row in rows:
        console.print(
            f"[bold]{escape(row['kind'])}[/] {escape(row['location'])}: {escape(row['message'])}", highlight=False
        )
    if not rows:
        console.print(none)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An analysis folder, <store>.analysis.")],
) -> None:
    """Write the report and figures of an analysis again from its results."""
    with one_line_errors():
        from repaudit.pipeline import rewrite_report

        typer.echo(rewrite_report(folder))


@app.command()
def analyze(
    store: Store,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; <store>.analysis by default.")] = None,
    models: Annotated[str | None, typer.Option(help="Models, separated by commas.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, separated by commas.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps and ranges, e.g. 0,10,100:200.")] = None,
    merge: Annotated[str, typer.Option(help="Merge strategy: frobenius or weighted.")] = "frobenius",
    memory: Annotated[str, typer.Option(help="Memory budget, e.g. 2GB.")] = "2GB",
    seed: Annotated[int, typer.Option(help="Seed of resampling and embeddings.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say whether the models of a store converge, layer by layer, and write a report."""
    with one_line_errors():
        chosen = _steps(steps, store)
        from repaudit.pipeline import analyze as run
        from repaudit.pipeline import default_folder

        folder = out or default_folder(store)
        with _progress(quiet=as_json) as report:
            results = run(
                store, folder, _names(models), _names(layers), chosen, merge, memory, seed=seed, progress=report
            )
        if as_json:
            typer.echo((folder / "summary.json").read_text(encoding="utf-8"))
            return
        _print_summary(json.loads(results.attrs["summary"]), folder)


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    console = Console(soft_wrap=True)
    console.print(f"\n[bold]{escape(summary['headline'])}[/]", highlight=False)
    for name, layer in summary["layers"].items():
        console.print(f"  [cyan]{escape(name)}[/]  {escape(layer['sentence'])}", highlight=False)
    if summary["left_out"]:
        console.print(f"  {len(summary['left_out'])} things left out, listed in summary.json", highlight=False)
    console.print(f"\nreport: {folder / 'report.html'}", highlight=False)


if __name__ == "__main__":
    app()
