"""The command watch: trainings that are being recorded, in a terminal, as JSON, or as a page of this machine."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from repaudit.cli.answer import COLORS
from repaudit.cli.console import (
    AsJson,
    Layers,
    Models,
    PlainConsole,
    Store,
    last_parts,
    one_line_errors,
    parse_names,
    say,
    shortened,
    visible,
)
from repaudit.cli.progress import shown_progress
from repaudit.errors import AnalysisError, CorruptStoreError, NotAStoreError, RepauditError, StoreNotFoundError

if TYPE_CHECKING:
    from repaudit.live.runs import Run
    from repaudit.live.spreads import LiveCurve
    from repaudit.live.watcher import Look, Watcher

BLOCKS: Final = "▁▂▃▄▅▆▇█"
WIDTH: Final = 32
"""Most characters of a curve."""
_STATES: Final = {"running": "green", "silent": "red", "ended": "dim"}
_TITLES: Final = ("model", "state", "audits", "last step", "since then", "heartbeat", "failures")
NARROW: Final = 72
"""Columns below which only what cannot be missed is told."""
_CROWDED: Final = 92
"""The same where layers differ in their models and their last steps."""
_LEAST_NAME: Final = 8
_LEAST_FAILURE: Final = 8
_LONGEST: Final = 86400.0
_MAKING: Final = 10.0
"""Seconds after which what cannot be read is no store in the making, in repair or in deletion."""
_FRAME: Final = 8
"""Lines of the view that are not layers or models."""


def watch(
    store: Store,
    models: Models = None,
    layers: Layers = None,
    perplexity: Annotated[
        float | None, typer.Option(help="Scale of the spread: effective neighbours, 15 by default.")
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and compute everything before.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Show a page of this machine instead.")] = False,
    port: Annotated[int, typer.Option(help="Port of the page; 0 for any free one.", min=0, max=65535)] = 0,
    as_json: AsJson = False,
) -> None:
    """Watch trainings that are being recorded: each model's last audit, and the spread of each layer so far."""
    if serve and (once or as_json):
        raise typer.BadParameter(
            f"--serve shows a page until it is stopped: leave out {'--once' if once else '--json'}"
        )
    if perplexity is not None and not 1 < perplexity < math.inf:
        raise typer.BadParameter(f"--perplexity: expected effective neighbours, more than 1, found {perplexity:g}")
    if not every < _LONGEST:
        raise typer.BadParameter(f"--every: expected seconds, less than a day, found {every:g}")
    with one_line_errors():
        from repaudit.gauge.gauge import DiffusionGauge
        from repaudit.live.watcher import Watcher

        gauge = None if perplexity is None else DiffusionGauge(perplexity=perplexity)
        watcher = Watcher(store, models=parse_names(models), layers=parse_names(layers), gauge=gauge)
        if serve:
            from repaudit.live.page import serve as serve_page

            serve_page(watcher, every, port, lambda address: say(f"watching {store} at {address}"))
            return
        if once:
            with shown_progress(f"reading {store}"):
                look = watcher.look()
            if as_json:
                typer.echo(json.dumps(look.plain(), indent=2))
            else:
                console = PlainConsole()
                console.print(view(look, console.width), soft_wrap=False)
            return
        if as_json:
            _follow_as_json(watcher, every)
        _follow(watcher, store, every)


def _looks(watcher: Watcher, every: float) -> Iterator[Look | AnalysisError]:
    """Look again and again, until interrupted; what cannot be shown now may be shown later."""
    foreign_since, seen = None, False
    while True:
        pause = every
        try:
            look = watcher.look(every)
            foreign_since, pause, seen = None, 0 if look.waiting else every, True
            yield look
        except StoreNotFoundError as error:  # the first training has not begun, unless there was a store
            if seen:
                yield AnalysisError(f"gone: {error}")
        except AnalysisError as error:  # what is asked for may come with another training
            yield error
        except (NotAStoreError, CorruptStoreError):  # in the making, in repair or in deletion, for a moment
            foreign_since, pause = foreign_since or time.monotonic(), 0.1
            if time.monotonic() - foreign_since > _MAKING:
                raise
        time.sleep(pause)


def _follow_as_json(watcher: Watcher, every: float) -> None:
    """Print a line of JSON for every look."""
    for look in _looks(watcher, every):
        if isinstance(look, AnalysisError):
            typer.echo(json.dumps({"url": str(watcher.url), "error": str(look)}))
        else:
            typer.echo(json.dumps(look.plain()))


