"""However a training ends, its last audit is in the record, and the same process may train again."""

import gc
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn
from torch.utils.data import DataLoader

import repaudit as ra
from repaudit.errors import AuditWarning, LeaseError, StepOrderError

PROBE = ra.ProbeSet.from_tensors({"x": torch.eye(3)})
DATA = [
    {"x": row[:3], "labels": row[3:]} for row in torch.randn(16, 4, generator=torch.Generator().manual_seed(4))
]  # always the same: at some the trainings below end with their best model
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 1)

    def forward(self, x, labels=None):
        output = self.head(x)
        return {"loss": None if labels is None else nn.functional.mse_loss(output, labels), "logits": output}


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Regression()

    def training_step(self, batch, batch_idx):
        return self.network(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Breaks:
    """Data whose samples cannot be read from one on."""

    def __init__(self, at=None):
        self.at = at

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        if index == self.at:
            raise OSError("the disk is gone")
        return DATA[index]


def hf_trainer(folder, *callbacks, model=None, train_dataset=DATA, eval_dataset=None, **options):
    defaults = {
        "num_train_epochs": 1, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_strategy": "no",
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "learning_rate": 0.1,
        "per_device_eval_batch_size": 4,
    }  # fmt: skip
    return tf.Trainer(
        model or Regression(), tf.TrainingArguments(output_dir=str(folder), **(defaults | options)),
        train_dataset=train_dataset, eval_dataset=eval_dataset, callbacks=list(callbacks),
    )  # fmt: skip


def in_lightning(*callbacks, module=None, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_model_summary=False,
        **(quiet | {"max_epochs": 2} | options),
    )
    trainer.fit(module or Module(), DataLoader(DATA, batch_size=4))


def hf_audits(store, name="seed0", **when):
    trigger = ra.AuditTrigger(**(when or {"every_n_steps": 1, "at_start": True}))
    return ra.AuditTrainerCallback(store, name, PROBE, ["head"], trigger, durable=False)


def lightning_audits(store, name="seed0", **when):
    trigger = ra.AuditTrigger(**(when or {"every_n_steps": 1, "at_start": True}))
    return ra.RepresentationAuditCallback(store, name, PROBE, ["head"], trigger, durable=False)


def record(store, model="seed0"):
    return ra.open_store(store)[f"models/{model}"].dataset.load()


ENDINGS = {
    "evaluation": {"eval_dataset": Breaks(2), "eval_strategy": "steps", "eval_steps": 3},
    "evaluation without training data left": {"eval_dataset": Breaks(2), "eval_strategy": "epoch"},
    "training data": {"train_dataset": Breaks(13), "shuffled": False},
}
LAST = {
    "evaluation": 3,
    "evaluation without training data left": 4,
    "training data": 2,
}  # the trainer loads a batch ahead


def ended(folder, ending, callback, **options):
    options = ENDINGS[ending] | options
    if not options.pop("shuffled", True):
        options["train_sampling_strategy"] = "sequential"
    with pytest.raises(OSError, match="the disk is gone"):
        hf_trainer(folder, callback, **options).train()


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_last_audit_is_kept_and_the_callback_closes(tmp_path, ending):
    callback = hf_audits(tmp_path / "s.zarr")
    ended(tmp_path / "hf", ending, callback)
    callback.close()
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(LAST[ending] + 1))
    ra.TrajectoryWriter(
        tmp_path / "s.zarr", model_name="seed0", probe_set=PROBE, layers={"head": ((3, 1), "float32")}
    ).close()  # nothing holds the model


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_lightning_tells_what_is_recorded_of_a_training_that_ended_early(tmp_path, caplog, error):
    def gone(_trainer, module, *_):
        if module.global_step == 3:
            raise error

    caplog.set_level("INFO")
    with pytest.raises((type(error), SystemExit)):
        in_lightning(lightning_audits(tmp_path / "s.zarr"), pl.callbacks.LambdaCallback(on_train_batch_end=gone))
    said = [record.message for record in caplog.records if "audits of model" in record.message]
    assert len(said) == 1, said
    assert said[0].startswith("repaudit: 4 audits of model 'seed0'")


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_last_audit_is_committed_without_any_end(tmp_path, ending):
    callback = hf_audits(tmp_path / "s.zarr")
    ended(tmp_path / "hf", ending, callback)
    callback.recorder.flush()  # only waits for the writer's thread
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(LAST[ending] + 1))
    callback.close()


