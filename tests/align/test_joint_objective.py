"""The joint objective: whose features it matches, its own draws, and that it leaves the task alone."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.align.held_frame import HeldFrame
from repaudit.align.joint_objective import Schedule
from repaudit.align.probe_batches import ProbeBatches
from repaudit.errors import AlignmentWarning, CaptureError, FingerprintError, LayerPathError

sys.path.insert(0, str(Path(__file__).parent))

import students


def test_features_are_those_of_an_audit_and_carry_a_slope() -> None:
    model, objective = students.student(dropout=0.0).train(), students.objective(batch_size=students.COUNT)
    seen = []
    objective.match.register_forward_pre_hook(lambda _, args: seen.append(args))
    state = torch.get_rng_state()
    objective.joined(model, 0, lambda: None)[1].backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    (features, index) = seen[0]
    expected = ra.ActivationExtractor(students.LAYER).extract(model, students.probe_set())["bert.encoder.layer.1"]
    np.testing.assert_allclose(features.detach(), expected[index], rtol=1e-4, atol=1e-5)
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
    assert model.classifier.weight.grad is None  # the forward ends at the layer
    assert not model._forward_hooks


def test_dropout_is_the_objectives_own_and_frozen_parts_stay_frozen() -> None:
    found = []
    for training in (True, True, False):
        model = students.student(dropout=0.3).train(training)
        objective = students.objective(batch_size=students.COUNT)
        objective.match.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
        torch.manual_seed(len(found))
        state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the model's
        objective.joined(model, 0, lambda: None)
        objective.joined(model, 0, lambda: None)
        assert torch.equal(torch.get_rng_state(), state)
        np.testing.assert_array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
        assert all(module.training == training for module in model.modules())
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)  # whatever the task has drawn
    # each draw is of the whole set, in another order
    spread = [float((one.sort(0).values - two.sort(0).values).abs().max()) for one, two in (found[:2], found[4:])]
    assert spread[0] > 1e-2
    assert spread[1] < 1e-4


def test_draws_see_every_sample_once_and_are_their_own() -> None:
    batches = ProbeBatches(10, 4, seed=0)
    drawn = torch.cat([batches.draw() for _ in range(5)])
    assert sorted(drawn[:10].tolist()) == list(range(10))
    assert all(len(set(batch.tolist())) == 4 for batch in drawn.split(4))
    state = batches.state_dict()
    ahead = [batches.draw().tolist() for _ in range(4)]
    other = ProbeBatches(10, 4, seed=7)
    other.load_state_dict(state)
    assert [other.draw().tolist() for _ in range(4)] == ahead
    assert sorted(ProbeBatches(3, 8, 0).draw().tolist()) == [0, 1, 2]


def test_one_forward_serves_both_where_the_batch_names_its_samples() -> None:
    model = students.student(dropout=0.0).train()
    alone = students.objective(batch_size=students.COUNT)
    joint = students.objective(probe_set=None)
    inputs = students.inputs()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    _, apart = alone.joined(model, 0, lambda: None)
    result, together = joint.joined(model, 0, lambda: model(**inputs).logits, torch.arange(students.COUNT))
    assert float(together.detach()) == pytest.approx(float(apart.detach()), rel=1e-5)
    assert result.shape == (students.COUNT, 4)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="'sample_index' in the task's batch"):
        joint.joined(model, 0, lambda: None)


def test_a_weight_of_nothing_does_nothing() -> None:
    objective = students.objective(weight=0.0)
    before = copy.deepcopy(objective.state_dict())
    assert objective.joined(nn.Linear(1, 1), 0, lambda: "done") == ("done", None)
    torch.testing.assert_close(objective.state_dict()["match.bank"], before["match.bank"])
    stopped = students.objective(schedule=Schedule(warmup=2, stop=3))
    weights = [stopped.weight_at(step) for step in range(4)]
    assert weights == [0.5, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="0 or more"):
        students.objective(weight=-1.0)


def test_the_weight_is_in_the_loss_and_in_the_numbers() -> None:
    model = students.student()
    one, two = (students.objective(weight=weight).joined(model, 0, lambda: None)[1] for weight in (1.0, 2.0))
    assert float(two.detach()) == pytest.approx(2 * float(one.detach()))
    objective = students.objective(weight=2.0)
    _, match = objective.joined(model, 0, lambda: None)
    assert objective.metrics == {"match": pytest.approx(float(match.detach()) / 2), "match_weight": 2.0}
    task = model(**students.inputs(), labels=torch.zeros(students.COUNT, dtype=torch.int64)).loss
    parameters = list(model.parameters())
    objective.note_gradients(task, match, parameters)
    norms = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True)
                if g is not None
            ]
        ).norm()
        for x in (match, task)
    ]
    assert objective.metrics["gradient_ratio"] == pytest.approx(float(norms[0] / norms[1]), rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ra.CoordinateMatch(students.target(), k=3),
        lambda: ra.FeatureMatch(students.teachers(), [f"s{i}" for i in range(students.COUNT)]),
    ],
)
def test_heads_take_the_width_of_the_student_without_touching_the_randomness(make: object) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        objective = students.objective(make()).prepare(students.student())
        torch.manual_seed(seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(torch.cat([p.detach().flatten() for p in objective.match.parameters()]))
        _, match = objective.joined(students.student(), 0, lambda: None)
        assert 0.3 < float(match.detach()) < 3
    torch.testing.assert_close(found[0], found[1])  # the objective's own seed
    with pytest.raises(ValueError, match="known width"):
        students.objective(make(), probe_set=None).prepare(students.student())


def test_feature_match_is_the_mean_cosine_with_centred_teachers() -> None:
    teachers = students.teachers()
    match = ra.FeatureMatch(teachers, heads={name: nn.Linear(5, value.shape[1]) for name, value in teachers.items()})
    features = torch.randn(students.COUNT, 5)
    places = torch.tensor([3, 8, 30])
    expected = []
    for (_, value), head in zip(teachers.items(), match.heads, strict=True):
        a, b = head(features[:3]).detach().numpy(), (value - value.mean(0))[places].numpy()
        expected.append(1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert float(match(features[:3], places).detach()) == pytest.approx(np.mean(expected), rel=1e-5)


def test_coordinate_match_is_one_minus_r_squared_of_its_head() -> None:
    target = students.target()
    match = ra.CoordinateMatch(target, k=3, head=nn.Identity(), t=1)
    wanted = target.coordinates(3, t=1)
    standard = (wanted - wanted.mean(0)) / wanted.std(0)
    assert float(match(torch.from_numpy(standard), torch.arange(students.COUNT))) < 1e-12
    assert float(match(torch.zeros(students.COUNT, 3), torch.arange(students.COUNT))) == pytest.approx(1)
    with pytest.raises(ValueError, match="head: expected coordinates"):
        match(torch.zeros(4, 2), torch.arange(4))


def test_what_is_wrong_is_told_before_the_first_step() -> None:
    with pytest.raises(LayerPathError, match="no_such"):
        students.objective(layer="no_such").prepare(students.student())
    with pytest.raises(CaptureError, match="expected one layer of the student, found 2"):
        students.objective(layer="bert.encoder.layer[*]").prepare(students.student())
    with pytest.raises(ValueError, match="reduce='all'"):
        students.objective(layer=ra.LayerSpec("bert", reduce="all"))
    with pytest.raises(FingerprintError, match="'s0'"):
        students.objective(probe_set=ra.ProbeSet.from_tensors(students.inputs()))


def test_the_bank_of_an_objective_goes_on_where_it_was() -> None:
    model = students.student(dropout=0.0)
    first, second = students.objective(), students.objective(seed=5)
    for _ in range(3):
        first.joined(model, 0, lambda: None)
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        values = [float(one.joined(model, 0, lambda: None)[1].detach()) for one in (first, second)]
        assert values[0] == values[1]


Features = tuple[float, torch.Tensor, ra.JointObjective]


def classifier(weight: float, steps: int = 1000, rows: str = "full") -> Features:
    """Train a small BERT to tell classes, and to a geometry that has nothing to do with them."""
    inputs, labels = students.inputs(), torch.arange(students.COUNT) % 4
    model = students.student(dropout=0.0)
    objective = students.objective(ra.OperatorMatch(students.target(10), rows=rows), weight=weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        task, match = objective.joined(model, step, lambda: model(**inputs, labels=labels).loss)
        (task if match is None else task + match).backward()
        optimizer.step()
    return float(task.detach()), objective.student.features(model, inputs).detach().double(), objective


def language_model(
    weight: float, steps: int = 60, rows: str = "minibatch", name: str = "Llama", hold: float = 0.0
) -> Features:
    """Train a language model from scratch; return its task's loss, and its features."""
    import transformers as tf

    generator = torch.Generator().manual_seed(0)
    first, pace = (torch.randint(*one, (96, 1), generator=generator) for one in ((0, 63), (1, 5)))
    inputs = (first + torch.arange(12) * pace) % 63 + 1
    teacher = nn.functional.one_hot(inputs, 64).float().sum(1) @ torch.randn(64, 8, generator=generator)
    target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(perplexity=24)(teacher))
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name == "Llama":
        model, layer = tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, intermediate_size=64)), "model.layers[-1]"
    else:
        still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        model, layer = tf.GPT2LMHeadModel(tf.GPT2Config(**sizes, n_positions=16, **still)), "transformer.h[-1]"
    objective = ra.JointObjective(
        ra.OperatorMatch(target, rows=rows), weight, layer=layer, batch_size=64,
        probe_set=ra.ProbeSet.from_tensors({"input_ids": inputs}), hold=hold,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = inputs[torch.randint(0, 96, (16,), generator=generator)]
        task, match = objective.joined(model, step, lambda batch=batch: model(input_ids=batch, labels=batch).loss)
        (task if match is None else task + match).backward()
        optimizer.step()
        optimizer.zero_grad()
    features = objective.student.features(model, {"input_ids": inputs}).detach().double()
    with torch.no_grad():
        loss = model(input_ids=inputs, labels=inputs).loss.item()
    return loss, features, objective


def sizes(features: torch.Tensor) -> np.ndarray:
    """Return how long features are, and how far they are from their mean."""
    return np.array([float(rows.square().sum(1).mean().sqrt()) for rows in (features, features - features.mean(0))])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "weight"),
    [
        (classifier, 0.3),
        (classifier, 1.0),
        (partial(language_model, steps=1000), 0.05),
        (partial(language_model, steps=1000, rows="full"), 0.05),
    ],
    ids=["classifier, little", "classifier", "language", "language, bank"],
)
def test_features_neither_shrink_nor_grow_over_a_thousand_steps(
    train: Callable[[float], Features], weight: float
) -> None:
    (_, control, _), (_, taught, objective) = train(0.0), train(weight)
    ratio = sizes(taught)[0] / sizes(control)[0]
    assert 0.5 < ratio < 2
    assert objective.metrics["match"] < 1