def _follow(watcher: Watcher, store: str, every: float) -> None:
    """Redraw the view in a terminal."""
    console = PlainConsole()
    if not console.is_terminal:
        raise RepauditError("watch redraws a terminal, found none: use --once, --json or --serve")
    with (
        suppress(KeyboardInterrupt),  # which is how one leaves it
        Live(_text(f"waiting for {store}", ""), console=console, auto_refresh=False) as live,
    ):
        for look in _looks(watcher, every):
            if isinstance(look, AnalysisError):
                live.update(_text(str(look), "yellow"), refresh=True)
            else:
                live.update(view(look, console.width, console.height), refresh=True)


def view(look: Look, width: int = 80, height: int | None = None) -> Group:
    """Return what a terminal of this size shows: models, layers, and what is missing."""
    runs = _most_wanted(look.runs, None if height is None else max(4, (height - _FRAME) // 2))
    room = None if height is None else max(4, height - _FRAME - len(runs) - (len(runs) < len(look.runs)))
    notes = []
    if len(look.runs) < 2:
        notes.append("a spread needs at least two models")
    elif not look.curves:
        notes.append("a spread needs a step that two models share")
    if look.lost:
        notes.append(f"read as missing, because damaged or lost: {', '.join(look.lost)} (see repaudit verify --data)")
    if look.waiting:
        notes.append(f"{look.waiting} spreads are being computed")
    for said, some in (("could not be computed", look.missing), ("leave out a model", look.partial)):
        if some:
            (layer, step), why = next(iter(some.items()))
            notes.append(f"{len(some)} spreads {said}; {layer} at step {step}: {why}")
    head = _text(look.url, "bold")
    scale = " and ".join(f"{one:g}" for one in look.perplexities)
    at = f" at the scale of {scale} neighbours" if scale else ""
    known = [curve for curve in look.curves if curve.steps]
    ends, counts = (_range([of(curve) for curve in known]) for of in (_step, _models))
    now = f"; now: step {ends} of {counts} models" if known else ""
    judged = {one.judged for one in known if one.judged is not None}
    apart = any(one.judged is not None and {one.judged} != {one.steps[-1], _step(one)} for one in known)
    to = "/".join(map(str, sorted({min(judged), max(judged)}))) if apart else ""
    of = f", of the steps that most models share, to {to}" if apart else ""
    said = f"spread{at}, drawn from 0 (identical) to 1 (unrelated); 95% interval{now}; verdicts are so far{of}"
    what = _text(said, "dim")
    parts: list[Any] = [head, _runs(runs, width)]
    if rest := Counter(run.state for run in look.runs if run not in runs):
        parts.append(_text("and " + ", ".join(f"{count} more {state}" for state, count in rest.items()), "dim"))
    if look.curves:
        parts += [_curves(look.curves, width, room), what]
    return Group(*parts, *(_text(note, "yellow") for note in notes))


def _text(said: str, style: str) -> Text:
    """Return a text whose lines break between words also where a live view is drawn, which would cut them."""
    return Text(visible(said), style=style, no_wrap=False, overflow="fold")


def _most_wanted(runs: Sequence[Run], most: int | None) -> list[Run]:
    """Return as many models as there is room for, in their order: those in progress first, and those last heard of."""
    ages = {run.model: math.inf if run.seconds_since_audit is None else run.seconds_since_audit for run in runs}
    wanted = sorted(runs, key=lambda run: (run.state != "running", ages[run.model]))[:most]
    return [run for run in runs if run in wanted]


def _step(curve: LiveCurve) -> int:
    return curve.steps[curve.place]


def _models(curve: LiveCurve) -> int:
    return curve.present[curve.place] if curve.present else curve.models


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return str(low) if low == high else f"{low} to {high}"


def _runs(runs: Sequence[Run], total: int) -> Table:
    """Return a row per model; a narrow terminal has no room for what the rest tells too."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    dispensable = {"audits", "since then"} if total < NARROW else set()
    told = [_told(run) for run in runs]
    shown = [k for k, title in enumerate(_TITLES) if title not in dispensable]
    widths = {
        k: max(Text.from_markup(cell).cell_len for cell in (_TITLES[k], *(row[k] for row in told))) for k in shown
    }
    model, failures = shown[0], shown[-1]
    left = total - sum(widths[k] + 2 for k in shown[1:-1]) - 2  # numbers are never cut
    widths[failures] = min(widths[failures], max(_LEAST_FAILURE, left - widths[model]))
    room = widths[model] = min(widths[model], max(_LEAST_NAME, left - widths[failures]))
    for k in shown:
        table.add_column(_TITLES[k], no_wrap=True, overflow="ellipsis", min_width=widths[k], max_width=widths[k])
    for run, row in zip(runs, told, strict=True):
        table.add_row(escape(_end_of(visible(run.model), room)), *(row[k] for k in shown[1:]))
    return table


def _end_of(name: str, room: int) -> str:
    """Return a name, or as much of its end as there is room for: what tells models apart is there."""
    cut = name
    while cell_len(cut) >= room:
        cut = cut[1:]
    return name if cell_len(name) <= room else f"…{cut}"


def _told(run: Run) -> tuple[str, ...]:
    last = f"{len(run.failures)}, last: {run.failures[-1][1]}" if run.failures else "0"
    return (
        escape(visible(run.model)),
        f"[{_STATES[run.state]}]{run.state}[/]",
        str(run.audits),
        "-" if run.step is None else str(run.step),
        _age(run.seconds_since_audit),
        _age(run.seconds_since_heartbeat),
        escape(visible(last)),
    )


def _curves(curves: Sequence[LiveCurve], total: int, room: int | None) -> Table:
    """Return a row per layer, or per run of layers of one verdict where there is no room for all."""
    width = max(8, min(WIDTH, total - 68))
    table = Table(box=None, pad_edge=False, header_style="dim")
    others = {"spread so far": max(13, width), "now": 18, "verdict": 10, "settled": 7}
    differ = len({_models(curve) for curve in curves if curve.steps}) > 1 and total >= NARROW
    others |= {"models": 6} if differ else {}
    ends = len({_step(curve) for curve in curves if curve.steps}) > 1 and total >= NARROW
    others |= {"at step": 7} if ends else {}
    if total < (_CROWDED if differ and ends else NARROW):
        del others["settled"]
    room_for_names = max(12, total - sum(others.values()) - 2 * len(others))
    table.add_column("layer", no_wrap=True, overflow="ellipsis", max_width=room_for_names)
    for title, needs in others.items():
        table.add_column(title, no_wrap=True, min_width=needs)
    together = room is not None and len(curves) > room
    for run in _by_verdict(curves) if together else ([curve] for curve in curves):
        first, last = run[0], run[-1]
        rest = "" if len(run) == 1 else f" … {last_parts(first.layer, last.layer)} ({len(run)})"
        name = shortened(first.layer, room_for_names - len(rest)) + rest
        verdict = f"[{COLORS.get(first.verdict, 'yellow')}]{first.verdict}[/]"
        drawn = sparkline(_mean(run), width)
        cells = [drawn, _now(run), verdict, *([_settled(run)] if "settled" in others else [])]
        cells += [str(min(_models(curve) for curve in run))] if differ else []
        cells += [_last_steps(run)] if ends else []
        table.add_row(f"[cyan]{escape(visible(name))}[/]", *cells)
    return table


def _settled(run: Sequence[LiveCurve]) -> str:
    """Return the first and the last step from which some layers have settled; a dash for those that have not."""
    known = [curve.settled for curve in run if curve.settled is not None]
    first = "-" if len(known) < len(run) else str(min(known))
    return "/".join(dict.fromkeys([first, str(max(known, default="-"))]))


def _by_verdict(curves: Sequence[LiveCurve]) -> list[list[LiveCurve]]:
    return [list(run) for _, run in groupby(curves, key=lambda curve: curve.verdict)]


def _mean(run: Sequence[LiveCurve]) -> list[float]:
    """Return the mean curve of some layers at the steps that all of them have."""
    shared = set.intersection(*(set(curve.steps) for curve in run))
    by_step = [dict(zip(curve.steps, curve.value, strict=True)) for curve in run]
    return [sum(one[step] for one in by_step) / len(run) for step in sorted(shared)]


def _last_steps(run: Sequence[LiveCurve]) -> str:
    """Return the steps that the last spreads of some layers are of."""
    lasts = [_step(curve) for curve in run if curve.steps]
    return "/".join(str(step) for step in sorted({min(lasts), max(lasts)})) if lasts else "-"


def _now(run: Sequence[LiveCurve]) -> str:
    known = [curve for curve in run if curve.steps]
    if not known:
        return "-"
    if len(known) == 1:
        (curve,) = known
        low, high = curve.low[curve.place], curve.high[curve.place]
        interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else ""
        return escape(f"{curve.value[curve.place]:.2f}{interval}")
    ends = [curve.value[curve.place] for curve in known]
    return f"{min(ends):.2f} to {max(ends):.2f}"


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return a curve from 0 to 1 as blocks, the last steps of a longer one averaged to its width.

    Examples
    --------
    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    count = len(values)
    if count > width:
        edges = [round(index * count / width) for index in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, math.floor(value * len(BLOCKS))))] for value in values)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.0f} h"
    )