def test_at_the_exit_of_a_process_that_an_exception_ends(tmp_path):
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path.parent)!r})
        from tests.capture.test_ended_trainings import *
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        hf_trainer(folder / "hf", hf_audits(folder / "s.zarr"), **ENDINGS["evaluation"]).train()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "the disk is gone" in done.stderr
    assert done.stderr.count("repaudit: 4 audits of model 'seed0'") == 1, "though the trainer tells no callback"
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1, 2, 3]


def test_triggers_that_come_later_are_added(tmp_path):
    when = {"every_n_steps": 2, "every_n_epochs": 1, "on_checkpoint": True, "on_validation_end": True, "at_end": True}
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    hf_trainer(tmp_path / "hf", hf_audits(tmp_path / "s.zarr", **when), eval_dataset=DATA[:4], **saving).train()
    found = record(tmp_path / "s.zarr")
    triggers = [set(str(trigger).split(",")) for trigger in found.trigger.values]
    assert found.step.values.tolist() == [2, 4]
    assert triggers == [{"every_n_steps", "on_checkpoint", "on_validation_end"}, set(when)]
    assert ra.verify(tmp_path / "s.zarr", data=True) == []


@pytest.mark.parametrize("kept", [True, False])
def test_a_cell_that_runs_again_takes_the_record_over(tmp_path, kept):
    first = hf_audits(tmp_path / "s.zarr")
    ended(tmp_path / "hf", "evaluation", first, save_strategy="steps", save_steps=2)
    if not kept:
        del first
    again = hf_trainer(tmp_path / "hf", hf_audits(tmp_path / "s.zarr"), save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "hf" / "checkpoint-2"))
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(StepOrderError, match="starts at step 0"):  # as in another process, and nothing is left open
        hf_trainer(tmp_path / "hf", hf_audits(tmp_path / "s.zarr")).train()
    hf_trainer(tmp_path / "hf", replacing(tmp_path / "s.zarr")).train()
    assert record(tmp_path / "s.zarr").step.values.tolist() == [4]


def replacing(store):
    trigger = ra.AuditTrigger(at_end=True)
    return ra.AuditTrainerCallback(store, "seed0", PROBE, ["head"], trigger, durable=False, if_exists="replace")


def test_lightning_takes_over_from_a_callback_that_was_never_told(tmp_path):
    class Deaf(ra.RepresentationAuditCallback):
        def on_exception(self, *_):
            """Another callback failed before, say."""

        def teardown(self, *_, **__):
            """The same."""

    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                raise OSError("the disk is gone")

    trigger = ra.AuditTrigger(every_n_steps=1)
    deaf = Deaf(tmp_path / "s.zarr", "seed0", PROBE, ["head"], trigger, durable=False)
    with pytest.raises(OSError, match="disk"):
        in_lightning(deaf, Stops())
    with pytest.raises(StepOrderError, match="recorded up to step 2"):
        in_lightning(lightning_audits(tmp_path / "s.zarr"))
    third = Deaf(tmp_path / "s.zarr", "other", PROBE, ["head"], trigger, durable=False)
    in_lightning(third, max_epochs=1)
    third.close()
    assert record(tmp_path / "s.zarr", "other").step.values.tolist() == [1, 2, 3, 4]
    with pytest.warns(AuditWarning, match="has taken its record over"):
        deaf.session.event(Module(), 3, ("every_n_steps",))


def test_a_dropped_recorder_is_taken_over_and_a_live_one_is_not(tmp_path):
    def opened():
        recorder = ra.Recorder(tmp_path / "s.zarr", "seed0", PROBE, ["head"], durable=False)
        recorder.audit(model, len(steps))
        steps.append(len(steps))
        return recorder

    model, steps = Regression(), []
    opened()  # nothing refers to it any more
    live = opened()
    with pytest.raises(LeaseError, match="close it first"):
        opened()
    live.close()
    opened().close()
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1, 2]


def test_a_training_in_another_thread_takes_nothing_over(tmp_path):
    first, second = hf_audits(tmp_path / "s.zarr"), hf_audits(tmp_path / "s.zarr")
    first.session.start(Regression(), 0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(LeaseError, match="close it first"):
        pool.submit(second.session.start, Regression(), 0).result()
    assert first.recorder.is_open
    first.close()


def test_a_dropped_recorder_that_refers_to_itself_is_taken_over(tmp_path):
    model = Regression()
    gc.disable()
    try:
        for step in range(2):
            recorder = ra.Recorder(tmp_path / "s.zarr", "seed0", PROBE, ["head"], durable=False)
            recorder.itself = recorder
            assert recorder.audit(model, step)
            recorder.flush()
            del recorder
    finally:
        gc.enable()
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1]


