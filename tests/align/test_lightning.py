"""The objective in Lightning: the task left alone, bit-identical resume, logs, foreign modules."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers as tf
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

import repaudit as ra
from repaudit.align.joint_objective import Schedule
from repaudit.errors import FingerprintError

sys.path.insert(0, str(Path(__file__).parent))

import students

HEADS = {
    "operator": lambda: ra.OperatorMatch(students.target()),
    "minibatch": lambda: ra.OperatorMatch(students.target(perplexity=30), rows="minibatch"),
    "coordinates": lambda: ra.CoordinateMatch(students.target(), k=3),
    "features": lambda: ra.FeatureMatch(students.teachers(), [f"s{i}" for i in range(students.COUNT)]),
}


def loader() -> DataLoader:
    return DataLoader(students.rows(), batch_size=8, shuffle=True)


def fit(
    module: pl.LightningModule, folder: Path, *callbacks: pl.Callback, epochs: int = 2, **options: Any
) -> pl.Trainer:
    pl.seed_everything(3, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=options.pop("logger", False), callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=2,
        enable_checkpointing=options.pop("enable_checkpointing", False),
    )  # fmt: skip
    trainer.fit(module, loader(), **options)
    return trainer


def weights(module: pl.LightningModule) -> dict[str, torch.Tensor]:
    network = getattr(module, "network", None) or module.trunk
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class Seen(pl.Callback):
    """Remember the task's data and randomness at every step."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []
        self.random: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch["input_ids"].clone())
        self.random.append(torch.get_rng_state())


def test_no_weight_is_no_objective_bit_for_bit(tmp_path: Path) -> None:
    plain, aligned = ra.HFTrainerModule(students.student()), None
    fit(plain, tmp_path)
    for options in ({"weight": 0.0}, {"schedule": Schedule(stop=0)}):
        aligned = ra.AlignedFineTuning(students.student(), students.objective(**options))
        fit(aligned, tmp_path)
        assert same(weights(plain), weights(aligned))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.filterwarnings("ignore::repaudit.errors.AlignmentWarning")
def test_the_task_sees_the_same_data_and_randomness(tmp_path: Path, kind: str) -> None:
    seen, other = Seen(), Seen()
    plain, aligned = ra.HFTrainerModule(students.student()), None
    fit(plain, tmp_path, seen)
    aligned = ra.AlignedFineTuning(students.student(), students.objective(HEADS[kind]()))
    heads = {name: value.clone() for name, value in aligned.objective.named_parameters()}
    fit(aligned, tmp_path, other)
    assert len(seen.batches) == 10
    for one, two in ((seen.batches, other.batches), (seen.random, other.random)):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not same(weights(plain), weights(aligned))
    for name, value in aligned.objective.named_parameters():
        assert not torch.equal(value, heads[name]), name


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.filterwarnings("ignore::repaudit.errors.AlignmentWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_resumed_training_is_bit_identical(tmp_path: Path, kind: str) -> None:
    def module() -> ra.AlignedFineTuning:
        return ra.AlignedFineTuning(students.student(dropout=0.0), students.objective(HEADS[kind]()))

    def run(made: pl.LightningModule, epochs: int, **options: Any) -> pl.Trainer:
        pl.seed_everything(3, verbose=False)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(made, DataLoader(students.rows(), batch_size=8), **options)
        return trainer

    whole, half, rest = module(), module(), module()
    run(whole, 2)
    run(half, 1).save_checkpoint(tmp_path / "half.ckpt")
    run(rest, 2, ckpt_path=tmp_path / "half.ckpt")
    assert same(weights(whole), weights(rest))
    for name, value in whole.objective.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, rest.objective.state_dict()[name]), name


def test_what_is_logged(tmp_path: Path) -> None:
    module = ra.AlignedFineTuning(students.student(), students.objective(weight=0.5))
    logger = CSVLogger(tmp_path)
    fit(module, tmp_path, logger=logger)
    lines = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert {"train_loss", "match", "match_weight", "gradient_ratio"} <= set(lines[0].split(","))
    assert module.trainer.callback_metrics["match_weight"] == 0.5


