"""The answer in words: a sentence per layer, and a headline for all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.measure.curve import SMALLEST_CHANGE
from repaudit.names import MODEL, STEP
from repaudit.results import (
    DISTANCE,
    HIGH,
    LARGEST_ROW,
    LARGEST_SAMPLE,
    LOW,
    N_MODELS,
    OTHER,
    PVALUE_HOLM,
    SPREAD,
    SPREAD_ROWS,
)

OPENINGS: Final = {
    "converging": "The models converge",
    "diverging": "The models diverge",
    "unrelated": "The models cannot be told from unrelated ones in the end",
    "unchanged": "No significant change between the models",
    "undecided": "Too uncertain to decide",
}
COUNTED: Final = {
    "converging": ("converges", "converge"),
    "diverging": ("diverges", "diverge"),
    "unrelated": ("cannot be told from unrelated", "cannot be told from unrelated"),
    "unchanged": ("shows no significant change", "show no significant change"),
    "undecided": ("is undecided", "are undecided"),
    "identical": ("is identical in all models", "are identical in all models"),
    "alone": ("has no step that two models share", "have no step that two models share"),
    "without": ("has no spread, see what was left out", "have no spread, see what was left out"),
}
"""What a headline says of layers: their verdicts, and three that stand in the place of one."""
NOT_COMPARED: Final = frozenset({"identical", "alone", "without"})
IDENTICAL: Final = 1e-6
"""A spread below this at every step is the same run under several names, or the same seed."""
NO_SPREAD: Final = "No spread at any step: see what was left out."
WORTH: Final = 0.05
"""A change that could hide in what a curve leaves uncertain is told from this size on."""
OUTLYING: Final = 0.1
"""One sample with more than this share of a squared distance is named."""
SIGNIFICANT: Final = 0.05
MOST_NAMED: Final = 3


def of_curve(
    verdict: str,
    seen: xr.Dataset,
    peak: int,
    margins: Any = None,
    since: int | None = None,
    until: int | None = None,
) -> str:
    """Return the verdict on a curve with its first and last value, and one between them.

    A verdict is that of the last significant change: where this begins later than the curve, at the step `since`, that
    is the one between; else where it ends, at the step `until`. Of a curve without a change it is the largest, of what
    diverges the least. Where nothing changes significantly, the margin of the change from the first to the last step
    tells what could.
    """
    steps, value = seen[STEP].values, seen[SPREAD].values
    if value.max() < IDENTICAL:
        return "The models are identical at every step: are they one run, or one seed?"
    low, high = seen[LOW].values, seen[HIGH].values
    turn = int(value.argmin()) if verdict == "diverging" else peak
    if since is not None or until is not None:
        turn = steps.tolist().index(until if since is None else since)
    told = sorted({0, turn, len(steps) - 1})
    digits = _digits_apart(value[told]) if verdict in ("converging", "diverging") else 2
    ends = [_with_interval(value[i], low[i], high[i], int(steps[i]), digits) for i in told]
    opening = OPENINGS[verdict] if len(steps) > 1 else "One step only, so that no change can be seen"
    if since is not None and verdict in ("converging", "diverging"):
        opening += f" from step {since} on"
    visible = float(margins[0, -1]) if verdict == "unchanged" and margins is not None else math.nan
    unseen = f" From first to last, a change of less than {visible:.2f} would not be seen." if visible >= WORTH else ""
    return f"{opening}: their spread is {_listed(ends)}.{unseen}"


def elsewhere(every: xr.Dataset, seen: xr.Dataset) -> str:
    """Say of how many models a curve is, where there are steps of fewer, or of more."""
    if every.sizes[STEP] == seen.sizes[STEP]:
        return ""
    count, others = int(seen[N_MODELS].values[-1]), every.sizes[STEP] - seen.sizes[STEP]
    elsewhere = f"other models are at {others} other steps"
    if others == 1:
        apart = int(np.setdiff1d(every[STEP].values, seen[STEP].values)[0])
        elsewhere = f"step {apart} is of {int(every[N_MODELS].sel({STEP: apart}))} models"
    shared = f"{seen.sizes[STEP]} steps which" if seen.sizes[STEP] > 1 else "step which"
    return f" That is at the {shared} {count} models share; {elsewhere}."


def ended(spread: xr.Dataset, seen: xr.Dataset) -> str:
    """Say up to which step there is a spread, where there are models but no spread after it."""
    last = int(seen[STEP].values[-1])
    after = spread[STEP].values[(spread[N_MODELS].values > 1) & (spread[STEP].values > last)]
    if not len(after):
        return ""
    return (
        f" There is a spread up to step {last} only: from step {int(after[0])} on the layer does not tell samples "
        "apart in at least one model (collapsed or uniform), so that no distance has a meaning."
    )


def outlying(seen: xr.Dataset) -> str:
    """Name the sample that one row of the distances at the end comes from, where it is a large part of them."""
    if LARGEST_ROW not in seen:
        return ""
    last = seen.isel({STEP: -1})
    share = float(last[LARGEST_ROW])
    if not share > OUTLYING or float(last[SPREAD]) < IDENTICAL:
        return ""
    return (
        f" Sample {last[LARGEST_SAMPLE].item()} alone is {share:.0%} of it at the end; row by row the spread is "
        f"{float(last[SPREAD_ROWS]):.2f}."
    )


def of_pairs(pairs: xr.Dataset) -> str:
    """Return what every two models of a layer at one step are to each other: a fixed set has no further models."""
    if float(pairs[DISTANCE].max()) < IDENTICAL:
        return "The models are identical at this step: are they one run, or one seed?"
    models = [str(name) for name in pairs[MODEL].values]
    distance, low, high, holm = (pairs[name].values for name in (DISTANCE, LOW, HIGH, PVALUE_HOLM))
    known = [(i, j) for i in range(len(models)) for j in range(i + 1, len(models)) if np.isfinite(distance[i, j])]
    if not known:
        return "No two models have an operator at this step."
    related = sum(bool(holm[i, j] < SIGNIFICANT) for i, j in known)
    order = sorted(known, key=lambda pair: float(distance[pair]))
    shown = [
        f"{models[i]} and {pairs[OTHER].values[j]} {distance[i, j]:.2f} [{low[i, j]:.2f}, {high[i, j]:.2f}]"
        for i, j in dict.fromkeys((order[0], order[-1]))
    ]
    which = ("nearest", "farthest") if len(shown) > 1 else ("distance of",)
    listed = ", ".join(f"{word} {text}" for word, text in zip(which, shown, strict=True))
    told = "pairs of models are" if len(known) > 1 else "pair of models is"
    holm_adjusted = f"(Holm-adjusted p < {SIGNIFICANT:g})"
    said = f"{related} of {len(known)} {told} nearer to each other than chance {holm_adjusted}: {listed}"
    return f"{said} (the spread is the mean of their squares). One step has no change to judge."


def of_identical(models: Sequence[str], steps: Sequence[int], every: Sequence[int]) -> str:
    """Say at which of the steps some models are one another's copies in every layer.

    Examples
    --------
    >>> of_identical(["a", "b"], [0, 10], [0, 10, 20])
    'a and b are identical at steps 0 to 10 in every layer: are they one run, or one seed?'
    """
    first, last = int(steps[0]), int(steps[-1])
    together = list(steps) == [step for step in every if first <= step <= last]
    when = f"step {first}" if first == last else f"steps {first} to {last}" if together else f"{len(steps)} steps"
    begins = first == last == every[0] and len(every) > 1
    why = "do they start as one network?" if begins else "are they one run, or one seed?"
    return f"{_listed(list(models))} are identical at {when} in every layer: {why}"


def with_settling(layer: Mapping[str, Any], single: bool, steps: int) -> str:
    """Return the sentence of a layer with the step from which on it stays, or that of a single model.

    What stays does so within the interval of its end, which may be wide; what agrees has learned or inherited it.
    """
    settled, said = layer["settled"], [layer["sentence"]]
    if single:
        if not steps:
            return "One model, and no operator at any step: see what was left out."
        if steps < 2:
            return "One model at one step: nothing to compare it with."
        if settled is None:
            return "One model: it has not settled, it moves until its last step."
        return f"One model: from step {settled} on it cannot be told from its own end."
    if settled is not None:
        within = max(layer["end"] - layer["low"], layer["high"] - layer["end"], SMALLEST_CHANGE)
        said.append(f"Settled from step {settled} on, to within {within:.2f}.")
    if layer.get("agreement"):
        said.append(f"At this scale the agreement is {layer['agreement']}.")
    return " ".join(said)


def joined(sentences: Mapping[str, str]) -> str:
    """Return the sentences of a layer at all scales as one text; one that holds at every scale once."""
    if len(set(sentences.values())) == 1:
        return next(iter(sentences.values()))
    return " ".join(f"{name[:1].upper()}{name[1:]}: {text}" for name, text in sentences.items())


def headline(verdicts: Mapping[str, Mapping[str, str]], n_models: int, steps: Sequence[int]) -> str:
    """Return one line for all layers, and where the scales differ.

    Examples
    --------
    >>> headline({"neighbourhoods": {"a": "unchanged"}, "shape": {"a": "converging"}}, 3, [0, 10])[-44:]
    'In a shape converges, neighbourhoods do not.'
    """
    if n_models < 2:
        return "One model only: its trajectory and geometry are shown; the spread needs at least two models."
    first = next(iter(verdicts.values()))
    opening = f"{n_models} models, {len(first)} layer{'s' * (len(first) > 1)}"
    counted = {name: _counted(layers.values()) for name, layers in verdicts.items()}
    if len(steps) == 1 and not {one for layers in verdicts.values() for one in layers.values()} <= NOT_COMPARED:
        return f"{opening} at one step, {int(steps[0])}: every two models are compared below."
    if len(set(counted.values())) == 1 and all(layers == first for layers in verdicts.values()):
        return f"{opening}: {next(iter(counted.values()))}."
    told = "; ".join(f"{name}: {text}" for name, text in counted.items())
    return f"{opening}: {told}.{_differences(verdicts)}"


def inherited(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in which of the layers that converge the agreement is inherited at each scale at which they do.

    Examples
    --------
    >>> inherited({"a": {"scales": {"shape": {"verdict": "converging", "agreement": "inherited"}}}})
    ' What converges agrees as the inputs or untrained networks do: that is inherited.'
    """
    where = {
        name: {one.get("agreement") for one in entry["scales"].values() if one["verdict"] == "converging"}
        for name, entry in layers.items()
    }
    converging = [name for name, found in where.items() if found]
    found = [name for name in converging if where[name] == {"inherited"}]
    if not found:
        return ""
    what = "What converges" if found == converging else f"What converges in {_named(found)}"
    return f" {what} agrees as the inputs or untrained networks do: that is inherited."


