"""RESULTS.md of the experiment on convergence: every figure and every claim from the results of the run at hand."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from convergence_findings import RELABELLINGS, Curve, Estimate, Grouping, Run, curves_of, groupings, recipe_spreads

SIGNIFICANT: Final = 0.05
VERDICTS: Final = ("converging", "diverging", "unchanged", "unrelated", "undecided")
MOVES: Final = {-1: "closer", 1: "further apart", 0: "no difference shown"}

READING: Final = """## How to read the numbers

- *Spread*: how different the models' geometries of the same passages are. 0: identical; 1: as different as those of \
unrelated models. In brackets is its 95% interval, over other seeds and other passages; few seeds make it wide.
- *Neighbourhoods* looks at about the 15 nearest passages of each, *shape* at a quarter of all passages.
- *Layers* are compared by their role: *middle* is the block at half the depth, *penultimate* the block before the last.
- *Verdict*: the last significant change of the curve. One that first rises and then falls is *converging*, even where \
it ends above its start. *Unrelated*: at the end the models cannot be told from unrelated ones.
- *Closer*, *further apart*: two spreads differ by more than their two margins of error together. Between the start \
and the end of one curve this is the stricter test: the verdict compares them on the same models and passages, and \
sees smaller changes.
- *Settled*: the step from which on the spread stays within the interval of its end.
- *Agreement* is learned where the models are significantly closer to each other than to their untrained networks and \
to the inputs, and inherited where they are shown to be no closer to each other than to one of these. Learned does not \
say that they are closer to each other than they were untrained: that is *closer*, above.
- Each verdict is right or wrong by itself: of curves without any change, up to one in twenty may be said to change."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def curve_table(curves: Iterable[Curve]) -> str:
    header = ("layer", "start", "peak", "end", "verdict", "phases (steps)", "settled", "agreement")
    return table(header, (one.cells() for one in curves))


def counted(curves: Sequence[Curve], kinds: Iterable[Any], kind: Callable[[Curve], Any]) -> str:
    """Return how many curves are of each kind, those of none included."""
    return ", ".join(f"{sum(kind(one) == name for one in curves)} {name}" for name in kinds)


def listed(curves: Sequence[Curve], kinds: Iterable[Any], kind: Callable[[Curve], Any]) -> str:
    """Return a line for every kind of curve that says which are of it, or that none is."""
    lines = []
    for name in kinds:
        layers: dict[str, list[str]] = {}
        for one in curves:
            if kind(one) == name:
                layers.setdefault(one.models, []).append(one.layer)
        which = "; ".join(f"{models} ({', '.join(some)})" for models, some in layers.items())
        lines.append(f"- {name}: {which or 'none'}.")
    return "\n".join(lines)


def compared(pairs: Mapping[str, tuple[Estimate, Estimate]]) -> str:
    """Say for which layers the first estimate is below or above the second, and for which neither is shown."""
    layers = {
        words: [layer for layer, (one, other) in pairs.items() if one.against(other) == sign]
        for sign, words in MOVES.items()
    }
    return "; ".join(f"{words}: {', '.join(some) or 'nowhere'}" for words, some in layers.items())


def _moved(one: Curve) -> str:
    return MOVES[one.end.against(one.start)]


def _agreement(one: Curve) -> str:
    return str(one.entry["agreement"] or "neither shown")


def _recipes(run: Run) -> str:
    rows = []
    for recipe, replicas in run.members.items():
        one, losses = next(iter(replicas.values())), [run.losses[name] for name in replicas]
        ranges = (_mean_and_range([loss[name] for loss in losses]) for name in ("first", "last", "held_out"))
        seconds = f"{np.mean([loss['seconds'] for loss in losses]):.0f}"
        sizes = one.width, one.depth, f"{one.learning_rate:g}", len(replicas), f"{losses[0]['parameters']:,}"
        rows.append((recipe, *sizes, *ranges, seconds))
    header = ("recipe", "width", "blocks", "learning rate", "seeds", "parameters", "loss, first 10 steps")
    return table((*header, "loss, last 10 steps", "held-out loss, end", "seconds each"), rows)


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _opening(run: Run) -> str:
    summary = run.summary
    return f"""# Convergent training trajectories

{len(run.losses)} small Llama models learned Python from the source of its standard library, by {len(run.members)} \
recipes, for {summary["steps"][-1]} steps. They were audited on {run.together["merged"].sizes["sample"]} passages from \
modules that none of them is trained on. Replicas of a recipe differ in their seed, that is in their first weights and \
in the order of their data; no two models share a seed.

{_recipes(run)}

Losses are in nats per token: the mean over seeds, with the smallest and the largest in parentheses. Held-out: on \
source of the modules that the passages are from."""