class Foreign(pl.LightningModule):
    """A module of somebody else's, with its model under a name of its own."""

    def __init__(self, returns: str = "tensor") -> None:
        super().__init__()
        self.trunk, self.returns = students.student(), returns

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        loss = self.trunk(**batch).loss
        return {"tensor": loss, "dict": {"loss": loss, "more": 1}, "none": None if batch_idx == 1 else loss}[
            self.returns
        ]

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.trunk(**inputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-4, weight_decay=0.01)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize("returns", ["tensor", "dict", "none"])
@pytest.mark.parametrize("kind", ["operator", "features"])
def test_a_foreign_module_is_taught_and_gets_its_step_back(tmp_path: Path, kind: str, returns: str) -> None:
    def objective(**options: Any) -> ra.JointObjective:
        return students.objective(HEADS[kind](), layer="trunk." + students.LAYER, **options)

    plain, silent, taught = (Foreign(returns) for _ in range(3))
    fit(plain, tmp_path)
    fit(silent, tmp_path, ra.AlignmentCallback(objective(weight=0.0)))
    callback = ra.AlignmentCallback(objective())
    fit(taught, tmp_path, callback)
    assert same(weights(plain), weights(silent))
    assert not same(weights(plain), weights(taught))
    assert "training_step" not in taught.__dict__
    if kind == "operator":
        assert bool(callback.objective.match.seen.any())


def test_a_callback_and_the_module_that_has_it_built_in_are_the_same(tmp_path: Path) -> None:
    built_in = ra.AlignedFineTuning(students.student(), students.objective())
    fit(built_in, tmp_path)
    foreign = Foreign()
    fit(foreign, tmp_path, ra.AlignmentCallback(students.objective(layer="trunk." + students.LAYER)))
    assert same(weights(built_in), weights(foreign))


def test_a_foreign_training_resumes_with_the_callbacks_state(tmp_path: Path) -> None:
    def callback() -> ra.AlignmentCallback:
        return ra.AlignmentCallback(students.objective(HEADS["features"](), layer="trunk." + students.LAYER))

    first, second = callback(), callback()
    fit(Foreign(), tmp_path, first, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=False)
    assert not any("objective" in name for name in state["state_dict"])  # the module's weights stay its own
    fit(Foreign(), tmp_path, second, epochs=1, ckpt_path=tmp_path / "half.ckpt")
    for name, value in first.objective.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second.objective.state_dict()[name]), name


def test_modules_that_optimize_by_hand_are_refused(tmp_path: Path) -> None:
    module = Foreign()
    module.automatic_optimization = False
    with pytest.raises(TypeError, match="optimizes by hand"):
        fit(module, tmp_path, ra.AlignmentCallback(students.objective(layer="trunk." + students.LAYER)))


def test_a_vision_model_or_any_other_is_a_student(tmp_path: Path) -> None:
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.trunk(x)

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            return self.trunk(batch["input_ids"][:, :4].float()).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    x = torch.randn(students.COUNT, 4, generator=torch.Generator().manual_seed(0))
    probe_set = ra.ProbeSet.from_tensors({"x": x}, ids=[f"s{i}" for i in range(students.COUNT)])
    tf.set_seed(0)
    module = Plain()
    fit(module, tmp_path, ra.AlignmentCallback(students.objective(layer="trunk[2]", probe_set=probe_set)))
    # running statistics are those of the task's ten batches alone
    assert int(module.trunk[1].num_batches_tracked) == 10


def test_the_held_out_distance_is_logged_by_the_audit(tmp_path: Path) -> None:
    target, layer = students.target(), "bert.encoder.layer.1"
    audit = ra.RepresentationAuditCallback(
        tmp_path / "s.zarr", "student", students.probe_set(), [layer], ra.AuditTrigger(at_start=True, every_n_steps=5),
        metrics=target.metrics(layer),
    )  # fmt: skip
    logger = CSVLogger(tmp_path)
    module = ra.AlignedFineTuning(students.student(), students.objective())
    fit(module, tmp_path, audit, logger=logger)
    recorded = ra.open_store(tmp_path / "s.zarr").repaudit.activations("student", layer)
    expected = {step: target.distance(recorded.sel(step=step).values) for step in (0, 5, 10)}
    rows = list(csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines()))
    found = {int(row["step"]): float(row["held_out_distance"]) for row in rows if row["held_out_distance"]}
    assert found == pytest.approx(expected, rel=1e-4)


