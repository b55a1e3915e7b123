"""The Lightning callback: training is bit-identical, every due step is recorded once, over resumes and refits."""

import shutil
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import xarray as xr
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config

import repaudit as ra
from repaudit.analysis.selection import select
from repaudit.errors import AnalysisError, AuditWarning, LayerPathError, RepauditError, StateError, StepOrderError
from repaudit.store.copying import copy_store

PROBE_IDS = torch.randint(1, 32, (6, 8), generator=torch.Generator().manual_seed(3))
PROBE = ra.ProbeSet.from_tensors({"input_ids": PROBE_IDS})
IMAGES = ra.ProbeSet.from_tensors({"x": torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(4))})


def gpt2(**options):
    return ra.HFTrainerModule(
        GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, **options), learning_rate=1e-2
    )


class Convolutional(pl.LightningModule):
    """BatchNorm in training mode, or frozen."""

    def __init__(self, frozen):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(4 * 16, 3)
        self.frozen = frozen

    def on_train_epoch_start(self):
        if self.frozen:
            self.body[1].eval()

    def forward(self, x):
        return self.head(self.body(x).flatten(1))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch["x"]), batch["y"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def tokens(n=16, shuffle=True):
    ids = torch.randint(1, 32, (n, 8), generator=torch.Generator().manual_seed(5))
    return DataLoader([{"input_ids": row} for row in ids], batch_size=4, shuffle=shuffle)


def images():
    generator = torch.Generator().manual_seed(6)
    rows = [{"x": torch.randn(1, 6, 6, generator=generator), "y": torch.tensor(i % 3)} for i in range(16)]
    return DataLoader(rows, batch_size=4, shuffle=True)


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    has_checkpoint = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": has_checkpoint}
    return pl.Trainer(callbacks=list(callbacks), **(quiet | defaults | options))


def audits(store, specs=("transformer.h[*]",), trigger=None, probe_set=PROBE, **options):
    trigger = trigger or ra.AuditTrigger(every_n_steps=1, at_start=True)
    return ra.RepresentationAuditCallback(store, "seed0", probe_set, list(specs), trigger, **options)


def record(store, model="seed0"):
    return ra.open_store(store)[f"models/{model}"].dataset.load()


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_identical(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


SETTINGS = {
    "dropout": (gpt2, tokens, {}),
    "accumulation": (gpt2, tokens, {"accumulate_grad_batches": 3}),
    "autocast bf16": (gpt2, tokens, {"precision": "bf16-mixed"}),
    "true bf16": (gpt2, tokens, {"precision": "bf16-true"}),
    "clipping": (gpt2, tokens, {"gradient_clip_val": 0.1}),
    "BatchNorm": (lambda: Convolutional(frozen=False), images, {}),
    "frozen BatchNorm": (lambda: Convolutional(frozen=True), images, {}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical(setting, tmp_path):
    build, data, options = SETTINGS[setting]

    def fitted(*callbacks):
        pl.seed_everything(7, verbose=False)
        module = build()
        trainer(*callbacks, **options).fit(module, data())
        return weights(module), torch.get_rng_state()

    is_text = data is tokens
    callback = audits(
        tmp_path / "s.zarr", *(() if is_text else (["body[*]", "head"],)), probe_set=PROBE if is_text else IMAGES
    )
    plain, audited = fitted(), fitted(callback)
    assert_identical(plain[0], audited[0])
    assert torch.equal(plain[1], audited[1])
    assert len(record(tmp_path / "s.zarr").step) == (5 if "accumulate_grad_batches" in options else 9)


def test_training_is_bit_identical_with_gradient_checkpointing(tmp_path):
    def fitted(*callbacks):
        pl.seed_everything(7, verbose=False)
        module = gpt2()
        enable = getattr(module.network, "activation_checkpointing_enable", None)  # before 5.18: gradient_...
        (enable or module.network.gradient_checkpointing_enable)()
        trainer(*callbacks).fit(module, tokens())
        return weights(module)

    assert_identical(fitted(), fitted(audits(tmp_path / "s.zarr")))
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(9))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
def test_training_is_bit_identical_with_a_compiled_network(tmp_path):
    def fitted(*callbacks):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        pl.seed_everything(7, verbose=False)
        module = gpt2()
        module.network.compile(backend="aot_eager")
        trainer(*callbacks).fit(module, tokens())
        return weights(module), torch._dynamo.utils.counters["stats"]["unique_graphs"]

    plain, audited = fitted(), fitted(audits(tmp_path / "s.zarr"))
    assert_identical(plain[0], audited[0])
    assert plain[1] == audited[1] > 0  # audits compile nothing


def test_the_record_is_what_the_model_held_at_each_step(tmp_path):
    class Witness(Callback):
        seen: ClassVar[dict] = {}

        def look(self, trainer, module):
            mode = module.training
            with torch.no_grad():
                states = module.eval().network(input_ids=PROBE_IDS, output_hidden_states=True).hidden_states
            module.train(mode)
            self.seen[trainer.global_step] = states[1].mean(1).numpy()

        def on_train_start(self, trainer, module):
            self.look(trainer, module)

        def on_train_batch_end(self, trainer, module, *_):
            self.look(trainer, module)

    pl.seed_everything(0, verbose=False)
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append(float(outputs["loss"]))

    trainer(Witness(), Losses(), audits(tmp_path / "s.zarr")).fit(gpt2(), tokens())
    found = record(tmp_path / "s.zarr")
    assert found.step.values.tolist() == list(range(9))
    for step, expected in Witness.seen.items():
        np.testing.assert_allclose(found["transformer.h.0"].sel(step=step), expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found.loss[0])
    np.testing.assert_allclose(found.loss[1:], losses, rtol=1e-6)
    assert found.epoch.values.tolist() == [0] * 5 + [1] * 4


def test_the_loss_is_read_when_an_audit_is_taken_and_never_else(tmp_path, monkeypatch):
    read = []
    as_float = torch.Tensor.__float__
    callback = audits(tmp_path / "s.zarr", trigger=ra.AuditTrigger(every_n_steps=4))

    class Spy(Callback):
        """Between the callback's turn and the next one's, only what the audit reads is counted."""

        def on_train_batch_start(self, trainer, module, *_):
            monkeypatch.undo()

        def on_train_batch_end(self, trainer, module, *_):
            step = trainer.global_step
            monkeypatch.setattr(torch.Tensor, "__float__", lambda value: read.append(step) or as_float(value))
            monkeypatch.setattr(torch.Tensor, "item", lambda _: pytest.fail("a step waited for its loss"))

    class End(Callback):
        def on_train_batch_end(self, *_):
            monkeypatch.undo()

    trainer(Spy(), callback, End(), max_epochs=1).fit(gpt2(), tokens())
    assert read == [4]


def test_at_the_end_of_training_everything_is_committed(tmp_path):
    class Reader(Callback):
        def on_train_end(self, trainer, module):
            self.steps = record(tmp_path / "s.zarr").step.values.tolist()

    reader = Reader()
    trainer(audits(tmp_path / "s.zarr"), reader, max_epochs=1).fit(gpt2(), tokens())
    assert reader.steps == [0, 1, 2, 3, 4]


def test_every_trigger_and_one_audit_a_step(tmp_path):
    trigger = ra.AuditTrigger(
        every_n_steps=4, every_n_epochs=1, on_checkpoint=True, on_validation_end=True, at_start=True, at_steps=[3, 4]
    )
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=2, save_top_k=-1)
    callback = audits(tmp_path / "s.zarr", trigger=trigger)
    trainer(checkpoint, callback, val_check_interval=2).fit(gpt2(), tokens(), tokens(4, shuffle=False))
    found = record(tmp_path / "s.zarr")
    triggers = {int(step): set(str(t).split(",")) for step, t in zip(found.step, found.trigger.values, strict=True)}
    assert triggers == {
        0: {"at_start"},
        2: {"on_checkpoint", "on_validation_end"},
        3: {"at_steps"},
        4: {"every_n_steps", "at_steps", "every_n_epochs", "on_checkpoint", "on_validation_end"},
        6: {"on_checkpoint", "on_validation_end"},
        8: {"every_n_steps", "every_n_epochs", "on_checkpoint", "on_validation_end"},
    }


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (ra.AuditTrigger(every_n_steps=3), [3, 6]),
        (ra.AuditTrigger(every_n_epochs=1), [4, 8]),
        (ra.AuditTrigger(on_checkpoint=True), [4, 8]),
        (ra.AuditTrigger(on_validation_end=True), [4, 8]),
        (ra.AuditTrigger(log_spaced=2), [1, 3]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_trigger_alone(tmp_path, trigger, expected):
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", save_top_k=-1)
    trainer(checkpoint, audits(tmp_path / "s.zarr", trigger=trigger)).fit(gpt2(), tokens(), tokens(4, shuffle=False))
    assert record(tmp_path / "s.zarr").step.values.tolist() == expected


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch ended")  # on purpose
@pytest.mark.parametrize("every", [1, 3])
def test_resume_in_mid_epoch_neither_loses_nor_repeats_a_step(tmp_path, every):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 7:
                raise RuntimeError("preempted")

    trigger = ra.AuditTrigger(every_n_steps=every, at_start=True, on_checkpoint=True)

    def fitted(store, *callbacks, ckpt_path=None, **options):
        pl.seed_everything(7, verbose=False)
        module = gpt2()
        trainer(audits(store, trigger=trigger), *callbacks, **options).fit(
            module, tokens(shuffle=False), ckpt_path=ckpt_path
        )
        return module

    checkpoint = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=5, save_top_k=-1)
    whole = fitted(tmp_path / "whole.zarr", ModelCheckpoint(tmp_path / "unused", every_n_train_steps=5, save_top_k=-1))
    with pytest.raises(RuntimeError, match="preempted"):
        fitted(tmp_path / "cut.zarr", checkpoint, Stop())
    before = record(tmp_path / "cut.zarr").step.values.tolist()
    assert max(before) == (7 if every == 1 else 6)
    path = str(next((tmp_path / "ckpt").glob("*step=5*")))
    path = str(Path(path).rename(tmp_path / "five.ckpt"))
    shutil.rmtree(tmp_path / "ckpt")
    again = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=5, save_top_k=-1)
    fitted(tmp_path / "cut.zarr", again, ckpt_path=path)
    expected, found = record(tmp_path / "whole.zarr"), record(tmp_path / "cut.zarr")
    assert found.step.values.tolist() == expected.step.values.tolist()
    # dropout's random state is no part of a checkpoint, so what is compared is the part before it
    np.testing.assert_array_equal(
        found["transformer.h.0"].sel(step=slice(0, 5)), expected["transformer.h.0"].sel(step=slice(0, 5))
    )
    assert whole is not None


def test_fits_that_go_on(tmp_path):
    module, callback = gpt2(), audits(tmp_path / "s.zarr")
    first = trainer(callback, max_epochs=1)
    first.fit(module, tokens())
    first.fit_loop.max_epochs = 2
    first.fit(module, tokens())  # the same trainer counts on
    trainer(callback, max_epochs=1).fit(module, tokens())  # a new one counts from zero
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(13))


