"""Does a consensus of pretrained models teach a small student?

Four pretrained models read labelled e-mails; their operators are merged by every strategy, and small students are
fine-tuned to the merged operator P*, to that of the best teacher alone, to relabelled copies of P* (what a target
without meaning does), to the teachers' features, or to nothing. Every number is of e-mails that no student was trained
on, against operators merged anew on these. Writes stores, analyses with their reports, and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import students
import teachers
import torch
import xarray as xr
from mails import FEW, HELD_OUT, TRAIN, Mails
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats
from students import BEST, FEATURES, MERGED, NONE, PERMUTED, WITHIN, Task
from teachers import LAYER, Teaching

import repaudit as ra

SAMPLES = 288
OTHERS = 2000
ALL_ARMS = (NONE, MERGED, BEST, PERMUTED, WITHIN, FEATURES)
TASKS = (
    Task("few labels", "bert", FEW, 1.0, 300, ALL_ARMS),
    Task("many labels", "bert", None, 1.0, 300, ALL_ARMS),
    Task("language", "llama", None, 0.1, 400, (NONE, MERGED, PERMUTED)),
)
BARS = (
    ("few labels", "held-out distance", MERGED, NONE, "ratio", 0.70),
    ("few labels", "held-out distance", MERGED, PERMUTED, "ratio", 0.80),
    ("few labels", "train distance", MERGED, NONE, "ratio", 0.40),
    ("few labels", "accuracy", MERGED, NONE, "difference", -0.02),
    ("few labels", "10-NN accuracy", MERGED, PERMUTED, "difference", 0.05),
    ("language", "held-out distance", MERGED, NONE, "ratio", 0.85),
    ("language", "validation loss", MERGED, NONE, "ratio", 1.05),
)
"""Task, number, arm, what it is compared with, how, and the bar: at most for ratios, at least for differences."""

Found: TypeAlias = dict[str, dict[str, list[dict[str, float]]]]
"""By task and arm, the numbers of every seed."""

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "experiment-merging"
    parser.add_argument("--out", type=Path, default=default, help="folder of stores, analyses and RESULTS.md")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=None, help="perplexity of the target; a quarter of the samples")
    parser.add_argument("--quick", action="store_true", help="two small teachers, 2 seeds, few steps")
    options = parser.parse_args()
    _quiet()
    start = time.time()
    samples, models, seeds, tasks = SAMPLES, list(teachers.pretrained.models()), options.seeds, TASKS
    if options.quick:
        samples, models, seeds = 96, ["minilm-l6", "minilm-l3"], 2
        tasks = tuple(replace(task, steps=40, arms=(NONE, MERGED, PERMUTED)) for task in TASKS if task.name != "many labels")
    options.out.mkdir(parents=True, exist_ok=True)
    mails = Mails.load(samples, OTHERS // (10 if options.quick else 1))
    with console.status("recording the teachers"):
        stores = teachers.record(mails, options.out, models)
    scale = options.scale or samples / 4
    teaching = Teaching.of(stores, mails, scale)
    with console.status("analysing the teachers"):
        for name, store in stores.items():
            ra.analyze(store, options.out / f"teachers-{name}.analysis", merge="frobenius")
    found = run(tasks, seeds, mails, teaching, stores, options.out)
    rows = teachers.merges(stores[HELD_OUT], mails.labels(HELD_OUT), scale)
    draw(options.out)
    page = write(found, rows, tasks, seeds, mails, teaching, scale, time.time() - start)
    (options.out / "RESULTS.md").write_text(page, encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps({"students": found, "operators": rows}, indent=1))
    console.print(page, markup=False)


def run(
    tasks: tuple[Task, ...], seeds: int, mails: Mails, teaching: Teaching, stores: dict[str, Path], folder: Path
) -> Found:
    """Train every student, one per core at a time, or read the numbers of those that are finished."""
    jobs = [(task, arm, seed) for seed in range(seeds) for task in tasks for arm in task.arms]
    numbers: dict[tuple[str, str, int], dict[str, float]] = {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _alone) as pool:
        waiting = {
            pool.submit(students.train, task, arm, seed, mails, teaching, stores, folder): (task.name, arm, seed)
            for task, arm, seed in jobs
        }
        with console.status(f"training {len(jobs)} students") as status:
            for future in as_completed(waiting):
                numbers[waiting[future]] = future.result()
                status.update(f"trained {len(numbers)} of {len(jobs)} students")
    found: Found = {}
    for task, arm, seed in jobs:
        found.setdefault(task.name, {}).setdefault(arm, []).append(numbers[task.name, arm, seed])
    return found


def _alone() -> None:
    """Let a process use one core."""
    torch.set_num_threads(1)
    _quiet()


def draw(folder: Path) -> None:
    """Draw PHATE of P* and of every teacher's operator on the held-out e-mails, in one frame."""
    frames = xr.open_zarr(folder / f"teachers-{HELD_OUT}.analysis/results.zarr", group="frames", consolidated=False)
    frames = frames.isel(scale=-1).load()
    names = [None, *(str(name) for name in frames["model"].values)]
    figure = Figure(figsize=(4 * len(names), 4), layout="constrained")
    for name, ax in zip(names, figure.subplots(1, len(names)), strict=True):
        ra.plots.plot_frame(frames, LAYER, 0, ax, model=name)
        ax.set_title(name or "P*", loc="left")
    figure.savefig(folder / "operators.png", dpi=150)