def test_held_out_samples_are_the_audit_s_in_their_order(tmp_path: Path) -> None:
    target, known = students.target(), students.probe_set()
    turned = ra.ProbeSet({name: value.flip(0) for name, value in known.inputs.items()}, ids=known.ids[::-1])
    for other in (turned, known.select(0, len(known) - 1)):
        with pytest.raises(FingerprintError, match=r"held_out_distance: expected the|with the .* samples that are"):
            ra.Recorder(tmp_path / "s.zarr", "student", other, ["0"], metrics=target.metrics("0"))
    with pytest.raises(ValueError, match=r"expected a recorded layer for held_out_distance, found '9'; recorded are 0"):
        target.metrics("9")({"0": torch.zeros(3, 2)})


def test_two_objectives_for_one_student_are_refused(tmp_path: Path) -> None:
    module = ra.AlignedFineTuning(students.student(), students.objective())
    with pytest.raises(TypeError, match="found AlignedFineTuning, which has an objective already"):
        fit(module, tmp_path, ra.AlignmentCallback(students.objective()))


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_that_was_set_on_the_module_comes_back(tmp_path: Path, fails: bool) -> None:
    module = ra.HFTrainerModule(students.student())

    def step(batch: Any, batch_idx: int) -> Any:
        if fails:
            raise OSError("the disk is gone")
        return ra.HFTrainerModule.training_step(module, batch, batch_idx)

    module.training_step = step  # type: ignore[method-assign]
    try:
        fit(module, tmp_path, ra.AlignmentCallback(students.objective()))
    except OSError:
        assert fails
    assert module.training_step is step


class Strict(nn.Module):
    """A network that takes what it names, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = students.student(dropout=0.0)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.bert(input_ids, attention_mask, labels=labels)


def indexed(shuffle: bool) -> DataLoader:
    """The samples taught as the task's own data, the last batch of one sample."""
    places = torch.arange(students.COUNT)
    given = students.inputs()
    rows = [
        {**{name: value[i] for name, value in given.items()}, "labels": places[i] % 4, "sample_index": places[i]}
        for i in range(33)
    ]
    return DataLoader(rows, batch_size=8, shuffle=shuffle)


def quiet(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*log_every_n_steps")
def test_places_of_samples_stay_out_of_validation_and_a_batch_of_one_leaves_weights_finite(tmp_path: Path) -> None:
    objective = ra.JointObjective(ra.OperatorMatch(students.target()), layer="bert.bert.encoder.layer[-1]")
    module = ra.AlignedFineTuning(Strict(), objective)
    quiet(tmp_path, log_every_n_steps=0).fit(module, indexed(shuffle=True), indexed(shuffle=False))
    assert all(bool(torch.isfinite(value).all()) for value in module.network.parameters())


class OneArgument(Foreign):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().training_step(batch, 0)


def test_a_step_of_one_argument_is_a_step(tmp_path: Path) -> None:
    module = OneArgument()
    fit(module, tmp_path, ra.AlignmentCallback(students.objective(layer="trunk.bert.encoder.layer[-1]")), epochs=1)
    assert "training_step" not in module.__dict__


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("kind", ["coordinates", "features"])
def test_heads_in_half_precision_are_trained(tmp_path: Path, kind: str) -> None:
    module = ra.AlignedFineTuning(students.student(dropout=0.0), students.objective(HEADS[kind]()))
    quiet(tmp_path, precision="bf16-true", log_every_n_steps=5).fit(module, loader())
    heads = list(module.objective.match.parameters())
    assert heads[0].dtype == torch.bfloat16
    assert all(bool(torch.isfinite(head).all()) for head in heads)