def against_start(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Say of which layers the last change, which the verdict is of, is the smaller part of the whole.

    Examples
    --------
    >>> one = {"verdict": "diverging", "start": 0.5, "end": 0.2, "low": 0.1, "high": 0.3}
    >>> against_start({"a": {"scales": {"shape": one}}})
    ' What diverges ends closer than it began.'
    """
    said = ""
    for verdict, verb, how in (("diverging", "diverges", "closer"), ("converging", "converges", "wider apart")):
        places = {
            name: [one for one in entry["scales"].values() if one["verdict"] == verdict]
            for name, entry in layers.items()
        }
        having = [name for name, some in places.items() if some]
        found = [name for name in having if all(_is_beyond(one, how) for one in places[name])]
        if found:
            said += f" What {verb}{'' if found == having else f' in {_named(found)}'} ends {how} than it began."
    return said


def _is_beyond(one: Mapping[str, Any], how: str) -> bool:
    start, low, high = (one.get(name) for name in ("start", "low", "high"))
    if start is None or low is None or high is None:
        return False
    return bool(high < start if how == "closer" else low > start)


def _differences(verdicts: Mapping[str, Mapping[str, str]]) -> str:
    first = next(iter(verdicts.values()))
    differ = [layer for layer in first if len({layers[layer] for layers in verdicts.values()}) > 1]
    if not differ:
        return ""
    sides = {_who(verdicts, layer) for layer in differ}
    converging, others = next(iter(sides))
    if len(sides) > 1 or not converging or not others:
        return f" The scales differ in {_named(differ)}."
    verb = "converge" if converging.endswith("s") or " and " in converging else "converges"
    negation = "do not" if others.endswith("s") or " and " in others else "does not"
    return f" In {_named(differ)} {converging} {verb}, {others} {negation}."


def _who(verdicts: Mapping[str, Mapping[str, str]], layer: str) -> tuple[str, str]:
    converging = [name for name, layers in verdicts.items() if layers[layer] == "converging"]
    others = [name for name in verdicts if name not in converging]
    return " and ".join(converging), " and ".join(others)


def _named(layers: Sequence[str]) -> str:
    more = f" and {len(layers) - MOST_NAMED} more" if len(layers) > MOST_NAMED else ""
    quoted = [f"{name!r}" if name.isdigit() else name for name in layers[:MOST_NAMED]]  # else they read as counts
    return ", ".join(quoted) + more


def _counted(verdicts: Any) -> str:
    counts = Counter(verdicts)
    return ", ".join(f"{counts[name]} {words[counts[name] > 1]}" for name, words in COUNTED.items() if counts[name])


def _digits_apart(values: Any, fewest: int = 2, most: int = 6) -> int:
    """Return with how many decimals the first and last of some values that differ can be told apart."""
    some = (digits for digits in range(fewest, most) if f"{values[0]:.{digits}f}" != f"{values[-1]:.{digits}f}")
    return next(some, fewest)


def _with_interval(value: float, low: float, high: float, step: int, digits: int) -> str:
    known = math.isfinite(low) and math.isfinite(high)
    interval = f" [{low:.{digits}f}, {high:.{digits}f}]" if known else ""
    return f"{value:.{digits}f}{interval} at step {step}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
