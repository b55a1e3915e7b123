"""Data without a length: epochs are counted by their ends, in both trainers."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import repaudit as ra

PROBE = ra.ProbeSet.from_tensors({"x": torch.eye(3)})


class Stream(IterableDataset):
    """Forty samples, or no end of them."""

    def __init__(self, samples=40):
        self.samples = samples

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        count = 0
        while self.samples is None or count < self.samples:
            count += 1
            yield {"x": torch.randn(3, generator=generator), "labels": torch.randn(1, generator=generator)}


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 1)

    def forward(self, x, labels=None):
        output = self.head(x)
        return {"loss": None if labels is None else nn.functional.mse_loss(output, labels), "logits": output}


class Witness(tf.TrainerCallback):
    """Keeps the weights after each step."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, *, model=None, **_):
        self.weights[state.global_step] = model.head.weight.detach().clone()


def trained(folder, *callbacks, samples=40, resume=None, **options):
    defaults = {
        "per_device_train_batch_size": 4, "save_strategy": "no", "logging_strategy": "no", "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "max_steps": 30,
    }  # fmt: skip
    arguments = tf.TrainingArguments(output_dir=str(folder), **(defaults | options))
    trainer = tf.Trainer(Regression(), arguments, train_dataset=Stream(samples), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)


def audits(store, **when):
    when = when or {"at_start": True, "every_n_epochs": 1}
    return ra.AuditTrainerCallback(store, "seed0", PROBE, ["head"], ra.AuditTrigger(**when), durable=False)


def record(store):
    return ra.open_store(store)["models/seed0"].dataset.load()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 10, 20, 30]),  # 10 batches an epoch
        ({"max_steps": 10}, [0, 10]),
        ({"max_steps": 25}, [0, 10, 20]),
        ({"max_steps": 29}, [0, 10, 20]),
        ({"max_steps": 31}, [0, 10, 20, 30]),
        ({"max_steps": 7}, [0]),
        ({"samples": 38, "max_steps": 20}, [0, 10, 20]),  # the last batch is smaller
        ({"samples": None, "max_steps": 10}, [0]),  # an epoch without an end
        ({"gradient_accumulation_steps": 2, "max_steps": 12}, [0, 5, 10]),
        ({"gradient_accumulation_steps": 2, "max_steps": 10}, [0, 5, 10]),
        ({"gradient_accumulation_steps": 4, "max_steps": 5}, [0, 2, 4]),  # two batches are left over
        ({"dataloader_num_workers": 1, "max_steps": 20}, [0, 10, 20]),
    ],
    ids=str,
)
@pytest.mark.thin(3)
def test_epochs_of_a_stream_are_counted_by_their_ends(tmp_path, options, expected):
    witness = Witness()
    trained(tmp_path / "a", witness, audits(tmp_path / "s.zarr"), **options)
    found = record(tmp_path / "s.zarr")
    assert found.step.values.tolist() == expected
    assert found.epoch.values.tolist() == list(range(len(expected)))
    assert found.trigger.values.tolist() == ["at_start"] + ["every_n_epochs"] * (len(expected) - 1)
    bias = found["head"][0].values - Regression().head(torch.eye(3)).detach().numpy()
    np.testing.assert_allclose(bias, 0, atol=1e-6)
    for step in expected[1:]:
        values = found["head"].sel(step=step).values[:, 0]
        np.testing.assert_allclose(np.diff(values), np.diff(witness.weights[step][0]), atol=1e-6)


class StopsEpoch(tf.TrainerCallback):
    """Ends an epoch after five steps."""

    def on_step_end(self, args, state, control, **_):
        control.should_epoch_stop = state.global_step == 5


def test_an_epoch_that_is_stopped_is_not_whole(tmp_path):
    trained(tmp_path / "a", StopsEpoch(), audits(tmp_path / "s.zarr"), max_steps=20)
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 15]


def test_every_second_epoch_and_every_batch_at_once(tmp_path):
    trained(tmp_path / "a", audits(tmp_path / "s.zarr", every_n_epochs=2, every_n_steps=15), max_steps=45)
    found = record(tmp_path / "s.zarr")
    assert found.step.values.tolist() == [15, 20, 30, 40, 45]
    assert found.trigger.values[2] == "every_n_steps"
    assert found.trigger.values[1] == "every_n_epochs"


@pytest.mark.parametrize(("at", "expected"), [(5, [0, 10, 20, 30]), (10, [0, 10, 20, 30]), (15, [0, 10, 25])])
def test_a_stream_that_is_resumed(tmp_path, at, expected):
    """The trainer skips the batches of a first epoch, and starts the next one anew."""
    trained(tmp_path / "a", audits(tmp_path / "s.zarr"), save_strategy="steps", save_steps=at, max_steps=30)
    trained(tmp_path / "a", audits(tmp_path / "s.zarr"), resume=str(tmp_path / "a" / f"checkpoint-{at}"))
    assert record(tmp_path / "s.zarr").step.values.tolist() == expected


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Regression()

    def training_step(self, batch, batch_idx):
        return self.network(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("options", "expected"),
    [({"max_steps": 30}, [0, 10, 20, 30]), ({"max_steps": 25}, [0, 10, 20]), ({"max_steps": 10}, [0, 10])],
    ids=str,
)
def test_in_lightning_too(tmp_path, options, expected):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trigger = ra.AuditTrigger(at_start=True, every_n_epochs=1)
    callback = ra.RepresentationAuditCallback(tmp_path / "s.zarr", "seed0", PROBE, ["head"], trigger, durable=False)
    pl.Trainer(accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet, **options).fit(
        Module(), DataLoader(Stream(), batch_size=4)
    )
    assert record(tmp_path / "s.zarr").step.values.tolist() == expected
