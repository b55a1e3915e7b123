"""The answer of an analysis on a terminal: a table of the layers; elsewhere a line for each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from repaudit.cli.console import PlainConsole

COLORS: Final = {"converging": "green", "diverging": "red", "unchanged": "blue", "unrelated": "magenta"}
MANY: Final = 24
"""From this many layers on, neighbours of one verdict share a row."""


def print_answer(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the headline, and what is found of each layer."""
    console = console or PlainConsole()
    console.print()
    console.print(f"[bold]{escape(summary['headline'])}[/]", highlight=False)
    if console.is_terminal and len(summary["models"]) > 1 and len(summary["steps"]) > 1:
        console.print(_table(summary), soft_wrap=False)
    else:
        for name, layer in summary["layers"].items():
            console.print(f"  [cyan]{escape(name)}[/]  {escape(layer['sentence'])}", highlight=False)
    if len(summary["models"]) > 1:
        what = "the spread is the mean of the squared distances of pairs"
        console.print(f"  [dim]0 identical, 1 unrelated; {what}; 95% intervals in brackets[/]", highlight=False)


def _table(summary: Mapping[str, Any]) -> Table:
    """Return a table with a row per layer and scale, or per run of layers of one verdict where there are many."""
    names = [scale["name"] for scale in summary["scales"]]
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("layer", no_wrap=True, overflow="ellipsis", min_width=12)
    for title in (*(["scale"] if len(names) > 1 else []), "verdict", "start", "end", "settled"):
        table.add_column(title, no_wrap=True)
    for scale in names:
        for layers in _runs(summary["layers"], scale):
            table.add_row(*_row(summary, layers, scale, several=len(names) > 1))
    return table


def _runs(layers: Mapping[str, Any], scale: str) -> list[list[str]]:
    """Return the layers, one by one, or together where neighbours of many have one verdict."""
    if len(layers) < MANY:
        return [[name] for name in layers]
    return [list(run) for _, run in groupby(layers, key=lambda name: layers[name]["scales"][scale]["verdict"])]


def _row(summary: Mapping[str, Any], layers: list[str], scale: str, *, several: bool) -> list[str]:
    entries = [summary["layers"][name]["scales"][scale] for name in layers]
    first, *_ = entries
    name = escape(layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]} ({len(layers)})")
    color = COLORS.get(first["verdict"], "yellow")
    end = _range([one["end"] for one in entries])
    if len(entries) == 1 and first["low"] is not None:
        end += f" [{first['low']:.2f}, {first['high']:.2f}]"
    settled = _range([one["settled"] for one in entries], ".0f")
    cells = [f"[{color}]{first['verdict']}[/]", _range([one["start"] for one in entries]), escape(end), settled]
    return [f"[cyan]{name}[/]", *([scale] if several else []), *cells]


def _range(values: list[float | None], form: str = ".2f") -> str:
    """Return a number, or the lowest and the highest of several."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = f"{min(known):{form}}", f"{max(known):{form}}"
    return low if low == high else f"{low} to {high}"
