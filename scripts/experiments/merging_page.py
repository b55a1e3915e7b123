"""What came of the merging experiment, in words and tables: every figure is from the run's own numbers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np
import students
from mails import HELD_OUT, READ, TRAIN, Mails
from scipy import stats
from students import BEST, MERGED, NONE, PERMUTED, Task
from teachers import Teaching

BARS = (
    ("few labels", "held-out distance", MERGED, NONE, "ratio", 0.70),
    ("few labels", "held-out distance", MERGED, PERMUTED, "ratio", 0.80),
    ("few labels", "train distance", MERGED, NONE, "ratio", 0.40),
    ("few labels", "accuracy", MERGED, NONE, "difference", -0.02),
    ("few labels", "10-NN accuracy", MERGED, PERMUTED, "difference", 0.05),
    *(
        (task, number, MERGED, NONE, "ratio", bar)
        for task in ("language", "early language")
        for number, bar in (("held-out distance", 0.85), ("validation loss", 1.05))
    ),
)
"""Task, number, arm, what it is compared with, how, and the bar: at most for ratios, at least for differences."""

Found: TypeAlias = dict[str, dict[str, list[dict[str, float]]]]
"""By task and arm, the numbers of every seed."""


def page(
    found: dict[str, Any], rows: list[dict[str, object]], tasks: tuple[Task, ...], seeds: int, mails: Mails,
    teaching: Teaching, seconds: float,
) -> str:  # fmt: skip
    """Return RESULTS.md."""
    names = [str(row["operator"]) for row in rows if "from teachers" not in row]
    scales = ", ".join(f"{len(target)} ({target.gauge.perplexity:g})" for target in teaching.merged.values())
    operators = [[row["operator"], f"{row['same class']:.3f}", _number(row.get("from teachers"))] for row in rows]
    lines = [
        "# A student taught by the consensus of pretrained models",
        "",
        f"{len(names)} teachers ({', '.join(names)}); {len(mails.sets[TRAIN])} e-mails to teach on, "
        f"{len(mails.sets[HELD_OUT])} held out and {len(mails.sets[READ])} of those that language models read, in "
        f"{len(mails.classes)} classes ({', '.join(mails.classes)}); operators "
        f"({', '.join(teaching.merged)}) of so many e-mails, at a perplexity: {scales}; {seeds} seeds. Distances are "
        "squared and calibrated: 0 the same operator, 1 an unrelated one; the teachers' spread among themselves is "
        f"{teaching.spread:.3f}. Held-out distances are to P* merged anew on the held-out e-mails. Numbers are means "
        "over seeds; in brackets the difference from the control, paired by seed, with its 95% interval.",
        "",
        *_answers(found, teaching),
        "",
        "![PHATE of P* and of every teacher](operators.png)",
        "",
        "## What the operators know of the classes (held-out e-mails)",
        "",
        *_table(["operator", "same class in one step", "mean distance from the teachers"], operators),
    ]
    for task in tasks:
        lines += ["", f"## {task.name.capitalize()}", "", _about(task), "", *_arms(found[task.name])]
    lines += ["", "## Against the bars", "", *_bars(found), "", _how(seconds)]
    return "\n".join(lines) + "\n"


def _about(task: Task) -> str:
    sizes, few = students.SIZES, task.labels_per_class
    classes = f"learns the classes from {few} labels of each" if few else "learns the classes from all labels"
    learns = "learns the language of other e-mails" if task.student == "llama" else classes
    return (
        f"A {task.student.capitalize()} of {sizes['num_hidden_layers']} layers with {sizes['hidden_size']} features, "
        f"from scratch, {learns}, for {task.steps} steps; weight of the match {task.weight:g}, on the e-mails of "
        f"{task.taught!r}, {task.batch_size} a step, rows={task.rows!r}."
    )


def _arms(arms: dict[str, list[dict[str, float]]]) -> list[str]:
    names = list(arms[NONE][0])
    body = []
    for arm, runs in arms.items():
        cells = [arm]
        for name in names:
            values = np.array([one[name] for one in runs])
            cell = f"{values.mean():.3f}"
            if arm != NONE and name != "cpu_s":
                cell += f" ({_paired(values - np.array([one[name] for one in arms[NONE]]))})"
            cells.append(cell if name != "cpu_s" else f"{values.mean():.0f}")
        body.append(cells)
    return _table(["arm", *names], body)


def _bars(found: dict[str, Any]) -> list[str]:
    body = []
    for task, number, arm, other, how, bar in BARS:
        if task not in found or arm not in found[task] or other not in found[task]:
            continue
        one, two = (np.array([run[number] for run in found[task][name]]) for name in (arm, other))
        values = one / two if how == "ratio" else one - two
        held = values.mean() <= bar if how == "ratio" else values.mean() >= bar
        sign = "at most" if how == "ratio" else "at least"
        said = "yes" if held else "no"
        what = f"{number}: {arm} {'over' if how == 'ratio' else 'less'} {other}"
        body.append([task, what, _interval(values), f"{sign} {bar:g}", said])
    return _table(["task", "what", "seen", "bar", "held"], body)


def _answers(found: dict[str, Any], teaching: Teaching) -> list[str]:
    """Say in words what came out, whichever way."""
    lines = []
    for task, arms in found.items():
        if PERMUTED not in arms:
            continue
        number = "held-out distance"
        one, none, permuted = (np.array([run[number] for run in arms[name]]) for name in (MERGED, NONE, PERMUTED))
        real = _sure(one - permuted, less=True)
        lines.append(
            f"- **{task.capitalize()}**: the match takes the held-out distance to {one.mean() / none.mean():.2f} of "
            f"the control's, a relabelled target to {permuted.mean() / none.mean():.2f}; what the target means "
            f"{'counts' if real else 'is not shown to count'} ({_paired(one - permuted)})."
        )
        if BEST in arms:
            best = np.array([run[number] for run in arms[BEST]])
            lines.append(
                f"- A merged target teaches better than the best teacher alone ({teaching.best})? {_said(one - best)}: "
                f"{one.mean():.3f} against {best.mean():.3f} ({_paired(one - best)}); accuracy "
                f"{_mean(arms, MERGED, 'accuracy')} against {_mean(arms, BEST, 'accuracy')}."
            )
    return lines


def _said(difference: np.ndarray) -> str:
    if _sure(difference, less=True):
        return "Yes"
    return "No, worse" if _sure(-difference, less=True) else "Not shown"


def _mean(arms: dict[str, Any], arm: str, number: str) -> str:
    return f"{np.mean([run[number] for run in arms[arm]]):.3f}"


def _sure(values: np.ndarray, *, less: bool) -> bool:
    half = _half(values)
    return bool(values.mean() + half < 0) if less else bool(values.mean() - half > 0)


def _half(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def _paired(values: np.ndarray) -> str:
    return f"{values.mean():+.3f} ± {_half(values):.3f}"


def _interval(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {_half(values):.3f}"


def _number(value: object) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: list[str], body: list[list[Any]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *body)]


def _how(seconds: float) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("repaudit", "torch", "transformers"))
    return (
        f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores; this run took {seconds / 60:.1f} "
        "minutes (students and teachers that an earlier run finished are not trained or recorded again)."
    )
