"""Do three language models that differ in their seed alone come to represent Python the same way?

Trains three replicas of a small Llama on the standard library's own source, audits every layer on passages from
modules that none of them is trained on, then runs ``repaudit analyze`` on the store.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from stdlib_language_models import HELD_OUT, Corpus, Replica, quieten

import repaudit as ra
from repaudit import errors as ra_errors

SEEDS = (0, 1, 2)

console = Console()


def train_replica(seed: int, corpus: Corpus, store: Path, steps: int) -> tuple[float, float]:
    """Train one replica and give its loss over the first and last ten steps."""
    callback = ra.RepresentationAuditCallback(
        store=store,
        model_name=f"seed{seed}",
        probe_set=corpus.probe_set,
        layer_specs=["model.embed_tokens", "model.layers[*]", "model.norm"],
        trigger=ra.AuditTrigger(at_start=True, log_spaced=5, at_steps=[steps]),
    )
    replica = Replica(width=128, depth=3, learning_rate=3e-3, seed=seed, steps=steps)
    return replica.train(corpus.blocks, [callback]).first_and_last_loss()


def remove_earlier(store: Path, probe_set: ra.ProbeSet) -> None:
    """Remove the store of an earlier demo, known by its probe set; leave anything else alone."""
    if not store.exists():
        return
    try:
        found = ra.open_store(store).attrs["repaudit"]["fingerprint"]
    except ra_errors.StoreError as error:
        sys.exit(f"{error} Choose another --out.")
    if found != probe_set.fingerprint:
        sys.exit(f"{store} holds another probe set than this demo's: choose another --out, or remove it.")
    console.print(f"Removing the store of an earlier demo: {store}")
    shutil.rmtree(store)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[1] / "demo-run"
    parser.add_argument("--out", type=Path, default=default, help="folder for the store and the report")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each replica")
    args = parser.parse_args()
    quieten()

    corpus = Corpus()
    store = args.out / "store.zarr"
    remove_earlier(store, corpus.probe_set)
    console.print(
        f"{corpus.blocks.numel():,} training tokens; {len(corpus.probe_set)} passages of {len(HELD_OUT)} held-out "
        "modules to audit on"
    )

    for seed in SEEDS:
        doing = f"training replica {seed + 1} of {len(SEEDS)}, {args.steps} steps"
        if not console.is_terminal:  # where a status is not seen
            console.print(doing)
        with console.status(doing):
            first, last = train_replica(seed, corpus, store, args.steps)
        console.print(f"seed {seed}: loss {first:.2f} -> {last:.2f} after {args.steps} steps")

    sys.exit(subprocess.run([Path(sys.executable).with_name("repaudit"), "analyze", store], check=False).returncode)


if __name__ == "__main__":
    main()
