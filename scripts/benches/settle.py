"""What a training gives up, and saves, when it is stopped as its geometry has settled: on the demo's models.

``scripts/bench settle --seeds 10 --steps 600`` trains replicas to their end, and prints for each patience the step at
which ``StopWhenSettled`` would have stopped it, the share of the steps saved, and what the loss on held-out modules was
there beyond that at the end.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import numpy as np

import repaudit as ra
from repaudit.live.settling import SettlingLayers

sys.path.insert(0, str(Path(__file__).parents[1]))
from stdlib_language_models import Corpus, Replica, quieten, validation_loss

LAYERS = ["model.layers[*]", "model.norm"]


class Watch(pl.Callback):
    """Keep the network as it was when its layers had settled."""

    def __init__(self, audit: ra.RepresentationAuditCallback, patience: int) -> None:
        self.settling = SettlingLayers(LAYERS, patience)
        self.step: int | None = None
        self.network: Any = None
        self.is_due = False
        audit.recorder.listeners.append(self.audited)

    def audited(self, step: int, activations: Any) -> None:
        if self.step is None:
            now = self.settling.audited(step, activations)
            self.is_due = len(now) == len(self.settling.watched(activations))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.is_due and self.step is None:
            self.step, self.network = trainer.global_step, copy.deepcopy(module.network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seeds", 10), ("steps", 600), ("every", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--patience", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    quieten()
    corpus = Corpus()
    print(
        "| seed | loss at the end |"
        + "".join(f" stopped at, patience {one} | loss beyond |" for one in options.patience)
    )
    print("| --- | --- |" + " --- | --- |" * len(options.patience))
    saved, given_up = [], []
    for seed in range(options.seeds):
        with TemporaryDirectory() as folder:
            audit = ra.RepresentationAuditCallback(
                store=Path(folder, "s.zarr"), model_name="seed", probe_set=corpus.probe_set, layer_specs=LAYERS,
                trigger=ra.AuditTrigger(every_n_steps=options.every), durable=False,
            )  # fmt: skip
            watches = [Watch(audit, patience) for patience in options.patience]
            replica = Replica(width=128, depth=3, learning_rate=3e-3, seed=seed, steps=options.steps)
            trained = replica.train(corpus.blocks, [audit, *watches])
        end = validation_loss(trained.module, corpus.held_out_blocks)
        saved.append([1 - (watch.step or options.steps) / options.steps for watch in watches])
        beyond = []
        for watch in watches:
            trained.module.network = watch.network or trained.module.network
            beyond.append(validation_loss(trained.module, corpus.held_out_blocks) - end if watch.step else 0.0)
        given_up.append(beyond)
        cells = "".join(f" {watch.step or 'not'} | {loss:+.3f} |" for watch, loss in zip(watches, beyond, strict=True))
        print(f"| {seed} | {end:.3f} |{cells}", flush=True)
    print()
    for patience, steps, losses in zip(
        options.patience, zip(*saved, strict=True), zip(*given_up, strict=True), strict=True
    ):
        stopped = sum(step > 0 for step in steps)
        print(
            f"patience {patience}: {stopped} of {len(steps)} stopped, {np.mean(steps):.1%} of the steps saved, "
            f"held-out loss {np.mean(losses):+.3f}"
        )


if __name__ == "__main__":
    main()
