"""The answer of an analysis: a table of the layers on a terminal, elsewhere a line for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from repaudit.cli.console import PlainConsole, last_parts, prose, shortened, visible

COLORS: Final = {"converging": "green", "diverging": "red", "unchanged": "blue", "unrelated": "magenta"}
MANY: Final = 24
"""From this many layers on, neighbours of one verdict share a row."""

TITLES: Final = ("layer", "verdict", "start", "end", "settled")
LEGIBLE: Final = 24
"""Columns to which the name of a layer may be shortened; where there are fewer, it has a line of its own."""


def print_answer(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the headline, and what is found of each layer."""
    console = console or PlainConsole()
    console.print()
    prose(console, f"[bold]{escape(summary['headline'])}[/]")
    for text in (*summary.get("identical", ()), *filter(None, [summary.get("repeated")])):
        prose(console, f"[yellow]{escape(text)}[/]")
    if console.is_terminal and len(summary["models"]) > 1 and len(summary["steps"]) > 1:
        _print_tables(summary, console)
    else:
        for name, layer in summary["layers"].items():
            prose(console, f"  [cyan]{escape(name)}[/]  {escape(layer['sentence'])}")
    _print_groups(summary["layers"], console)
    if len(summary["models"]) > 1:
        what = "the spread is the mean of the squared distances of pairs"
        prose(console, f"  [dim]0 identical, 1 unrelated; {what}; 95% intervals in brackets[/]")


def _print_groups(layers: Mapping[str, Any], console: Console) -> None:
    """Print the spread within and between groups of models at the end, where there are any."""
    told = {name: entry["groups"] for name, entry in layers.items() if entry.get("groups")}
    if told:
        prose(console, "  groups at the end, each and | between two, at the first scale:")
    for layer, groups in told.items():
        listed = ", ".join(f"{name} {_with_interval(one)}" for name, one in groups.items())
        prose(console, f"  [cyan]{escape(layer)}[/]  {escape(listed)}")


def _with_interval(found: Mapping[str, Any]) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['value']:.2f}{interval}"


@dataclass(frozen=True)
class _Row:
    """A layer, or several neighbours of one verdict: the first, what the last has of its own, and how many."""

    first: str
    last: str
    count: int
    cells: tuple[str, ...]

    @property
    def rest(self) -> str:
        return f" … {self.last} ({self.count})" if self.count > 1 else ""

    def name(self, room: int) -> str:
        return shortened(self.first, room - len(self.rest)) + self.rest


def _print_tables(summary: Mapping[str, Any], console: Console) -> None:
    """Print a table per scale, with a row per layer, or per run of layers of one verdict where there are many."""
    scales = [scale["name"] for scale in summary["scales"]]
    for scale in scales:
        if len(scales) > 1:
            console.print(f"  [bold]{escape(scale)}[/]", highlight=False)
        rows = [_row(summary, layers, scale) for layers in _runs(summary["layers"], scale)]
        for line in _lines(rows, console.width):
            prose(console, line)


def _lines(rows: Sequence[_Row], width: int) -> Iterator[Text]:
    """Lay rows out: names in a column where they fit beside the numbers, else each on a line of its own."""
    widths = [max(map(len, column)) for column in zip(TITLES[1:], *(row.cells for row in rows), strict=True)]
    room = width - 2 - sum(widths) - 2 * len(widths)
    beside = all(len(row.first + row.rest) <= room or room >= LEGIBLE + len(row.rest) for row in rows)
    names = [visible(row.name(room) if beside else row.first + row.rest) for row in rows]
    longest = max(map(len, [*names, TITLES[0]]))
    heads = _Row(TITLES[0], "", 1, TITLES[1:])
    for name, row in zip([TITLES[0], *names], [heads, *rows], strict=True):
        styles = ("dim", "dim", "dim") if row is heads else ("cyan", COLORS.get(row.cells[0], "yellow"), "")
        verdict, *numbers = (cell.ljust(room) for cell, room in zip(row.cells, widths, strict=True))
        line = Text(f"  {name.ljust(longest)}  " if beside else f"  {name}", styles[0])
        if not beside:
            yield line
            line = Text("    ")
        line.append(verdict, styles[1])
        yield line.append("  " + "  ".join(numbers).rstrip(), styles[2])


def _runs(layers: Mapping[str, Any], scale: str) -> list[list[str]]:
    """Return the layers, one by one, or together where neighbours of many have one verdict."""
    if len(layers) < MANY:
        return [[name] for name in layers]
    return [list(run) for _, run in groupby(layers, key=lambda name: layers[name]["scales"][scale]["verdict"])]


def _row(summary: Mapping[str, Any], layers: list[str], scale: str) -> _Row:
    entries = [summary["layers"][name]["scales"][scale] for name in layers]
    first, *_ = entries
    end = _range([one["end"] for one in entries])
    if len(entries) == 1 and first["low"] is not None:
        end += f" [{first['low']:.2f}, {first['high']:.2f}]"
    settled = _range([one["settled"] for one in entries], ".0f")
    cells = (first["verdict"], _range([one["start"] for one in entries]), end, settled)
    return _Row(layers[0], last_parts(layers[0], layers[-1]), len(layers), cells)


def _range(values: list[float | None], form: str = ".2f") -> str:
    """Return a number, or the lowest and the highest of several."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = f"{min(known):{form}}", f"{max(known):{form}}"
    return low if low == high else f"{low} to {high}"
