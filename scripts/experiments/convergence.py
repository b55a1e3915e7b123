"""Convergent training trajectories: do small language models come to represent Python the same way, and when?

Trains replicas of a small Llama on the standard library's own source by several recipes. One is the base; the others
change its width, its depth or its learning rate. Every replica has a seed of its own, and all are recorded into one
store. They are analysed recipe by recipe (what does the seed change?) and together (what does the recipe change?), at
two scales. Layers of models of different depth are compared by their role.

    .venv/bin/python scripts/experiments/convergence.py            # about 20 minutes on two cores
    .venv/bin/python scripts/experiments/convergence.py --quick    # smaller, fewer and shorter: less than 5 minutes

Writes store.zarr, analysis/report.html (all models), recipes/*/report.html, and RESULTS.md. Interrupt it at any time:
the same command goes on with the replica that was in training, and computes no finished part again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import xarray as xr
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convergence_findings import Run
from convergence_results import write_results
from stdlib_language_models import Corpus, Replica, quieten, validation_loss

import repaudit as ra

LAYERS: Final = {
    "embeddings": "model.embed_tokens",
    "middle": "depth:0.5",
    "penultimate": "hidden_states[-2]",
    "last": "depth:1",
}
"""Layers by their role, so that four blocks and eight can be compared, and where they are in any of the models."""
VALIDATION_BLOCKS: Final = 512

console = Console()


@dataclass(frozen=True)
class Plan:
    """Which replicas there are: width, depth and learning rate of each recipe, seeds of each, and steps."""

    recipes: Mapping[str, tuple[int, int, float]]
    seeds: int
    steps: int
    frames: int  # steps at which the report shows the passages as they move

    @property
    def members(self) -> dict[str, dict[str, Replica]]:
        """The replicas of each recipe by name. No two share a seed: equal first weights would not be independent."""
        return {
            recipe: {
                f"{recipe}-seed{seed}": Replica(*sizes, seed=seed, steps=self.steps)
                for seed in range(number * self.seeds, (number + 1) * self.seeds)
            }
            for number, (recipe, sizes) in enumerate(self.recipes.items())
        }

    @property
    def replicas(self) -> dict[str, Replica]:
        return {name: replica for members in self.members.values() for name, replica in members.items()}

    @property
    def audited(self) -> list[int]:
        """The start, every power of two from 2 on, and the end."""
        return sorted({0, self.steps, *(2**k for k in range(1, self.steps.bit_length()))})


FULL: Final = Plan(
    {"base": (64, 4, 2e-3), "wide": (128, 4, 2e-3), "deep": (64, 8, 2e-3), "fast": (64, 4, 6e-3)},
    seeds=3,
    steps=512,
    frames=5,
)
QUICK: Final = Plan(
    {"base": (32, 4, 4e-3), "wide": (64, 4, 4e-3), "deep": (32, 8, 4e-3), "fast": (32, 4, 12e-3)},
    seeds=2,
    steps=32,
    frames=0,
)


def is_recorded(store: Path, name: str, replica: Replica) -> bool:
    """Whether the store has a replica up to its last step; end the program where it has another of that name."""
    tree = ra.open_store(store) if store.exists() else None
    if tree is None or name not in tree.repaudit.models:
        return False
    found = tree.repaudit.facts(name).get("replica")
    if found != asdict(replica):
        sys.exit(
            f"{store} holds {name} with other parameters ({found}) than those asked for ({asdict(replica)}): choose "
            "another --out, or remove it."
        )
    return tree.repaudit.steps(name)[-1:] == [replica.steps]


def train(name: str, replica: Replica, plan: Plan, corpus: Corpus, store: Path) -> dict[str, Any]:
    """Train and record one replica, and give its losses."""
    callback = ra.RepresentationAuditCallback(
        store=store,
        model_name=name,
        probe_set=corpus.probe_set,
        layer_specs=[f"{role}={path}" for role, path in LAYERS.items()],
        trigger=ra.AuditTrigger(at_steps=plan.audited),
        if_exists="replace",  # what an interrupted training left
        on_store_error="raise",
        model_attrs={"replica": asdict(replica)},
    )
    blocks, started = corpus.blocks, time.monotonic()
    try:
        trained = replica.train(blocks, [callback])
    except SystemExit:  # what the trainer makes of Ctrl-C
        raise KeyboardInterrupt from None
    seconds = time.monotonic() - started
    first, last = trained.first_and_last_loss()
    every = len(corpus.held_out_blocks) // VALIDATION_BLOCKS
    return {
        "parameters": sum(weights.numel() for weights in trained.module.parameters()),
        "first": first,
        "last": last,
        "held_out": validation_loss(trained.module, corpus.held_out_blocks[::every][:VALIDATION_BLOCKS]),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
    }


def train_missing(plan: Plan, out: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Train the replicas that the store lacks; give the losses of all, and how many were trained."""
    store, corpus, trained = out / "store.zarr", Corpus(), 0
    losses: dict[str, dict[str, Any]] = {}
    for number, (name, replica) in enumerate(plan.replicas.items(), start=1):
        path = out / "losses" / f"{name}.json"
        if not (is_recorded(store, name, replica) and path.exists()):
            with console.status(f"training {name}, {number} of {len(plan.replicas)}, {replica.steps} steps"):
                found = train(name, replica, plan, corpus, store)
            write_whole(path, json.dumps(found) + "\n")
            trained += 1
            console.print(f"{name}: loss {found['first']:.2f} -> {found['last']:.2f}, {found['seconds']:.0f} s")
        losses[name] = json.loads(path.read_text(encoding="utf-8"))
    if trained < len(plan.replicas):
        console.print(f"{len(plan.replicas) - trained} of {len(plan.replicas)} replicas were recorded already")
    return losses, trained


def write_whole(path: Path, text: str) -> None:
    """Write a file that an interruption leaves whole or absent."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def analyse(plan: Plan, out: Path) -> tuple[xr.DataTree, dict[str, xr.DataTree]]:
    """Analyse all replicas together, in groups by recipe, and those of each recipe alone."""
    store = out / "store.zarr"
    members = {recipe: list(replicas) for recipe, replicas in plan.members.items()}
    with console.status("") as status:

        def progress(what: str, done: int, total: int) -> None:
            status.update(f"analysing {subject}: {what}, {done} of {total}")

        subject = "all models"
        together = ra.analyze(
            store,
            out / "analysis",
            models=list(plan.replicas),
            groups=members,
            frames=plan.frames,
            units=0,
            figures="all",
            progress=progress,
        )
        alone = {}
        for subject, models in members.items():
            folder = out / "recipes" / subject
            alone[subject] = ra.analyze(store, folder, models=models, frames=0, units=0, progress=progress)
    return together, alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, help="folder for everything (default: experiment-convergence/)")
    parser.add_argument("--quick", action="store_true", help="less than 5 minutes (default folder: ...-quick/)")
    args = parser.parse_args()
    out = args.out or root / f"experiment-convergence{'-quick' if args.quick else ''}"
    plan = QUICK if args.quick else FULL
    quieten()
    out.mkdir(parents=True, exist_ok=True)
    try:
        losses, trained = train_missing(plan, out)
        started = time.monotonic()
        together, alone = analyse(plan, out)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
    except ra.errors.RepauditError as error:
        sys.exit(str(error))
    run = Run(plan.members, losses, trained, together, alone, time.monotonic() - started)
    console.print(f"results: {write_results(run, out)}\nreport: {out / 'analysis' / 'report.html'}", soft_wrap=True)


if __name__ == "__main__":
    main()
