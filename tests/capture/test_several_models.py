"""One callback object and several models: refused, or numbered; a model that goes on keeps its record."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import repaudit as ra
from repaudit.errors import AuditWarning, StepOrderError

PROBE = ra.ProbeSet.from_tensors({"x": torch.eye(3)})
DATA = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(16)]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Regression(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3, 1)

    def forward(self, x, labels=None):
        output = self.head(x)
        return {"loss": None if labels is None else nn.functional.mse_loss(output, labels), "logits": output}


class Module(pl.LightningModule):
    def __init__(self, seed=0, network=None):
        super().__init__()
        self.network = network or Regression(seed)

    def training_step(self, batch, batch_idx):
        return self.network(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def in_lightning(callback, model, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = options.pop("callbacks", [])
    path = options.pop("ckpt_path", None)
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[callback, *callbacks], enable_model_summary=False,
        **(quiet | {"max_epochs": 1} | options),
    )  # fmt: skip
    module = model if isinstance(model, Module) else Module(network=model)
    trainer.fit(module, DataLoader(DATA, batch_size=4), ckpt_path=path, weights_only=False if path else None)
    return trainer


ARGUMENTS = {
    "num_train_epochs": 1, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_strategy": "no",
    "report_to": [], "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "learning_rate": 0.1,
}  # fmt: skip


def hf_trainer(folder, *callbacks, model=None, model_init=None, **options):
    arguments = tf.TrainingArguments(output_dir=str(folder), **(ARGUMENTS | options))
    return tf.Trainer(model, arguments, model_init=model_init, train_dataset=DATA, callbacks=list(callbacks))


@pytest.fixture(params=["lightning", "transformers"])
def train(request, tmp_path):
    """Train a model under a callback for one epoch of four steps."""
    if request.param == "lightning":
        return in_lightning
    return lambda callback, model: hf_trainer(tmp_path / "hf", callback, model=model).train()


@pytest.fixture
def callback(request, tmp_path):
    kind = ra.AuditTrainerCallback if "transformers" in request.node.name else ra.RepresentationAuditCallback

    def make(name="seed0", **options):
        trigger = ra.AuditTrigger(every_n_steps=1, at_start=True)
        return kind(tmp_path / "s.zarr", name, PROBE, ["head"], trigger, durable=False, **options)

    return make


def steps(tmp_path, model="seed0"):
    return ra.open_store(tmp_path / "s.zarr")[f"models/{model}"].step.values.tolist()


def models(tmp_path):
    return sorted(ra.open_store(tmp_path / "s.zarr")["models"].children)


def started(tmp_path, model):
    return ra.open_store(tmp_path / "s.zarr")[f"models/{model}"]["head"][0].values


def forwarded(model):
    with torch.no_grad():
        return model.head(torch.eye(3)).numpy()


@pytest.mark.parametrize("options", [{}, {"if_exists": "replace"}], ids=str)
@pytest.mark.thin(2)
def test_a_second_model_is_refused(train, callback, tmp_path, options):
    audits, second = callback(**options), Regression(1)
    train(audits, Regression(0))
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(StepOrderError, match=r"recorded up to step 4 .* starts at step 0.*trial\{n\}"):
        train(audits, second)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in before.items())
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def test_a_second_model_that_starts_alike_is_refused_too(train, callback, tmp_path):
    audits = callback()
    train(audits, Regression(0))
    with pytest.raises(StepOrderError):
        train(audits, Regression(0))
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


@pytest.mark.thin(2)
def test_models_are_numbered(train, callback, tmp_path):
    audits = callback("trial{n}")
    networks = [Regression(seed) for seed in range(3)]
    starts = [forwarded(network) for network in networks]
    for network in networks:
        train(audits, network)
        train(audits, network)  # goes on
    assert models(tmp_path) == ["trial0", "trial1", "trial2"]
    for n, start in enumerate(starts):
        assert steps(tmp_path, f"trial{n}") == list(range(9))
        np.testing.assert_allclose(started(tmp_path, f"trial{n}"), start, rtol=1e-6)
    assert audits.recorder.model_name == "trial2"


@pytest.mark.thin(2)
def test_a_model_put_back_to_its_start_is_another(train, callback, tmp_path):
    audits, network = callback("trial{n}"), Regression(0)
    begin = copy.deepcopy(network.state_dict())
    train(audits, network)
    network.load_state_dict(begin)
    train(audits, network)
    assert [steps(tmp_path, f"trial{n}") for n in (0, 1)] == [[0, 1, 2, 3, 4]] * 2
    plain, network = callback("plain"), Regression(0)
    train(plain, network)
    network.load_state_dict(begin)
    with pytest.raises(StepOrderError):
        train(plain, network)


@pytest.mark.thin(2)
def test_a_model_with_new_weights_is_told(train, callback, tmp_path):
    audits, network = callback(), Regression(0)
    train(audits, network)
    network.head.reset_parameters()
    with pytest.warns(AuditWarning, match="neither ended with nor saved"):
        train(audits, network)
    assert steps(tmp_path) == list(range(9))
    numbers, network = callback("trial{n}"), Regression(0)
    train(numbers, network)
    network.head.reset_parameters()
    train(numbers, network)
    assert models(tmp_path) == ["seed0", "trial0", "trial1"]


@pytest.mark.thin(2)
def test_a_copy_of_the_trained_model_goes_on(train, callback, tmp_path):
    audits, network = callback("trial{n}"), Regression(0)
    train(audits, network)
    train(audits, copy.deepcopy(network))
    assert models(tmp_path) == ["trial0"]
    assert steps(tmp_path, "trial0") == list(range(9))


def test_a_model_that_starts_from_saved_weights_goes_on(callback, tmp_path):
    audits, network = callback("trial{n}"), Regression(0)
    saves = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    in_lightning(audits, network, callbacks=[saves], enable_checkpointing=True)
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=False)["state_dict"]
    other = Module(1)
    other.load_state_dict(saved)
    assert not torch.equal(other.network.head.weight, network.head.weight)
    in_lightning(audits, other)
    assert models(tmp_path) == ["trial0"]
    assert steps(tmp_path, "trial0") == list(range(9))


def test_a_model_of_transformers_that_starts_from_saved_weights_goes_on(callback, tmp_path):
    audits = callback("trial{n}")
    trainer = hf_trainer(tmp_path / "hf", audits, model=Regression(0), save_strategy="steps", save_steps=2)
    trainer.train()
    other = Regression(1)
    other.load_state_dict(load_file(tmp_path / "hf" / "checkpoint-2" / "model.safetensors"))
    hf_trainer(tmp_path / "hf", audits, model=other).train()
    assert models(tmp_path) == ["trial0"]
    assert steps(tmp_path, "trial0") == list(range(9))


def test_a_model_that_learns_nothing_goes_on(callback, tmp_path):
    class Still(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    audits, module = callback(), Still()
    in_lightning(audits, module)
    in_lightning(audits, module)
    assert steps(tmp_path) == list(range(9))


def test_model_init_trains_another_model_each_time(tmp_path):
    trigger = ra.AuditTrigger(every_n_steps=2, at_start=True)
    seeds = iter(range(100))

    def trained(name):
        audits = ra.AuditTrainerCallback(tmp_path / "s.zarr", name, PROBE, ["head"], trigger, durable=False)
        trainer = hf_trainer(tmp_path / "hf", audits, model_init=lambda: Regression(next(seeds)))
        trainer.train()
        trainer.train()

    trained("trial{n}")
    assert [steps(tmp_path, f"trial{n}") for n in (0, 1)] == [[0, 2, 4]] * 2
    assert not np.allclose(started(tmp_path, "trial0"), started(tmp_path, "trial1"))
    with pytest.raises(StepOrderError):
        trained("one")


def test_a_resume_keeps_its_number_in_lightning(callback, tmp_path):
    audits = callback("trial{n}")
    in_lightning(audits, Module(0))
    trainer = in_lightning(audits, Module(1))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    in_lightning(audits, Module(2))
    again = callback("trial{n}")
    in_lightning(again, Module(5), ckpt_path=tmp_path / "one.ckpt", max_epochs=2)
    assert [len(steps(tmp_path, f"trial{n}")) for n in range(3)] == [5, 9, 5]
    assert models(tmp_path) == ["trial0", "trial1", "trial2"]


def test_a_resume_keeps_its_number_in_transformers(tmp_path):
    def audits():
        trigger = ra.AuditTrigger(every_n_steps=1, at_start=True)
        return ra.AuditTrainerCallback(tmp_path / "s.zarr", "trial{n}", PROBE, ["head"], trigger, durable=False)

    saving = {"save_strategy": "steps", "save_steps": 2}
    first = audits()
    for seed in range(3):
        hf_trainer(tmp_path / f"hf{seed}", first, model=Regression(seed), **saving).train()
    resumed = hf_trainer(tmp_path / "hf1", audits(), model=Regression(7), **saving, num_train_epochs=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "hf1" / "checkpoint-2"))
    assert [len(steps(tmp_path, f"trial{n}")) for n in range(3)] == [5, 9, 5]


def test_a_failed_trial_does_not_keep_the_next_one_from_its_number(tmp_path, train, callback):
    audits, broken = callback("trial{n}"), Regression(0)
    broken.head.register_forward_hook(lambda *_: 1 / 0 if torch.is_grad_enabled() else None)
    with pytest.raises(ZeroDivisionError):
        train(audits, broken)
    train(audits, Regression(1))
    assert [steps(tmp_path, f"trial{n}") for n in (0, 1)] == [[0], [0, 1, 2, 3, 4]]


def test_a_recorder_refuses_another_model_at_the_steps_of_the_first(tmp_path):
    first, second = Regression(0), Regression(1)
    with ra.Recorder(tmp_path / "s.zarr", "seed0", PROBE, ["head"], durable=False) as recorder:
        for step in (0, 10):
            recorder.audit(first, step)
        assert not recorder.audit(nn.DataParallel(first), 10)  # the same, wrapped
        for step in (0, 10):
            with pytest.raises(StepOrderError, match="of another model object"):
                recorder.audit(second, step)
        assert recorder.audit(second, 20)  # as in a loop over checkpoints