@pytest.mark.parametrize(("name", "hold"), [("Llama", 0.0), ("Llama", 1.0), ("GPT2", 0.0)])
def test_a_language_model_whose_stream_has_no_norm_learns_its_task_beside_the_match(name: str, hold: float) -> None:
    (alone, control, _), (beside, taught, objective) = (
        language_model(weight, name=name, hold=hold) for weight in (0.0, 0.1)
    )
    assert beside < 1.1 * alone
    assert (sizes(taught) / sizes(control) < 2).all()
    assert objective.metrics["match"] < 0.5


def test_features_that_leave_together_are_told_once() -> None:
    objective, features = students.objective(), torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    rows, task = torch.arange(16), torch.zeros(())
    for way in [0.0, *[50.0] * 9, 5.0, *[50.0] * 9]:  # never ten in a row
        objective(task, features + way, rows)
    later = students.objective()
    later.load_state_dict(objective.state_dict())
    for _ in range(9):
        later(task, features + 50, rows)
    with pytest.warns(AlignmentWarning, match=r"moved or grown together by \d+ of their deviations.*hold=1"):
        later(task, features + 50, rows)
    later(task, features + 50, rows)
    held = students.objective(hold=1.0)
    for way in [0.0, *[50.0] * 12]:
        held(task, features + way, rows)


