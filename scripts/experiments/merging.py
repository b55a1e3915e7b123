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
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import students
import teachers
import torch
import xarray as xr
from mails import FEW, HELD_OUT, READ, Mails
from matplotlib.figure import Figure
from merging_page import Found, page
from rich.console import Console
from students import BEST, FEATURES, MERGED, NONE, PERMUTED, WITHIN, Task
from teachers import LAYER, Teaching

import repaudit as ra

SAMPLES, HELD, OTHERS, TAUGHT = 288, 288, 2000, 1152
"""E-mails to teach on, held out, to learn language from, and those of the last that language models are taught on."""
ALL_ARMS = (NONE, MERGED, BEST, PERMUTED, WITHIN, FEATURES)
TASKS = (
    Task("few labels", "bert", FEW, 1.0, 200, ALL_ARMS),
    Task("early language", "llama", None, 0.05, 40, (NONE, MERGED, PERMUTED), READ, "minibatch", 256),
    Task("language", "llama", None, 0.03, 300, (NONE, MERGED, PERMUTED), READ, "minibatch", 128),
    Task("many labels", "bert", None, 0.3, 200, ALL_ARMS),
)
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "experiment-merging"
    parser.add_argument("--out", type=Path, default=default, help="folder of stores, analyses and RESULTS.md")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=None, help="perplexity; by default a quarter of the samples")
    parser.add_argument("--quick", action="store_true", help="two small teachers, 2 seeds, few steps")
    options = parser.parse_args()
    _quiet()
    start = time.time()
    sizes, models, seeds, tasks = (
        (SAMPLES, HELD, OTHERS, TAUGHT),
        list(teachers.pretrained.models()),
        options.seeds,
        TASKS,
    )
    if options.quick:
        sizes, models, seeds = (96, 96, 300, 192), ["minilm-l6", "minilm-l3"], 2
        short = [task for task in TASKS if task.name in ("few labels", "language")]
        tasks = tuple(replace(task, steps=40, batch_size=64, arms=(NONE, MERGED, PERMUTED)) for task in short)
    options.out.mkdir(parents=True, exist_ok=True)
    mails = Mails.load(*sizes)
    with console.status("recording the teachers"):
        stores = teachers.record(mails, options.out, models)
    teaching = Teaching.of(stores, mails, options.scale)
    with console.status("analysing the teachers"):
        for name, store in stores.items():
            ra.analyze(store, options.out / f"teachers-{name}.analysis", merge="frobenius")
    found = run(tasks, seeds, mails, teaching, stores, options.out)
    rows = teachers.merges(stores[HELD_OUT], mails.labels(HELD_OUT), options.scale)
    draw(options.out)
    text = page(found, rows, tasks, seeds, mails, teaching, time.time() - start)
    (options.out / "RESULTS.md").write_text(text, encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps({"students": found, "operators": rows}, indent=1))
    console.print(text, markup=False)


def run(
    tasks: tuple[Task, ...], seeds: int, mails: Mails, teaching: Teaching, stores: dict[str, Path], folder: Path
) -> Found:
    """Train every student, one per core at a time, or read the numbers of those that are finished."""
    jobs = [(task, arm, seed) for task in tasks for seed in range(seeds) for arm in task.arms]
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


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for unhelpful in ("does not have many workers", "have no `val_dataloader`", "LeafSpec.* is deprecated"):
        warnings.filterwarnings("ignore", message=f".*{unhelpful}")


if __name__ == "__main__":
    main()
