"""One student: trained on its task with one of the objectives, recorded on e-mails, taught and held out, measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import transformers as tf
from mails import HELD_OUT, MAX_LENGTH, TRAIN, VOCABULARY, Mails
from sklearn.neighbors import KNeighborsClassifier
from teachers import LAYER, Teaching

import repaudit as ra

NONE, MERGED, BEST, PERMUTED, WITHIN, FEATURES = (
    "none", "merged", "best teacher", "permuted", "permuted within classes", "features",
)  # fmt: skip
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TOP = {"bert": "bert.encoder.layer[-1]", "llama": "model.layers[-1]"}


@dataclass(frozen=True)
class Task:
    """What a student learns beside the geometry.

    Attributes
    ----------
    name : str
    student : "bert" or "llama"
    labels_per_class : int or None for all; only of "bert"
    weight : float, of the match
    steps : int
    arms : tuple of str
    taught : str
        The set that the match is made on.
    rows : "full" or "minibatch"
        Of the match: where there are many samples, a bank of all of them is stale.
    batch_size : int
        Samples of the match per step.
    """

    name: str
    student: str
    labels_per_class: int | None
    weight: float
    steps: int
    arms: tuple[str, ...]
    taught: str = TRAIN
    rows: str = "full"
    batch_size: int = 64

    @property
    def hold(self) -> float:
        """Of the features' frame: only the language models here have a stream without a norm."""
        return 1.0 if self.student == "llama" else 0.0


def matches(task: Task, mails: Mails, teaching: Teaching, stores: dict[str, Path]) -> dict[str, Callable[[int], Any]]:
    """Return what makes each arm's match, by its seed."""
    target, classes = teaching.merged[task.taught], mails.labels(task.taught)
    return {
        MERGED: lambda _seed: ra.OperatorMatch(target, rows=task.rows),  # type: ignore[arg-type]
        BEST: lambda _seed: ra.OperatorMatch(teaching.alone),
        PERMUTED: lambda seed: ra.OperatorMatch(target.permuted(seed), rows=task.rows),  # type: ignore[arg-type]
        WITHIN: lambda seed: ra.OperatorMatch(target.permuted(seed, within=classes.tolist())),
        FEATURES: lambda _seed: ra.FeatureMatch.from_store(stores[TRAIN], LAYER),
    }


def train(
    task: Task, arm: str, seed: int, mails: Mails, teaching: Teaching, stores: dict[str, Path], folder: Path
) -> dict[str, float]:
    """Train and measure one student; a finished one is read from its file."""
    name = f"{task.name}-{arm}-seed{seed}".replace(" ", "-")
    done = folder / "runs" / f"{name}.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    start = time.process_time()
    module, loader, validation = _built(task, seed, mails)
    objective = None
    if arm != NONE:
        objective = ra.JointObjective(
            matches(task, mails, teaching, stores)[arm](seed), task.weight, layer=TOP[task.student],
            probe_set=mails.probe_set(task.taught), batch_size=task.batch_size, seed=seed, hold=task.hold,
        )  # fmt: skip
        module = ra.AlignedFineTuning(module.network, objective, learning_rate=module.learning_rate)
    _fit(module, loader, task, name, mails, folder, seed)
    cpu = time.process_time() - start
    found = _measured(module.network, task, name, mails, teaching, folder, validation) | {"cpu_s": cpu}
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(found))
    return found


def _built(task: Task, seed: int, mails: Mails) -> tuple[ra.HFTrainerModule, Any, Any]:
    tf.set_seed(seed)
    shared = {"vocab_size": max(VOCABULARY, len(mails.tokenizer)), "max_position_embeddings": MAX_LENGTH, **SIZES}
    if task.student == "bert":
        config = tf.BertConfig(**shared, num_labels=len(mails.classes))
        network = tf.BertForSequenceClassification(config)
        return ra.HFTrainerModule(network, learning_rate=1e-3), mails.task(task.labels_per_class, seed), None
    network = tf.LlamaForCausalLM(tf.LlamaConfig(**shared, num_key_value_heads=4, pad_token_id=0))
    loader, validation = mails.language(seed)
    return ra.HFTrainerModule(network, learning_rate=2e-3), loader, validation


def _fit(module: Any, loader: Any, task: Task, name: str, mails: Mails, folder: Path, seed: int) -> None:
    audits = [
        ra.RepresentationAuditCallback(
            store=folder / f"students-{samples}.zarr", model_name=name, probe_set=mails.probe_set(samples),
            layer_specs=[ra.LayerSpec(TOP[task.student], name="top")], durable=False,
            trigger=ra.AuditTrigger(at_start=True, at_steps=[task.steps // 4, task.steps // 2, task.steps]),
            if_exists="replace",
        )
        for samples in (task.taught, HELD_OUT)
    ]  # fmt: skip
    pl.seed_everything(seed, verbose=False)
    pl.Trainer(
        max_steps=task.steps, max_epochs=-1, accelerator="cpu", callbacks=audits, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, loader)  # fmt: skip


def _measured(
    network: Any, task: Task, name: str, mails: Mails, teaching: Teaching, folder: Path, validation: Any
) -> dict[str, float]:
    sets = (task.taught, HELD_OUT)
    stores = {samples: ra.open_store(folder / f"students-{samples}.zarr").repaudit for samples in sets}
    features = {samples: store.activations(name, "top").isel(step=-1).values for samples, store in stores.items()}
    found = {
        "train distance": teaching.merged[task.taught].distance(features[task.taught]),
        "held-out distance": teaching.merged[HELD_OUT].distance(features[HELD_OUT]),
    }
    network.eval()
    with torch.no_grad():
        if validation is not None:
            return found | {"validation loss": _validation_loss(network, validation)}
        inputs = mails.inputs([mail["text"] for mail in mails.sets[HELD_OUT]])
        predicted = network(**inputs).logits.argmax(1).numpy()
    neighbors = KNeighborsClassifier(10).fit(features[TRAIN], mails.labels(TRAIN))
    wanted = mails.labels(HELD_OUT)
    return found | {
        "accuracy": float((predicted == wanted).mean()),
        "10-NN accuracy": float((neighbors.predict(features[HELD_OUT]) == wanted).mean()),
    }


def _validation_loss(network: Any, rows: list[dict[str, torch.Tensor]]) -> float:
    losses, counts = [], []
    for start in range(0, len(rows), 32):
        batch = {key: torch.stack([row[key] for row in rows[start : start + 32]]) for key in rows[0]}
        losses.append(float(network(**batch).loss))
        counts.append(int((batch["labels"][:, 1:] != -100).sum()))
    return float(np.average(losses, weights=counts))