def _in_short(run: Run, curves: Sequence[Curve], grouped: Sequence[Grouping]) -> str:
    lines = ["## In short", ""]
    for scale in run.scales:
        those = [one for one in curves if one.scale == scale]
        lines += [
            f"- Replicas of one recipe, {scale}, {len(those)} curves (a recipe and a layer each): "
            f"{counted(those, VERDICTS, lambda one: one.verdict)}. At the end, against the untrained networks: "
            f"{counted(those, MOVES.values(), _moved)}. Their agreement: "
            f"{counted(those, ('learned', 'inherited', 'neither shown'), _agreement)}."
        ]
    shown = [one for one in grouped if one.pvalue < SIGNIFICANT]
    lines += [
        f"- Models of one recipe are closer to each other than to those of other recipes: shown in {len(shown)} of "
        f"{len(grouped)} layers and scales{_smallest(run, grouped)}.",
        f"- All models as one population: {run.summary['headline']}",
    ]
    losses = {
        recipe: float(np.mean([run.losses[name]["held_out"] for name in names]))
        for recipe, names in run.members.items()
    }
    best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    lines.append(
        f"- Held-out loss: lowest with {best} ({losses[best]:.2f}), highest with {worst} ({losses[worst]:.2f})."
    )
    return "\n".join(lines)


def _by_seed(run: Run, curves: Sequence[Curve]) -> str:
    """Return what replicas of one recipe do, in words and in tables."""
    parts = ["## Does the seed matter? Replicas of one recipe"]
    for scale in run.scales:
        those = [one for one in curves if one.scale == scale]
        parts += [
            f"### {scale.capitalize()}: what, where and when",
            listed(those, VERDICTS, lambda one: one.verdict),
            "At the end, against the untrained networks:",
            listed(those, MOVES.values(), _moved),
            "When do the converging layers settle?",
            _settling(run, those),
            f"Do replicas of other recipes end closer to each other than those of {those[0].models}?",
            _against_first(those),
        ]
    for recipe in run.members:
        for scale in run.scales:
            those = [one for one in curves if (one.models, one.scale) == (recipe, scale)]
            parts += [f"### {recipe}, {scale}", curve_table(those)]
        parts.append(f"More in the [report of {recipe}](recipes/{recipe}/report.html).")
    return "\n\n".join(parts)


def _settling(run: Run, curves: Sequence[Curve]) -> str:
    lines = []
    for recipe in run.members:
        those = [one for one in curves if one.models == recipe and one.verdict == "converging"]
        lines.append(f"- {recipe}: {', '.join(f'{one.layer} {one.settled}' for one in those) or 'none converges'}.")
    return "\n".join(lines)


def _against_first(curves: Sequence[Curve]) -> str:
    first = {one.layer: one.end for one in curves if one.models == curves[0].models}
    others = dict.fromkeys(one.models for one in curves if one.models != curves[0].models)
    ends = {
        other: {one.layer: (one.end, first[one.layer]) for one in curves if one.models == other} for other in others
    }
    return "\n".join(f"- {other}: {compared(pairs)}." for other, pairs in ends.items())


def _smallest(run: Run, grouped: Sequence[Grouping]) -> str:
    """Say so where there are too few models for any p-value to be small."""
    sizes = [len(names) for names in run.members.values()]
    alike = math.prod(map(math.factorial, sizes)) * math.factorial(len(sizes))  # recipes are of one size
    smallest = len(grouped) * alike / math.factorial(sum(sizes))
    few = smallest >= SIGNIFICANT
    return f" ({sum(sizes)} models are too few: no p can be below {smallest:.2g})" if few else ""