def test_a_new_training_of_a_recorded_model_is_refused_before_it_starts(tmp_path):
    trainer(audits(tmp_path / "s.zarr"), max_epochs=1).fit(gpt2(), tokens())
    module = gpt2()
    before = weights(module)
    with pytest.raises(StepOrderError, match=r"recorded up to step 4 .* this training starts at step 0"):
        trainer(audits(tmp_path / "s.zarr"), max_epochs=1).fit(module, tokens())
    assert_identical(before, weights(module))
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1, 2, 3, 4]
    trigger = ra.AuditTrigger(every_n_steps=2)
    trainer(audits(tmp_path / "s.zarr", trigger=trigger, if_exists="replace"), max_epochs=1).fit(gpt2(), tokens())
    assert record(tmp_path / "s.zarr").step.values.tolist() == [2, 4]


def test_what_is_wrong_is_raised_before_the_first_step(tmp_path):
    module = gpt2()
    before = weights(module)
    with pytest.raises(LayerPathError, match="'layers' not found"):
        trainer(audits(tmp_path / "s.zarr", ["transformer.layers[0]"])).fit(module, tokens())
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises((OSError, ra.errors.StoreError)):
        trainer(audits(tmp_path / "file" / "s.zarr")).fit(module, tokens())
    assert_identical(before, weights(module))


