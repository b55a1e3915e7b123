"""The objective in a transformers Trainer: through its loss, its accumulation, its checkpoints and its columns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers as tf

import repaudit as ra

sys.path.insert(0, str(Path(__file__).parent))

import students


class AlignedTrainer(ra.AlignedTrainerMixin, tf.Trainer):
    pass


def test_a_mixin_behind_the_trainer_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="Behind: expected AlignedTrainerMixin before Trainer among the base classes"):

        class Behind(tf.Trainer, ra.AlignedTrainerMixin):
            pass

    class Further(AlignedTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    class Furthest(Further):
        pass

    with pytest.raises(TypeError, match=r"objective: expected a JointObjective\(match, ...\), found OperatorMatch"):
        Furthest(objective=students.objective().match)


def arguments(folder: Path, **options: Any) -> tf.TrainingArguments:
    defaults = {
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "save_strategy": "no", "logging_strategy": "no",
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
    }  # fmt: skip
    return tf.TrainingArguments(output_dir=str(folder), **(defaults | options))


def train(
    folder: Path, objective: ra.JointObjective | None, model: Any = None, data: Any = None, **options: Any
) -> Any:
    resume = options.pop("resume", None)
    model = model or students.student(dropout=0.0)
    given = {"model": model, "args": arguments(folder, **options), "train_dataset": data or students.rows()}
    tf.set_seed(1)
    trainer = tf.Trainer(**given) if objective is None else AlignedTrainer(**given, objective=objective)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return trainer.model.state_dict()


def equal(first: Any, second: Any, **tolerance: float) -> None:
    for name, value in weights(first).items():
        torch.testing.assert_close(value, weights(second)[name], **(tolerance or {"rtol": 0, "atol": 0}))


def test_no_weight_is_no_objective_bit_for_bit(tmp_path: Path) -> None:
    equal(train(tmp_path, None), train(tmp_path, students.objective(weight=0.0)))


def test_the_match_is_in_the_loss(tmp_path: Path) -> None:
    plain, taught = train(tmp_path, None), train(tmp_path, students.objective())
    with pytest.raises(AssertionError):
        equal(plain, taught)


def llama() -> tf.LlamaForCausalLM:
    tf.set_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=50, **size))


@pytest.mark.parametrize(
    ("make", "layer"),
    [(lambda: students.student(dropout=0.0), students.LAYER), (llama, "model.layers[0]")],
    ids=["mean loss", "loss by items"],
)
def test_accumulation_does_not_change_the_share_of_the_match(tmp_path: Path, make: Any, layer: str) -> None:
    """Each forward sees all of the probe set, so that 1 batch of 16 and 4 of 4 have the same gradient."""
    data = students.rows()
    if layer != students.LAYER:
        data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in data]

    def run(accumulate: int, weight: float = 3.0) -> Any:
        objective = students.objective(batch_size=students.COUNT, weight=weight, layer=layer)
        return train(
            tmp_path, objective, make(), data, per_device_train_batch_size=16 // accumulate, optim="sgd",
            learning_rate=0.1, gradient_accumulation_steps=accumulate, max_steps=1,
        )  # fmt: skip

    def share(accumulate: int) -> torch.Tensor:
        """What the match adds to the first update; the Trainer's own sum over batches depends on the model's loss."""
        taught, plain = (weights(run(accumulate, weight)) for weight in (3.0, 0.0))
        return torch.cat([(taught[name] - plain[name]).flatten() for name in taught])

    whole, parts = share(1), share(4)
    assert float(whole.norm()) > 1e-2
    assert float((whole - parts).norm()) < 1e-3 * float(whole.norm())


def test_heads_are_trained_and_come_back_with_a_checkpoint(tmp_path: Path) -> None:
    def objective() -> ra.JointObjective:
        return students.objective(ra.FeatureMatch(students.teachers(), [f"s{i}" for i in range(students.COUNT)]))

    whole = train(tmp_path / "a", objective(), save_strategy="steps", save_steps=5)
    before = objective().prepare(students.student(dropout=0.0)).match.heads[0].weight
    assert not torch.equal(whole.objective.match.heads[0].weight.cpu(), before)
    rest = train(tmp_path / "b", objective(), resume=str(tmp_path / "a/checkpoint-5"))
    equal(whole, rest)
    torch.testing.assert_close(
        rest.objective.match.heads[0].weight, whole.objective.match.heads[0].weight, rtol=0, atol=0
    )


def test_a_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", students.objective(), save_strategy="steps", save_steps=5)
    rest = train(tmp_path / "b", students.objective(seed=9), resume=str(tmp_path / "a/checkpoint-5"))
    equal(whole, rest)
    torch.testing.assert_close(rest.objective.match.bank, whole.objective.match.bank, rtol=0, atol=0)


def test_the_numbers_are_logged_with_the_loss(tmp_path: Path) -> None:
    trainer = train(tmp_path, students.objective(weight=0.5), logging_strategy="steps", logging_steps=2)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 5
    assert all(entry["match_weight"] == 0.5 and 0 < entry["match"] < 5 for entry in logs)
    assert all(entry["gradient_ratio"] > 0 for entry in logs)


def test_a_sample_index_passes_the_removal_of_columns(tmp_path: Path) -> None:
    columns = {name: value.tolist() for name, value in students.inputs().items()}
    columns |= {"labels": [i % 4 for i in range(students.COUNT)], "note": ["x"] * students.COUNT}
    index = [i if i % 2 else -1 for i in range(students.COUNT)]
    data = datasets.Dataset.from_dict(columns | {"sample_index": index})
    joint = students.objective(probe_set=None)
    trainer = train(tmp_path, joint, data=data)
    assert joint.match.seen.nonzero()[:, 0].tolist() == list(range(1, students.COUNT, 2))
    assert trainer.state.global_step == 10
    with pytest.raises(ValueError, match="'sample_index' in the task's batch"):
        train(tmp_path, students.objective(probe_set=None), data=datasets.Dataset.from_dict(columns))


def test_evaluation_is_of_the_task_alone(tmp_path: Path) -> None:
    trainer = train(tmp_path, students.objective(), max_steps=1)
    bank = trainer.objective.match.bank.clone()
    found = trainer.evaluate(students.rows())
    plain = tf.Trainer(model=trainer.model, args=arguments(tmp_path)).evaluate(students.rows())
    assert found["eval_loss"] == pytest.approx(plain["eval_loss"])
    torch.testing.assert_close(trainer.objective.match.bank, bank)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
def test_adapters_are_students(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS")
    model = peft.get_peft_model(students.student(dropout=0.0), config)
    trainer = train(tmp_path, students.objective(), model, max_steps=3)
    assert trainer.state.global_step == 3


def test_the_distance_is_in_the_trainers_history(tmp_path: Path) -> None:
    target, layer = students.target(), "bert.encoder.layer.1"
    audit = ra.AuditTrainerCallback(
        tmp_path / "s.zarr", "student", students.probe_set(), [layer], ra.AuditTrigger(every_n_steps=5),
        metrics=target.metrics(layer, "distance"),
    )  # fmt: skip
    trainer = AlignedTrainer(
        students.student(), arguments(tmp_path), train_dataset=students.rows(), callbacks=[audit],
        objective=students.objective(),
    )  # fmt: skip
    trainer.train()
    found = [(entry["step"], entry["distance"]) for entry in trainer.state.log_history if "distance" in entry]
    assert [step for step, _ in found] == [5, 10]
    assert all(0 < value < 2 for _, value in found)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning")
def test_a_checkpoint_that_has_no_gradient_of_a_part_does_not_stop_the_run(tmp_path: Path) -> None:
    trainer = train(
        tmp_path, students.objective(), logging_strategy="steps", logging_steps=2,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True},
    )  # fmt: skip
    logged = [entry for entry in trainer.state.log_history if "match" in entry]
    assert logged
    assert not any("gradient_ratio" in entry for entry in logged)


def test_predictions_are_made_without_places_of_samples(tmp_path: Path) -> None:
    class Strict(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = students.student(dropout=0.0)

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> Any:
            return self.bert(input_ids, attention_mask, labels=labels)

    places = [{**row, "sample_index": i} for i, row in enumerate(students.rows())]
    objective = ra.JointObjective(ra.OperatorMatch(students.target()), layer="bert.bert.encoder.layer[-1]")
    trainer = train(tmp_path, objective, model=Strict(), data=places, num_train_epochs=1)
    without = [{name: value for name, value in row.items() if name != "labels"} for row in places]
    assert len(trainer.predict(without).predictions) == len(places)