def test_batches_of_one_class_each_are_not_taken_for_a_movement() -> None:
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    features[20:] += 40
    objective = students.objective()
    with warnings.catch_warnings(record=True) as told:
        for _ in range(20):
            for rows in torch.arange(40).split(10):
                objective(torch.zeros(()), features[rows], rows)
    assert not told


@pytest.mark.parametrize("share", [-1.0, float("nan"), float("inf")])
def test_a_schedule_that_would_undo_the_match_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"schedule: expected a share of the weight, 0 or more, found .* at step 3"):
        students.objective(schedule=lambda step: share).joined(students.student(), 3, lambda: None)


def test_a_part_of_a_sample_as_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size: expected a whole number, at least 1, found 2\.5"):
        students.objective(batch_size=2.5)


def test_a_held_frame_costs_nothing_at_first_and_goes_on_where_it_was() -> None:
    _, match = students.objective(hold=1.0).joined(students.student(dropout=0.0), 0, lambda: None)
    _, bare = students.objective().joined(students.student(dropout=0.0), 0, lambda: None)
    assert torch.equal(match, bare)
    one, model = students.objective(hold=1.0), students.student(dropout=0.0)
    for step in range(3):
        one.joined(model, step, lambda: None)
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.add_(0.1)
    two = students.objective(hold=1.0)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    costs = [objective.joined(model, 3, lambda: None)[1].item() for objective in (one, two)]
    assert costs[0] == costs[1]
    assert costs[0] > one.weight * one.metrics["match"]