class Breaks(Callback):
    """Makes forwards of the probe set fail from a step on."""

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 3:
            block = module.network.transformer.h[0]

            def refuse(*_):
                if not torch.is_grad_enabled():
                    raise RuntimeError("out of memory")

            block.register_forward_pre_hook(refuse)


def test_a_failing_audit_does_not_end_the_training(tmp_path):
    callback = audits(tmp_path / "s.zarr")
    with pytest.warns(AuditWarning, match=r"step [34] failed .*out of memory.*the training goes on"):
        trainer(Breaks(), callback, max_epochs=1).fit(gpt2(), tokens())
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1, 2]
    assert [step for step, _ in callback.recorder.failures] == [3, 4]


def test_a_failing_audit_raises_by_request(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(Breaks(), audits(tmp_path / "s.zarr", on_store_error="raise"), max_epochs=1).fit(gpt2(), tokens())
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1, 2]


def test_fast_dev_run_writes_no_store(tmp_path):
    trainer(audits(tmp_path / "s.zarr"), fast_dev_run=True).fit(gpt2(), tokens(), tokens(4, shuffle=False))
    assert not (tmp_path / "s.zarr").exists()


def test_operators_are_kept_as_a_trajectory(tmp_path):
    callback = audits(tmp_path / "s.zarr", gauge=ra.DiffusionGauge(knn=3), trigger=ra.AuditTrigger(every_n_steps=2))
    trainer(callback, max_epochs=1).fit(gpt2(), tokens())
    assert [step for step, _ in callback.trajectory] == [2, 4]
    found = record(tmp_path / "s.zarr")
    for step, operators in callback.trajectory:
        for layer, operator in operators.items():
            expected = ra.DiffusionGauge(knn=3)(found[layer].sel(step=step).values)
            np.testing.assert_allclose(np.asarray(operator), np.asarray(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kept", ["operators", "both"])
def test_operators_are_written_by_request(tmp_path, kept):
    callback = audits(
        tmp_path / "s.zarr", gauge=ra.DiffusionGauge(knn=3), trigger=ra.AuditTrigger(every_n_steps=2), record=kept
    )
    trainer(callback, max_epochs=1).fit(gpt2(), tokens())
    dataset = plainly(tmp_path / "s.zarr")
    expected = ["transformer.h.0@operator", "transformer.h.1@operator"]
    activations = ["transformer.h.0", "transformer.h.1"] if kept == "both" else []
    assert list(dataset.data_vars) == [*activations, *expected]
    assert all(dataset[layer].dims == ("step", "sample", "feature") for layer in activations)
    for step, operators in callback.trajectory:
        for layer, operator in operators.items():
            stored = dataset[f"{layer}@operator"].sel(step=step)
            assert stored.dims == ("sample", "neighbor")
            np.testing.assert_array_equal(stored, operator.to_numpy())
    attrs = dataset["transformer.h.0@operator"].attrs
    assert (attrs["operator_of"], attrs["gauge"]["knn"], attrs["gauge"]["alpha"]) == ("transformer.h.0", 3, 1.0)
    assert ra.verify(tmp_path / "s.zarr", data=True) == []
    copied = copy_store(tmp_path / "s.zarr", tmp_path / "t.zarr")
    assert copied == {"seed0": [2, 4]}
    xr.testing.assert_equal(plainly(tmp_path / "t.zarr"), dataset)
    assert plainly(tmp_path / "t.zarr")["transformer.h.0@operator"].attrs == attrs


def plainly(store):
    """As someone without repaudit reads it."""
    return xr.open_datatree(store, engine="zarr", consolidated=False)["models/seed0"].to_dataset().load()


def test_an_analysis_takes_no_operator_for_activations(tmp_path):
    for kept in ("operators", "both"):
        store = tmp_path / f"{kept}.zarr"
        with ra.Recorder(store, "m", PROBE, ["transformer.h[*]"], gauge=ra.DiffusionGauge(knn=3), record=kept) as own:
            own.audit(gpt2(), 0)
    found = select(ra.open_store(tmp_path / "both.zarr"))
    assert found.layers == ("transformer.h.0", "transformer.h.1")
    assert sum("has operators" in line for line in found.left_out) == 2
    with pytest.raises(AnalysisError, match="or of operators"):
        select(ra.open_store(tmp_path / "operators.zarr"))
    lazy = ra.DiffusionGauge(knn=3).map(ra.open_store(tmp_path / "both.zarr"))
    assert list(lazy["models/m"].data_vars) == ["transformer.h.0", "transformer.h.1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record": "operators"}, "give gauge="),
        ({"record": "nothing"}, "expected one of activations, operators, both"),
    ],
)
def test_records_that_cannot_be_are_refused_at_once(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        audits(tmp_path / "s.zarr", **options)


@pytest.mark.parametrize(
    ("gauge", "specs", "message"),
    [
        (ra.DiffusionGauge(knn=6), ["transformer.h[0]"], "knn=6 needs at least 7 samples"),
        (ra.DiffusionGauge(knn=3), [ra.LayerSpec("transformer.h[0]", reduce="all")], "keeps its tokens"),
    ],
)
def test_what_the_gauge_cannot_do_is_raised_before_the_first_step(tmp_path, gauge, specs, message):
    module = gpt2()
    before = weights(module)
    with pytest.raises(RepauditError, match=message):
        trainer(audits(tmp_path / "s.zarr", specs, gauge=gauge)).fit(module, tokens())
    assert_identical(before, weights(module))
    assert not (tmp_path / "s.zarr").exists()


def test_two_models_share_a_store(tmp_path):
    for seed in range(2):
        pl.seed_everything(seed, verbose=False)
        callback = ra.RepresentationAuditCallback(
            tmp_path / "s.zarr", f"seed{seed}", PROBE, ["transformer.h[-1]"], ra.AuditTrigger(every_n_steps=2)
        )
        trainer(callback, max_epochs=1).fit(gpt2(), tokens())
    assert not np.allclose(
        record(tmp_path / "s.zarr", "seed0")["transformer.h.1"], record(tmp_path / "s.zarr", "seed1")["transformer.h.1"]
    )


def test_module_learns_masked_tokens_not(tmp_path):
    module = gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    module.log = lambda *_, **__: None
    ids, mask = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 1, 1, 0]])
    loss = module.training_step({"input_ids": ids, "attention_mask": mask}, 0)
    expected = module.training_step({"input_ids": ids[:, :3]}, 0)
    torch.testing.assert_close(loss, expected)
    with pytest.raises(TypeError, match="found int"):
        ra.HFTrainerModule(3)


