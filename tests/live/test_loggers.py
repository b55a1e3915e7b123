"""What the transformers Trainer reports to gets the numbers of audits, read back by each logger's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import repaudit as ra

STEPS = (0, 2, 4)
NAME = "audit/transformer.h.0/effective_neighbors"


def train(
    folder: Path, report_to: str, monkeypatch: pytest.MonkeyPatch, name: str = "seed0", **options: Any
) -> list[dict[str, Any]]:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the light package has no other store without a server
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (folder / "mlflow").as_uri())
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 32, (40, 8), generator=generator)
    tf.set_seed(0)
    model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    callback = ra.AuditTrainerCallback(
        folder / "s.zarr", name, ra.ProbeSet.from_tensors({"input_ids": rows}), ["transformer.h[*]"],
        ra.AuditTrigger(every_n_steps=2, at_start=True), durable=False,
        metrics=ra.GeometryMetrics(ra.DiffusionGauge(perplexity=5)), **options,
    )  # fmt: skip
    trainer = tf.Trainer(
        model=model,
        args=tf.TrainingArguments(
            output_dir=str(folder / "out"), max_steps=4, per_device_train_batch_size=4, save_strategy="no",
            logging_strategy="no", report_to=[report_to], use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False, run_name="audited",
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    return [entry for entry in trainer.state.log_history if NAME in entry]


def expected(folder: Path) -> list[float]:
    tree, gauge = ra.open_store(folder / "s.zarr"), ra.DiffusionGauge(perplexity=5)
    activations = tree.repaudit.activations("seed0", "transformer.h.0")
    assert activations["step"].values.tolist() == list(STEPS)
    return [float(gauge(one.values).diagnostics["effective_neighbors"]) for one in activations]


def test_tensorboard_reads_the_numbers_of_every_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = train(tmp_path, "tensorboard", monkeypatch)
    assert [entry["step"] for entry in history] == list(STEPS)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars(f"train/{NAME}")
    assert [scalar.step for scalar in scalars] == list(STEPS)
    assert [scalar.value for scalar in scalars] == pytest.approx(expected(tmp_path), rel=1e-4)


def test_wandb_keeps_them_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    train(tmp_path, "wandb", monkeypatch)
    assert wandb.run is not None
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary[f"train/{NAME}"] == pytest.approx(expected(tmp_path)[-1], rel=1e-4)
    assert json.dumps(summary["train/audit/bytes"]) == str(40 * 32 * 4)
    assert list(tmp_path.rglob("*.wandb"))


def test_mlflow_reads_the_numbers_of_every_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    train(tmp_path, "mlflow", monkeypatch)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, NAME)
    assert [one.step for one in history] == list(STEPS)
    assert [one.value for one in history] == pytest.approx(expected(tmp_path), rel=1e-4)


def test_the_last_spread_comes_before_the_loggers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After that MLflow would begin a run of its own for it, and TensorBoard a file."""
    import mlflow

    train(tmp_path, "none", monkeypatch)
    train(tmp_path, "mlflow", monkeypatch, "seed1", track=ra.Track(tmp_path / "s.zarr"))
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "spread/at_step")
    assert max(int(one.value) for one in history) == STEPS[-1]