def write(
    found: dict[str, Any], rows: list[dict[str, object]], tasks: tuple[Task, ...], seeds: int, mails: Mails,
    teaching: Teaching, scale: float, seconds: float,
) -> str:  # fmt: skip
    """Return RESULTS.md."""
    teachers_named = [str(row["operator"]) for row in rows if "from teachers" not in row]
    lines = [
        "# A student taught by the consensus of pretrained models", "",
        f"{len(teachers_named)} teachers ({', '.join(teachers_named)}), {len(mails.sets[TRAIN])} e-mails to teach on and "
        f"{len(mails.sets[HELD_OUT])} held out, in {len(mails.classes)} classes ({', '.join(mails.classes)}); perplexity "
        f"{scale:g}; {seeds} seeds. Distances are squared and calibrated: 0 the same operator, 1 an unrelated one; the "
        f"teachers' spread among themselves is {teaching.spread:.3f}. Held-out distances are to P* merged anew on the "
        "held-out e-mails. Numbers are means over seeds; differences are paired by seed, with 95% intervals.", "",
        *_answers(found, teaching), "", "![PHATE of P* and of every teacher](operators.png)", "", "## What the operators know of the classes (held-out e-mails)", "",
        *_table(["operator", "same class in one step", "mean distance from the teachers"],
                [[row["operator"], f"{row['same class']:.3f}", _number(row.get("from teachers"))] for row in rows]),
    ]  # fmt: skip
    for task in tasks:
        lines += ["", f"## {task.name.capitalize()}", "", _about(task), "", *_arms(found[task.name])]
    lines += ["", "## Against the bars", "", *_bars(found), "", _how(seconds)]
    return "\n".join(lines) + "\n"


def _about(task: Task) -> str:
    student = f"{task.student.capitalize()}, {students.SIZES['num_hidden_layers']} layers of {students.SIZES['hidden_size']}"
    if task.student == "llama":
        learns = "learns the language of other e-mails"
    else:
        learns = f"learns the class of {task.labels_per_class or 'all'} e-mails" + " a class" * bool(task.labels_per_class)
    return f"A {student}, from scratch, {learns} for {task.steps} steps; weight of the match {task.weight:g}."


def _arms(arms: dict[str, list[dict[str, float]]]) -> list[str]:
    names = [name for name in arms[NONE][0]]
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
        body.append([task, f"{number}: {arm} {'/' if how == 'ratio' else '-'} {other}", _interval(values), f"{sign} {bar:g}", said])
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
            f"- **{task}**: the match takes the held-out distance to {one.mean() / none.mean():.2f} of the control's, a "
            f"relabelled target to {permuted.mean() / none.mean():.2f}; what the target means "
            f"{'counts' if real else 'is not shown to count'} ({_paired(one - permuted)})."
        )
        if BEST in arms:
            best = np.array([run[number] for run in arms[BEST]])
            lines.append(
                f"- *Better than the best teacher alone* ({teaching.best}): {_said(one - best)}, {one.mean():.3f} against "
                f"{best.mean():.3f} ({_paired(one - best)}); accuracy {_mean(arms, MERGED, 'accuracy')} against "
                f"{_mean(arms, BEST, 'accuracy')}."
            )
    return lines


def _said(difference: np.ndarray) -> str:
    if _sure(difference, less=True):
        return "yes"
    return "no, worse" if _sure(-difference, less=True) else "not shown"


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
        f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores; this run took {seconds / 60:.1f} minutes "
        "(students and teachers that an earlier run finished are not trained or recorded again)."
    )


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for unhelpful in ("does not have many workers", "have no `val_dataloader`", "LeafSpec.* is deprecated", "max_epochs"):
        warnings.filterwarnings("ignore", message=f".*{unhelpful}")


if __name__ == "__main__":
    main()