@pytest.mark.parametrize(("options", "expected"), [({"max_steps": 3}, [0, 3]), ({"max_steps": 6}, [0, 4, 6])], ids=str)
def test_the_default_audits_the_end_of_a_training(tmp_path, options, expected):
    callbacks = [
        kind(tmp_path / "s.zarr", name, PROBE, ["head"], durable=False)
        for kind, name in ((ra.AuditTrainerCallback, "hf"), (ra.RepresentationAuditCallback, "lightning"))
    ]
    model, module = Regression(), Module()
    hf_trainer(tmp_path / "hf", callbacks[0], model=model, **options).train()
    in_lightning(callbacks[1], module=module, **options)
    for name, trained in (("hf", model), ("lightning", module.network)):
        found = record(tmp_path / "s.zarr", name)
        assert found.step.values.tolist() == expected
        assert found.trigger.values.tolist() == ["at_start", *["every_n_epochs"] * (len(expected) - 2), "at_end"]
        with torch.no_grad():
            np.testing.assert_allclose(found["head"][-1], trained.head(torch.eye(3)), rtol=1e-6)


def test_the_end_is_that_of_the_training_not_of_its_best_model(tmp_path):
    class Seen(tf.TrainerCallback):
        def on_step_end(self, args, state, control, *, model=None, **_):
            with torch.no_grad():
                self.last = state.global_step, model.head(torch.eye(3)).numpy()

    seen = Seen()
    options = {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 30.0,
        "load_best_model_at_end": True, "num_train_epochs": 3,
    }  # fmt: skip
    stops = tf.EarlyStoppingCallback(early_stopping_patience=2)
    for order in ([0, 1], [1, 0]):
        store = tmp_path / f"{order[0]}.zarr"
        both = [stops, hf_audits(store, at_end=True)]
        torch.manual_seed(0)
        model = Regression()
        hf_trainer(
            tmp_path / "hf", seen, *(both[i] for i in order), model=model, eval_dataset=DATA[:4], **options
        ).train()
        found = record(store)
        assert found.step.values.tolist() == [seen.last[0]]
        np.testing.assert_allclose(found["head"][0], seen.last[1], rtol=1e-6)
        with torch.no_grad():
            assert not np.allclose(found["head"][0], model.head(torch.eye(3)))  # which is the best one


RESTORING = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}


@pytest.fixture
def warned(caplog):
    """The trainer's warnings, which do not reach the root logger."""
    logger = tf.utils.logging.get_logger("transformers.trainer")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("callbacks", [1, 2])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.thin(2)
def test_a_resume_that_restores_callbacks_ignores_none(tmp_path, second, callbacks, warned):
    def audits():
        return [hf_audits(tmp_path / "s.zarr", f"seed{n}") for n in range(callbacks)]

    model, first = Regression(), audits()
    if second:
        hf_trainer(tmp_path / "a", *first, model=model).train()
    hf_trainer(tmp_path / "b", *first, model=model, **RESTORING).train()
    trainer = hf_trainer(tmp_path / "b", *audits(), **RESTORING)
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for n in range(callbacks):
        assert record(tmp_path / "s.zarr", f"seed{n}").step.values.tolist() == list(range(9 if second else 5))
    assert not [line for line in warned.messages if "Ignoring" in line]
    kept = (tmp_path / "b" / "checkpoint-2" / "trainer_state.json").read_text()
    assert ("repaudit: seed0" in kept) is second  # else there is nothing that a later training would lack


class Counts(tf.TrainerCallback, tf.trainer_callback.ExportableState):
    """Another callback with a state."""

    def state(self):
        return {"args": {}, "attributes": {}}


@pytest.mark.parametrize("left", ["none", "another name"])
def test_states_that_a_resume_does_ignore_are_told(tmp_path, left, warned):
    model, first = Regression(), [hf_audits(tmp_path / "s.zarr", name) for name in ("seed0", "seed1")]
    hf_trainer(tmp_path / "a", *first, model=model).train()
    hf_trainer(tmp_path / "b", *first, Counts(), model=model, **RESTORING).train()
    callbacks = [] if left == "none" else [hf_audits(tmp_path / "s.zarr", "seed1")]
    trainer = hf_trainer(tmp_path / "b", *callbacks, **RESTORING)
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    (line,) = {line for line in warned.messages if "Ignoring" in line}
    assert f"repaudit: seed0 in {tmp_path / 's.zarr'}" in line
    assert (f"repaudit: seed1 in {tmp_path / 's.zarr'}" in line) is (left == "none")
    assert "Counts" in line
    assert "TrainerControl" not in line
