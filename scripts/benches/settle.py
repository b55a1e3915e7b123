"""What a training gives up, and saves, when it is stopped as its geometry has settled: on the demo's models.

``scripts/bench settle --seeds 10 --steps 600`` trains replicas to their end, and prints for each the step at which
``StopWhenSettled`` would have stopped it, the share of the steps saved, and the loss on held-out modules there and at
the end.
"""

from __future__ import annotations

import argparse
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
    """Note when the layers have settled, and the held-out loss there."""

    def __init__(self, audit: ra.RepresentationAuditCallback, blocks: Any, patience: int) -> None:
        self.settling, self.blocks = SettlingLayers(LAYERS, patience), blocks
        self.step: int | None = None
        self.loss = float("nan")
        self.is_due = False
        audit.recorder.listeners.append(self.audited)

    def audited(self, step: int, activations: Any) -> None:
        now = self.settling.audited(step, activations)
        self.is_due = len(now) == len(self.settling.watched(activations))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.is_due and self.step is None:
            self.step, self.loss = trainer.global_step, validation_loss(module, self.blocks)
            module.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seeds", 10), ("steps", 600), ("every", 20), ("patience", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    quieten()
    corpus = Corpus()
    print("| seed | stopped at | steps saved | loss there | loss at the end |\n| --- | --- | --- | --- | --- |")
    saved, given_up = [], []
    for seed in range(options.seeds):
        with TemporaryDirectory() as folder:
            audit = ra.RepresentationAuditCallback(
                store=Path(folder, "s.zarr"), model_name="seed", probe_set=corpus.probe_set, layer_specs=LAYERS,
                trigger=ra.AuditTrigger(every_n_steps=options.every), durable=False,
            )  # fmt: skip
            watch = Watch(audit, corpus.held_out_blocks, options.patience)
            replica = Replica(width=128, depth=3, learning_rate=3e-3, seed=seed, steps=options.steps)
            trained = replica.train(corpus.blocks, [audit, watch])
        end = validation_loss(trained.module, corpus.held_out_blocks)
        at = watch.step or options.steps
        there = watch.loss if watch.step else end
        saved.append(1 - at / options.steps)
        given_up.append(there - end)
        print(f"| {seed} | {watch.step or 'not'} | {saved[-1]:.0%} | {there:.3f} | {end:.3f} |", flush=True)
    print(f"\nmean: {np.mean(saved):.1%} of the steps saved, held-out loss {np.mean(given_up):+.3f}")


if __name__ == "__main__":
    main()