def test_a_checkpoint_loaded_to_validate_does_not_cut_the_record(tmp_path):
    class Validated(Convolutional):
        def validation_step(self, batch, batch_idx):
            return self(batch["x"]).sum()

    callback = audits(tmp_path / "s.zarr", ["head"], probe_set=IMAGES)
    first, module = trainer(callback, max_epochs=1), Validated(frozen=False)
    first.fit(module, images())
    first.save_checkpoint(tmp_path / "c.ckpt")
    trainer(callback, max_epochs=1).fit(module, images())
    first.validate(
        module,
        DataLoader(images().dataset, batch_size=4),
        ckpt_path=str(tmp_path / "c.ckpt"),
        weights_only=False,
        verbose=False,
    )
    trainer(callback, max_epochs=1).fit(module, images())
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(13))


def test_finding_a_learning_rate_does_not_cut_the_record(tmp_path):
    from lightning.pytorch.tuner import Tuner

    class Tuned(Convolutional):
        lr = 0.1

    options = {"max_epochs": 1, "default_root_dir": tmp_path}
    trainer(audits(tmp_path / "s.zarr", ["head"], probe_set=IMAGES), **options).fit(Convolutional(False), images())
    second, module = trainer(audits(tmp_path / "s.zarr", ["head"], probe_set=IMAGES), **options), Tuned(False)
    Tuner(second).lr_find(module, images(), num_training=3)
    with pytest.raises(StepOrderError, match="recorded up to step 4"):
        second.fit(module, images())
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(5))


