"""Trainings that end, and layers that freeze, when the geometry has settled by the statistic of an analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

import repaudit as ra
from repaudit.live.settling import SettlingLayers
from repaudit.measure.comparison import approach
from repaudit.measure.settling import settled

GAUGE = ra.DiffusionGauge(perplexity=5)
PROBE = ra.ProbeSet.from_tensors({"x": torch.randn(32, 4, generator=torch.Generator().manual_seed(0))})


class Module(pl.LightningModule):
    """A network whose learning rate is 0 from a step on: its geometry settles there."""

    def __init__(self, rests_from: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rests_from = rests_from
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 2.0)
        rests = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < self.rests_from))
        return [optimizer], [{"scheduler": rests, "interval": "step"}]


def fit(folder: Path, rests_from: int, *stop: Any, steps: int = 60, audited: bool = True) -> pl.LightningModule:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randn(64, 2))
    audit = ra.RepresentationAuditCallback(
        store=folder / "runs.zarr", model_name="seed0", probe_set=PROBE, layer_specs=["0", "2"], durable=False,
        trigger=ra.AuditTrigger(every_n_steps=5, at_start=True),
    )  # fmt: skip
    module = Module(rests_from)
    pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=[*([audit] if audited else []), *stop],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, torch.utils.data.DataLoader(data, 8))  # fmt: skip
    return module


@pytest.fixture(autouse=True)
def few_workers() -> None:
    import warnings

    warnings.filterwarnings("ignore", ".*does not have many workers")


def test_lightning_stops_patience_audits_after_the_geometry_rests(tmp_path: Path) -> None:
    stop = ra.StopWhenSettled(patience=3, gauge=GAUGE)
    module = fit(tmp_path, 20, stop)
    assert stop.stopped_at == 35
    assert stop.settled["2"] == 20
    assert stop.settled["0"] <= 20  # it moves less
    assert ra.open_store(tmp_path / "runs.zarr").repaudit.steps("seed0") == [*range(0, 36, 5)]
    assert module.trainer.global_step == 35


def test_it_is_what_an_analysis_calls_settled(tmp_path: Path) -> None:
    stop = ra.StopWhenSettled(["2"], patience=3, gauge=GAUGE)
    fit(tmp_path, 20, stop)
    array = ra.open_store(tmp_path / "runs.zarr").repaudit.activations("seed0", "2")
    curve = approach([GAUGE(one.values) for one in array])
    steps = array["step"].values
    numbers = ([one.value for one in curve], [one.low for one in curve], [one.high for one in curve])
    assert settled(steps, *numbers) == stop.settled["2"]


def test_a_geometry_that_moves_is_not_stopped(tmp_path: Path) -> None:
    stop = ra.StopWhenSettled(patience=3, gauge=GAUGE)
    module = fit(tmp_path, 1000, stop, steps=40)
    assert (stop.stopped_at, module.trainer.global_step) == (None, 40)


def cloud(step: int, drift: float, jitter: float, seed: int = 0) -> torch.Tensor:
    """Return samples that drift away from where they were, and jitter about it."""
    start, way, noise = np.random.default_rng(seed).normal(size=(3, 96, 8))
    noise = np.random.default_rng([seed, step]).normal(size=noise.shape)
    return torch.tensor(start + drift * step * way + jitter * noise)


@pytest.mark.parametrize("seed", range(5))
def test_a_geometry_that_wanders_about_one_place_has_settled(seed: int) -> None:
    """As at a constant learning rate: no two audits are alike, but it leads nowhere."""
    layers = SettlingLayers(patience=3, gauge=ra.DiffusionGauge(perplexity=10))
    found = [layers.audited(step, {"top": cloud(step, 0.0, 0.15, seed)}) for step in range(6)]
    assert found[:3] == [[], [], []]
    assert ["top"] in found[3:]
    assert layers._last["top"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("drift", "jitter"), [(0.3, 0.2), (0.15, 0.0), (0.0, 5.0)], ids=["drifts", "slowly", "unrelated"]
)
def test_a_geometry_that_leads_away_or_is_another_at_every_audit_has_not(
    drift: float, jitter: float, seed: int
) -> None:
    layers = SettlingLayers(patience=3, gauge=ra.DiffusionGauge(perplexity=10))
    assert not any(layers.audited(step, {"top": cloud(step, drift, jitter, seed)}) for step in range(6))


def test_a_settled_layer_is_frozen_and_the_others_train_on(tmp_path: Path) -> None:
    stop = ra.StopWhenSettled(["0"], patience=2, action="freeze", gauge=GAUGE)
    module = fit(tmp_path, 20, stop)
    assert stop.frozen == ["0"]
    assert [parameter.requires_grad for parameter in module.network.parameters()] == [False, False, True, True]  # type: ignore[union-attr]
    assert module.trainer.global_step == 60


def test_a_training_ends_where_every_parameter_is_frozen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another step would have no gradient, and torch's own error ends it."""
    caplog.set_level("INFO")
    stop = ra.StopWhenSettled(patience=2, action="freeze", gauge=GAUGE)
    module = fit(tmp_path, 0, stop)
    assert sorted(stop.frozen) == ["0", "2"]
    assert stop.stopped_at == module.trainer.global_step < 60
    assert "every parameter is frozen" in caplog.text