def _by_recipe(run: Run, grouped: Sequence[Grouping]) -> str:
    """Return what the recipes do to each other, in words and in tables."""
    shown, absent = (
        "; ".join(
            f"{scale} ({', '.join(layers)})"
            for scale in run.scales
            if (layers := [o.layer for o in grouped if o.scale == scale and (o.pvalue < SIGNIFICANT) == is_shown])
        )
        for is_shown in (True, False)
    )
    parts = [
        "## Does the recipe matter? All models together",
        "Spread within recipes (mean over pairs of models of one recipe) and between them (over pairs of two recipes). "
        f"p is the probability that recipes dealt out at random to the {len(run.losses)} models would have a spread "
        f"within them as small as at the end: {RELABELLINGS:,} draws, adjusted for {len(grouped)} tests (Holm).",
        table(
            ("scale", "layer", "start: within", "between", "end: within", "between", "p"), (o.cells() for o in grouped)
        ),
        f"- Models of one recipe are closer to each other, p < {SIGNIFICANT}: {shown or 'nowhere'}.\n"
        f"- Not shown: {absent or 'nowhere'}{_smallest(run, grouped)}.",
    ]
    together = curves_of("all", run.together)
    for index, scale in enumerate(run.scales):
        figure = f"analysis/figures/groups{f'-{scale}' if index else ''}.png"  # the first scale's has no suffix
        parts += [
            f"### {scale.capitalize()}: do recipes come closer to each other?",
            f"![Spread within recipes (solid) and between them (dashed)]({figure})",
            "End against start, untrained:",
            _since_start(run, scale),
            f"The spread at the end, step {run.summary['steps'][-1]}, within a recipe and between two:",
            _group_table(run, scale),
            f"All {len(run.losses)} models, whatever their recipe:",
            curve_table(one for one in together if one.scale == scale),
        ]
    parts.append("More in the [report of all models](analysis/report.html).")
    return "\n\n".join(parts)


def _since_start(run: Run, scale: str) -> str:
    return "\n".join(
        f"- {name} and {other}: {compared({layer: (end, start) for layer, (start, end) in layers.items()})}."
        for (name, other), layers in recipe_spreads(run, scale).items()
        if name != other
    )


def _group_table(run: Run, scale: str) -> str:
    rows = [
        (name if name == other else f"{name} and {other}", *(end for _, end in layers.values()))
        for (name, other), layers in recipe_spreads(run, scale).items()
    ]
    return table(("recipes", *run.summary["layers"]), rows)


def _made(run: Run) -> str:
    """Return where the numbers come from: machine, versions, parameters, times."""
    summary, losses = run.summary, list(run.losses.values())
    packages = {"python": platform.python_version(), **summary["versions"]}
    packages |= {name: version(name) for name in ("lightning", "transformers", "tokenizers")}
    threads = ", ".join(map(str, sorted({loss["threads"] for loss in losses})))
    minutes = sum(loss["seconds"] for loss in losses) / 60
    gauge = ", ".join(f"{name} {value}" for name, value in summary["parameters"]["gauge"].items() if value is not None)
    return f"""## How it was made

- Time: training {minutes:.1f} minutes ({run.trained} of {len(losses)} replicas in this run, the others before), \
analysis {run.analysis_seconds / 60:.1f} minutes in this run (what earlier runs computed is not computed again).
- Machine: {_processor()}, {os.cpu_count()} cores, {platform.platform()}; threads in training: {threads}.
- Versions: {", ".join(f"{name} {number}" for name, number in packages.items())}.
- Audited at steps {", ".join(map(str, summary["steps"]))}; probe set {summary["fingerprint"]}.
- Scales: {", ".join(f"{one['name']} ({one['scale']:g} effective neighbours)" for one in summary["scales"])}; gauge: \
{gauge}; seed of the analysis {summary["parameters"]["seed"]}.
- Left out: {"; ".join(summary["left_out"]) or "nothing"}."""


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def write_results(run: Run, out: Path) -> Path:
    """Write RESULTS.md, and give its path."""
    curves = [one for recipe, results in run.alone.items() for one in curves_of(recipe, results)]
    grouped = groupings(run)
    parts = [
        _opening(run),
        _in_short(run, curves, grouped),
        READING,
        _by_seed(run, curves),
        _by_recipe(run, grouped),
        _made(run),
    ]
    path = out / "RESULTS.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