def test_a_model_that_cannot_be_put_back_ends_the_training(tmp_path):
    class Changes(Convolutional):
        def forward(self, x):
            if not self.training and self.trainer.global_step == 2:
                with torch.no_grad():
                    self.head.weight.mul_(1.01)
            return super().forward(x)

    with pytest.raises(StateError, match=r"head\.weight"):
        trainer(audits(tmp_path / "s.zarr", ["head"], probe_set=IMAGES)).fit(Changes(False), images())
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 5}, [4]),
        ({"max_steps": 8}, [4, 8]),
        ({"accumulate_grad_batches": 3}, [2, 4]),
        ({"accumulate_grad_batches": 3, "max_steps": 3}, [2]),
        ({"limit_train_batches": 3}, [3, 6]),
    ],
    ids=str,
)
def test_epochs_are_audited_at_their_end_alone(tmp_path, options, expected):
    trainer(audits(tmp_path / "s.zarr", trigger=ra.AuditTrigger(every_n_epochs=1)), **options).fit(gpt2(), tokens())
    assert record(tmp_path / "s.zarr").step.values.tolist() == expected


@pytest.mark.parametrize("options", [{"max_steps": 0}, {"max_epochs": 0}, {"limit_train_batches": 0}], ids=str)
def test_a_training_without_steps_records_the_untrained_model(tmp_path, options):
    module = gpt2()
    before = weights(module)
    trainer(audits(tmp_path / "s.zarr"), **options).fit(module, tokens())
    assert_identical(before, weights(module))
    found = record(tmp_path / "s.zarr")
    assert found.step.values.tolist() == [0]
    assert found.trigger.values.tolist() == ["at_start"]
    expected = ra.ActivationExtractor(["transformer.h[1]"]).extract(module, PROBE)["transformer.h.1"]
    np.testing.assert_array_equal(found["transformer.h.1"][0], expected)