def test_the_cost_of_a_frame_that_moves() -> None:
    frame, generator = HeldFrame(), torch.Generator().manual_seed(0)
    features = torch.randn(50, 3, generator=generator).double()
    deviation = float((features - features.mean(0)).square().sum(1).mean().sqrt())
    assert float(frame(features)) == 0
    way = torch.tensor([0.3, -0.4, 1.2]).double()
    assert float(frame(features + way)) == pytest.approx(float(way.square().sum()) / deviation**2)
    centre = features.mean(0)
    assert float(frame(centre + (features - centre) * 5)) == pytest.approx(np.log(5) ** 2)
    assert float(frame(torch.ones(4, 3).double())) == 0
    assert float(frame(features[:0])) == 0
    moved = (features + way).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: frame(x) * 1.0, (centre + (features - centre) * 2).requires_grad_())
    frame(moved).backward()
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad.sum(0), 2 * way / deviation**2)  # all are pulled back alike


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_an_impossible_hold_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="hold: expected a number, 0 or more"):
        students.objective(hold=wrong)


def test_arguments_in_the_wrong_places_are_told_when_they_are_given() -> None:
    target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(perplexity=3)(torch.randn(20, 4)))
    with pytest.raises(
        TypeError, match=r"match: expected one such as OperatorMatch\(target\), found an? AlignmentTarget"
    ):
        ra.JointObjective(target)  # type: ignore[arg-type]
    objective = ra.JointObjective(ra.OperatorMatch(target), layer="0")
    with pytest.raises(TypeError, match="objective: expected a JointObjective behind the student, found a Linear"):
        ra.AlignedFineTuning(objective, nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"objective: expected a JointObjective\(match, ...\), found OperatorMatch"):
        ra.AlignmentCallback(objective.match)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed='a': expected an integer, found a str"):
        students.objective(seed="a")
    with pytest.raises(TypeError, match="model: expected a torch module, found int: the model comes first, joined"):
        objective.joined(0, nn.Linear(2, 2), lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["1", True, None, complex(1)])
def test_a_weight_is_a_number(wrong: object) -> None:
    with pytest.raises(ValueError, match="weight: expected a number, 0 or more, found"):
        students.objective(weight=wrong)
    assert students.objective(weight=np.float32(0.5)).weight == 0.5


@pytest.mark.parametrize("match", [ra.OperatorMatch, ra.CoordinateMatch])
@pytest.mark.parametrize("wrong", ["store.analysis/results.zarr", None, torch.eye(3)])
def test_a_match_needs_a_target(match: type, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"target: expected an AlignmentTarget \(from_results\), found"):
        match(wrong)
    with pytest.raises(TypeError, match="probe_set: expected a ProbeSet of the student, found Tensor"):
        students.objective(probe_set=torch.eye(3))


@pytest.mark.parametrize("wrong", ["cosine", 10, [0.0, 1.0]])
def test_a_schedule_is_a_function(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"schedule: expected a function of the step such as Schedule\(warmup=9\)"):
        students.objective(schedule=wrong)


def test_an_objective_that_taught_another_student_says_what_goes_on() -> None:
    first, second, objective = students.student(), students.student(), students.objective()
    objective.prepare(first)
    objective.prepare(second)  # nothing was drawn yet
    objective.joined(second, 0, lambda: torch.tensor(0.0))
    objective.prepare(second)
    copied = copy.deepcopy(objective)
    copied.prepare(first)  # a copy has taught nobody
    with pytest.warns(AlignmentWarning, match="has taught another model, and its draws, heads and frame go on"):
        objective.prepare(first)
    objective.joined(first, 0, lambda: torch.tensor(0.0))
    with pytest.warns(AlignmentWarning, match="make one for each"):
        objective.joined(second, 1, lambda: torch.tensor(0.0))  # in a loop of one's own
    objective.joined(second, 2, lambda: torch.tensor(0.0))
    idle = students.objective(weight=0.0)
    for student in (first, second):  # which are not taught
        idle.prepare(student)
        idle.joined(student, 0, lambda: torch.tensor(0.0))


@pytest.mark.parametrize("wrong", [{"warmup": -4}, {"stop": 1.5}, {"warmup": True}])
def test_a_schedule_has_numbers_of_steps(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected a number of steps, 0 or more"):
        Schedule(**wrong)  # type: ignore[arg-type]