def test_states_are_no_modules_to_freeze_and_are_refused_before_the_first_step(tmp_path: Path) -> None:
    model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    rows = torch.randint(1, 32, (40, 8), generator=torch.Generator().manual_seed(0))
    stop = ra.StopWhenSettled(action="freeze", gauge=GAUGE)
    audit = ra.AuditTrainerCallback(
        tmp_path / "s.zarr", "seed0", ra.ProbeSet.from_tensors({"input_ids": rows}), ["hidden_states[1]"],
        ra.AuditTrigger(every_n_steps=5, at_start=True), durable=False, on_store_error="raise",
    )  # fmt: skip
    trainer = tf.Trainer(
        model=model,
        args=tf.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=10, per_device_train_batch_size=4, save_strategy="no",
            logging_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows], callbacks=[stop, audit],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"expected modules, to freeze them, found hidden_states"):
        trainer.train()
    assert trainer.state.global_step == 0


def _audit(folder: Path, layers: list[str], name: str = "seed0") -> ra.RepresentationAuditCallback:
    return ra.RepresentationAuditCallback(
        store=folder / "runs.zarr", model_name=name, probe_set=PROBE, layer_specs=layers,
        trigger=ra.AuditTrigger(every_n_steps=5, at_start=True), durable=False,
    )  # fmt: skip


def test_a_layer_is_known_by_the_path_of_its_spec(tmp_path: Path) -> None:
    """Of the recorded names [-1] is another one: the last that has a number."""
    audit = _audit(tmp_path, ["[0]", "end=[-1]"])
    stop = ra.StopWhenSettled("[-1]", patience=2, action="freeze", gauge=GAUGE)
    module = fit(tmp_path, 20, audit, stop, audited=False)
    assert stop.frozen == ["end"]
    assert [parameter.requires_grad for parameter in module.network.parameters()] == [True, True, False, False]  # type: ignore[union-attr]


def test_what_has_no_parameters_is_not_to_be_frozen(tmp_path: Path) -> None:
    audit = _audit(tmp_path, ["[0]", "act=[1]"])
    stop = ra.StopWhenSettled(["act"], action="freeze", gauge=GAUGE)
    with pytest.raises(ValueError, match="expected modules with parameters, to freeze them, found act without any"):
        fit(tmp_path, 20, audit, stop, audited=False)
    every = ra.StopWhenSettled(patience=2, action="freeze", gauge=GAUGE)
    fit(tmp_path / "every", 20, _audit(tmp_path / "every", ["[0]", "act=[1]"]), every, audited=False)
    assert every.frozen == ["0"]


def test_one_object_serves_several_trainings_one_after_the_other(tmp_path: Path) -> None:
    stop = ra.StopWhenSettled(patience=3, gauge=GAUGE)
    assert fit(tmp_path / "a", 20, stop).trainer.global_step == 35
    assert fit(tmp_path / "b", 10, stop).trainer.global_step == 25, "not by the audits of the first"
    assert stop.stopped_at == 25


