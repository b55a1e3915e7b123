"""Commands that compute: analyze, and its report again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from repaudit.cli.console import (
    AsJson,
    Layers,
    Models,
    Steps,
    Store,
    one_line_errors,
    parse_names,
    parse_steps,
    progress_bars,
)

MOST_LEFT_OUT = 8


def analyze(
    store: Store,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results, whose earlier ones are replaced; <store>.analysis by default."),
    ] = None,
    models: Models = None,
    layers: Layers = None,
    steps: Steps = None,
    merge: Annotated[str, typer.Option(help="Merge strategy: frobenius or weighted.")] = "frobenius",
    memory: Annotated[str, typer.Option(help="Memory budget, e.g. 2GB.")] = "2GB",
    seed: Annotated[int, typer.Option(help="Seed of resampling and embeddings.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say whether models converge, and write a report.

    Results go beside the store, which is never written to.
    """
    with one_line_errors():
        chosen = parse_steps(steps, store)
        from repaudit.output import default_folder
        from repaudit.pipeline import analyze as run

        folder = out or default_folder(store)
        with progress_bars(quiet=as_json) as report:
            results = run(
                store,
                folder,
                parse_names(models),
                parse_names(layers),
                chosen,
                merge,
                memory,
                seed=seed,
                progress=report,
            )
        if as_json:
            typer.echo((folder / "summary.json").read_text(encoding="utf-8"))
            return
        _print_summary(json.loads(results.attrs["summary"]), folder)


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    console = Console(soft_wrap=True)
    console.print(f"\n[bold]{escape(summary['headline'])}[/]", highlight=False)
    if len(summary["models"]) > 1:
        for name, layer in summary["layers"].items():
            console.print(f"  [cyan]{escape(name)}[/]  {escape(layer['sentence'])}", highlight=False)
        console.print("  [dim]spread: 0 identical, 1 unrelated; in brackets 95% intervals[/]", highlight=False)
    for line in summary["left_out"][:MOST_LEFT_OUT]:
        console.print(f"  left out: {escape(line)}", highlight=False)
    if len(summary["left_out"]) > MOST_LEFT_OUT:
        console.print(f"  and {len(summary['left_out']) - MOST_LEFT_OUT} more in summary.json", highlight=False)
    console.print(f"\nreport: {folder / 'report.html'}", highlight=False)


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An analysis folder, <store>.analysis.")],
) -> None:
    """Write a report again from its results."""
    with one_line_errors():
        from repaudit.output import rewrite_report

        typer.echo(rewrite_report(folder))