class Failing(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 7:
            raise KeyError("mine")


def test_a_training_that_ended_by_an_exception_is_over(tmp_path: Path) -> None:
    stop = ra.StopWhenSettled(patience=3, gauge=GAUGE)
    with pytest.raises(KeyError, match="mine"):
        fit(tmp_path / "a", 20, stop, Failing())
    assert fit(tmp_path / "b", 10, stop).trainer.global_step == 25


def in_transformers(folder: Path, stop: ra.StopWhenSettled, *, audits_first: bool = True) -> tf.Trainer:
    rows = torch.randint(1, 32, (40, 8), generator=torch.Generator().manual_seed(0))
    tf.set_seed(0)
    model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    audit = ra.AuditTrainerCallback(
        folder / "s.zarr", "seed0", ra.ProbeSet.from_tensors({"input_ids": rows}), ["transformer.h[*]"],
        ra.AuditTrigger(every_n_steps=5, at_start=True), durable=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    rests = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 10))
    return tf.Trainer(
        model=model,
        args=tf.TrainingArguments(
            output_dir=str(folder / "out"), max_steps=60, per_device_train_batch_size=4, save_strategy="no",
            logging_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[audit, stop] if audits_first else [stop, audit], optimizers=(optimizer, rests),
    )  # fmt: skip


@pytest.mark.parametrize("audits_first", [True, False])
def test_the_transformers_trainer_stops_too(tmp_path: Path, audits_first: bool) -> None:
    stop = ra.StopWhenSettled(["transformer.h[-1]"], patience=2, gauge=GAUGE)
    trainer = in_transformers(tmp_path, stop, audits_first=audits_first)
    trainer.train()
    last = 20 if audits_first else 21  # its turn comes before the audit's
    assert (stop.stopped_at, trainer.state.global_step) == (last, last)
    assert list(stop.settled) == ["transformer.h.1"]


@pytest.mark.parametrize("audits_first", [True, False])
def test_what_is_refused_leaves_no_record(tmp_path: Path, audits_first: bool) -> None:
    """Else the next training would be told that its model was recorded before."""
    stop = ra.StopWhenSettled(["nope[*]"], gauge=GAUGE)
    with pytest.raises(ValueError, match=r"recorded are transformer\.h\.0"):
        in_transformers(tmp_path, stop, audits_first=audits_first).train()
    tree = ra.open_store(tmp_path / "s.zarr").repaudit
    assert [tree.steps(name) for name in tree.models] in ([], [[]])


def test_without_audits_or_with_an_unknown_layer_the_training_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one audit callback beside it"):
        fit(tmp_path, 5, ra.StopWhenSettled(), audited=False)
    with pytest.raises(ValueError, match="nope is not recorded; recorded are 0, 2"):
        fit(tmp_path, 5, ra.StopWhenSettled(["nope"], gauge=GAUGE))
    with pytest.raises(ValueError, match="patience"):
        ra.StopWhenSettled(patience=0)
    with pytest.raises(ValueError, match="action"):
        ra.StopWhenSettled(action="pause")  # type: ignore[arg-type]
    assert ra.StopWhenSettled(layers=(f"{i}" for i in (0, 2)))._layers.patterns == ["0", "2"]
    with pytest.raises(TypeError, match=r"layers: .* found 3: is it patience=3\?"):
        ra.StopWhenSettled(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"layers: .* found \[0, 1\]"):
        ra.StopWhenSettled([0, 1])  # type: ignore[list-item]


def test_as_few_operators_are_kept_as_are_needed() -> None:
    layers = SettlingLayers(patience=2, gauge=GAUGE)
    rng = np.random.default_rng(0)
    for step in range(6):
        layers.audited(step, {"top": torch.tensor(rng.normal(size=(32, 4)))})
    assert len(layers._last["top"]) == 3
    assert layers.since == {}


def test_what_was_stopped_frozen_or_still_moves_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="repaudit")
    fit(tmp_path / "stop", 20, ra.StopWhenSettled(["2"], patience=3, gauge=GAUGE))
    assert "repaudit: stopped after step 35: 2 settled since step 20" in caplog.text
    fit(tmp_path / "freeze", 20, ra.StopWhenSettled(["2"], patience=3, action="freeze", gauge=GAUGE))
    assert "repaudit: froze 2, settled since step 20" in caplog.text
    assert "still moving" not in caplog.text
    fit(tmp_path / "moves", 1000, ra.StopWhenSettled(["2"], patience=3, gauge=GAUGE), steps=20)
    assert "repaudit: at the end of the training still moving: 2" in caplog.text


def test_layers_are_named_with_or_without_the_path_of_the_base() -> None:
    names = dict.fromkeys(["bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler"])
    for pattern in ("bert.encoder.layer[-1]", "encoder.layer[-1]", "layer[-1]"):
        assert SettlingLayers([pattern]).watched(names) == ["bert.encoder.layer.1"]
    with pytest.raises(ValueError, match=r"coder.layer\[0\] is not recorded"):
        SettlingLayers(["coder.layer[0]"]).watched(names)


class Breaks(pl.Callback):
    """Ends a training by an exception."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 8:
            raise RuntimeError("out of memory")


def test_a_training_that_broke_does_not_reach_into_the_next(tmp_path: Path) -> None:
    """A callback that is not part of the next training does not listen to its audits."""
    audit = _audit(tmp_path, ["0", "2"], "trial{n}")
    heard: list[int] = []
    audit.recorder.listeners.append(lambda step, _activations: heard.append(step))
    stop = ra.StopWhenSettled(patience=2, gauge=GAUGE)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, 20, audit, stop, Breaks(), audited=False)
    module = fit(tmp_path, 20, audit, audited=False)
    assert module.trainer.global_step == 60
    assert audit.recorder.steps == [*range(0, 61, 5)]
    assert heard == [0, 5, *range(0, 61, 5)]  # a function of one's own stays
    fit(tmp_path, 20, audit, stop, audited=False)
    assert stop.stopped_at == 30


def test_patience_is_a_whole_number_of_any_kind() -> None:
    assert "patience=2" in repr(ra.StopWhenSettled(patience=np.int64(2)))  # type: ignore[arg-type]
    for wrong in (True, 0, 2.0, "3"):
        with pytest.raises(ValueError, match="patience: expected a number of audits, 1 at least, found"):
            ra.StopWhenSettled(patience=wrong)  # type: ignore[arg-type]
