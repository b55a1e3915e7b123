"""The match of operators: exact for a perfect student at every scale, blind to scale and rotation, with true slopes."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.align.losses import row_frobenius, row_hellinger, row_kl, span
from repaudit.align.rows import Geometry, log_rows, settle
from repaudit.errors import ActivationError, AlignmentWarning, OperatorError

N = 96
GAUGES = {
    "neighbourhoods": ra.DiffusionGauge(perplexity=8),
    "shape": ra.DiffusionGauge(perplexity=N / 4),
    "cosine": ra.DiffusionGauge(perplexity=8, metric="cosine"),
    "standardized": ra.DiffusionGauge(perplexity=8, standardize=True, alpha=0.5),
    "few": ra.DiffusionGauge(perplexity=8, neighbors=12),
    "knn": ra.DiffusionGauge(knn=7),
    "no_loops": ra.DiffusionGauge(knn=7, self_loops=False, alpha=0.0),
    "median": ra.DiffusionGauge(bandwidth="median"),
    "fixed": ra.DiffusionGauge(bandwidth=2.0),
}


def cloud(seed: int = 0, count: int = N, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator) @ torch.randn(4, width, generator=generator)


def target_of(gauge: ra.DiffusionGauge, points: torch.Tensor | None = None) -> ra.AlignmentTarget:
    return ra.AlignmentTarget.from_operator(gauge(cloud() if points is None else points), gauge=gauge)


def batches(size: int, count: int = N, seed: int = 3) -> list[torch.Tensor]:
    return list(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size))


@pytest.mark.parametrize("name", GAUGES)
def test_rows_are_those_of_the_gauge(name: str) -> None:
    gauge, points = GAUGES[name], cloud().double()
    geometry = Geometry.of(points, gauge)
    placed = geometry.place(points)
    carried = settle(placed, gauge, N)
    nothing = torch.zeros(N, N, dtype=torch.bool)
    rows = log_rows(placed, placed, torch.arange(N), carried, gauge, nothing).exp()
    np.testing.assert_allclose(rows, gauge(points).to_numpy(), atol=1e-9)
    some = torch.tensor([5, 80, 2])
    part = log_rows(placed[some], placed, some, carried, gauge, nothing[some]).exp()
    np.testing.assert_allclose(part, rows[some], atol=1e-12)


@pytest.mark.parametrize("loss", ["kl", "frobenius", "hellinger"])
@pytest.mark.parametrize("name", GAUGES)
def test_a_perfect_student_has_no_loss_and_no_slope(name: str, loss: str) -> None:
    gauge = GAUGES[name]
    match = ra.OperatorMatch(target_of(gauge), loss)
    student = cloud().clone().requires_grad_()
    assert float(match(student, torch.arange(N)).detach()) < 1e-6
    for batch in batches(16):
        student.grad = None
        found = match(student[batch], batch)
        found.backward()
        assert float(found.detach()) < 1e-6
        assert float(student.grad.norm()) < 1e-4
    other = float(match(cloud(1), torch.arange(N)))
    assert other > 0.2


def test_uniform_rows_have_a_loss_of_one() -> None:
    target = torch.from_numpy(target_of(GAUGES["shape"]).matrix.toarray())
    for loss, function in (("kl", row_kl), ("frobenius", row_frobenius), ("hellinger", row_hellinger)):
        assert float(function(torch.full((N, N), -math.log(N)).double(), target)) == pytest.approx(span(loss, target))
    assert span("kl", target) == pytest.approx(target_of(GAUGES["shape"]).information)
    with pytest.raises(ValueError, match="rows are uniform"):
        span("kl", torch.full((4, 4), 0.25))


def test_the_divergence_is_scipys() -> None:
    from scipy.special import rel_entr

    rng = np.random.default_rng(0)
    target, found = rng.dirichlet(np.ones(12), (2, 7))
    target[:, :3] = 0
    target /= target.sum(1, keepdims=True)
    expected = rel_entr(target, found).sum(1).mean()
    assert float(row_kl(torch.from_numpy(found).log(), torch.from_numpy(target))) == pytest.approx(expected)


@pytest.mark.parametrize("rows", ["full", "minibatch"])
@pytest.mark.parametrize("name", ["neighbourhoods", "shape", "cosine", "knn", "median"])
@pytest.mark.filterwarnings("ignore::repaudit.errors.AlignmentWarning")
def test_slopes_are_those_of_differences(name: str, rows: str) -> None:
    """With the scales held, as the slope has it: the bank is asked for its scales once."""
    gauge = GAUGES[name]
    match = ra.OperatorMatch(target_of(gauge), rows=rows, refresh=10**6)
    start = cloud(1).double()
    if rows == "full":
        match(start, torch.arange(N))
        batch = torch.arange(20)
        kept = {key: buffer.clone() for key, buffer in match.named_buffers()}

        def loss(x: torch.Tensor) -> torch.Tensor:
            for key, buffer in kept.items():
                setattr(match, key, buffer.clone())
            return match(x, batch)

        assert torch.autograd.gradcheck(loss, start[batch].clone().requires_grad_(), atol=1e-6, rtol=1e-4)
        return
    points = start[:20].clone().requires_grad_()
    match(points, torch.arange(20)).backward()
    assert float((points.grad * points.detach()).sum().abs()) < 1e-6 * float(points.grad.norm() * start.norm())


@pytest.mark.parametrize("rows", ["full", "minibatch"])
@pytest.mark.parametrize("name", ["neighbourhoods", "shape", "cosine", "knn", "median", "standardized"])
@pytest.mark.filterwarnings("ignore::repaudit.errors.AlignmentWarning")
def test_scale_and_rotation_do_not_matter(name: str, rows: str) -> None:
    gauge = GAUGES[name]
    turn = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(5)).double())[0]
    turn = torch.eye(10).double() if gauge.standardize else turn
    found, slopes = [], []
    for change in (lambda x: x, lambda x: 7 * x @ turn):
        match = ra.OperatorMatch(target_of(gauge), rows=rows)
        for batch in batches(32):
            points = change(cloud(1).double())[batch].requires_grad_()
            value = match(points, batch)
            value.backward()
            radial = float((points.grad * points.detach()).sum() / points.detach().norm() / points.grad.norm())
            slopes.append(abs(radial))
            found.append(float(value.detach()))
    first, second = np.split(np.array(found), 2)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert max(slopes) < 1e-6


def test_features_that_grow_between_two_visits_are_the_same_geometry() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["neighbourhoods"]))
    match(cloud(), torch.arange(N))
    for size, batch in zip((2.0, 5.0, 0.1), batches(32), strict=True):
        assert float(match(size * cloud()[batch], batch)) < 1e-6


@pytest.mark.parametrize("name", ["neighbourhoods", "shape", "knn", "median", "standardized"])
@pytest.mark.filterwarnings("ignore::repaudit.errors.AlignmentWarning")
def test_wherever_features_lie_together_nothing_moves_or_scales_all_of_a_batch(name: str) -> None:
    match = ra.OperatorMatch(target_of(GAUGES[name]), rows="minibatch")
    for batch in batches(32):
        points = (cloud(1).double()[batch] + 30).requires_grad_()
        match(points, batch).backward()
        slope, away = points.grad, points.detach() - points.detach().mean(0)
        assert float(slope.sum(0).norm()) < 1e-6 * float(slope.norm())
        assert abs(float((slope * away).sum())) < 1e-6 * float(slope.norm() * away.norm())


def test_a_batch_that_spreads_is_told_from_one_that_lies_elsewhere() -> None:
    """The size of features is that of their way from their mean, however far that is from zero."""
    far = cloud().double() + 300
    match = ra.OperatorMatch(target_of(GAUGES["shape"], cloud()))
    match(far, torch.arange(N))
    batch = batches(32)[0]
    mean = far[batch].mean(0)
    points = (mean + 3 * (far[batch] - mean)).requires_grad_()
    match(points, batch)
    spread = (match.bank[batch] - match.bank[batch].mean(0)).norm() / (far[batch] - mean).norm()
    assert float(spread) == pytest.approx(1.0)


@pytest.mark.parametrize("places", [[5], [5, 5], [5, -1, -1], [5, 6, 7]])
@pytest.mark.parametrize("name", ["neighbourhoods", "knn", "median", "standardized", "cosine"])
def test_a_batch_that_tells_no_size_has_a_finite_slope(name: str, places: list[int]) -> None:
    match = ra.OperatorMatch(target_of(GAUGES[name]))
    match(cloud(1), torch.arange(N))
    points = cloud(2)[:1].repeat(len(places), 1).requires_grad_()
    match(points, torch.tensor(places)).backward()
    assert bool(torch.isfinite(points.grad).all())


def test_batches_of_one_sample_teach() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["shape"]))
    match(cloud(1), torch.arange(N))
    points = cloud(1)[:1].requires_grad_()
    match(points, torch.tensor([0])).backward()
    assert float(points.grad.norm()) > 1e-6


def test_a_bank_heals_whatever_it_was_filled_with() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["shape"]))
    for turn in range(30):
        values = [float(match((cloud(1) if turn == 0 else cloud())[batch], batch)) for batch in batches(32, seed=turn)]
    assert max(values) < 1e-3


@pytest.mark.parametrize("name", ["neighbourhoods", "shape"])
def test_a_student_is_drawn_to_the_target_from_anywhere(name: str) -> None:
    """Also where its neighbours are others: the target has entries where its own operator has none."""
    target = target_of(GAUGES[name])
    match, student = ra.OperatorMatch(target), nn.Parameter(cloud(2))
    optimizer = torch.optim.Adam([student], lr=0.05)
    before, size = target.distance(student.detach()), float(student.detach().norm())
    for turn in range(60):
        for batch in batches(24, seed=turn):
            optimizer.zero_grad()
            match(student[batch], batch).backward()
            optimizer.step()
    assert target.distance(student.detach()) < 0.3 * before
    assert 0.5 < float(student.detach().norm()) / size < 2


def test_a_bank_is_filled_by_and_by() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["shape"]))
    values = [float(match(cloud()[batch], batch)) for batch in batches(24)]
    assert values[0] < 0.2
    assert values[-1] < 1e-6
    assert float(match(cloud()[:1], torch.tensor([0]))) < 1e-6


def test_what_is_not_in_the_target_and_what_comes_twice_is_left_out() -> None:
    gauge = GAUGES["neighbourhoods"]
    plain, mixed = (ra.OperatorMatch(target_of(gauge)) for _ in range(2))
    for match in (plain, mixed):
        match(cloud(1), torch.arange(N))
    index = torch.tensor([4, -1, 9, 4])
    points = cloud(2)[:4].clone().requires_grad_()
    found = mixed(points, index)
    assert float(found.detach()) == pytest.approx(float(plain(cloud(2)[[0, 2]], torch.tensor([4, 9]))))
    found.backward()
    assert not points.grad[[1, 3]].any()
    nothing = mixed(points, torch.full((4,), -1))
    assert float(nothing.detach()) == 0.0
    nothing.backward()


def test_features_that_are_not_finite_give_no_number_and_leave_the_bank() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["shape"]))
    match(cloud(), torch.arange(N))
    bank, broken = match.bank.clone(), cloud()[:8].clone()
    broken[3, 2] = math.inf
    assert math.isnan(float(match(broken, torch.arange(8))))
    torch.testing.assert_close(match.bank, bank)


@pytest.mark.parametrize("same", [slice(None), slice(0, 40)])
def test_collapsed_students_have_a_finite_loss(same: slice) -> None:
    match = ra.OperatorMatch(target_of(GAUGES["neighbourhoods"]))
    points = cloud(1).clone()
    points[same] = points[0]
    points.requires_grad_()
    found = match(points, torch.arange(N))
    found.backward()
    assert math.isfinite(float(found.detach()))
    assert torch.isfinite(points.grad).all()


def test_batches_that_are_too_small_for_the_scale_are_told_once() -> None:
    gauge = ra.DiffusionGauge()
    points = cloud(0, 288)
    match = ra.OperatorMatch(target_of(gauge, points), rows="minibatch")
    with pytest.warns(AlignmentWarning, match=r"a batch of 64 has 3.3 of the 15 neighbours"):
        match(points[:64], torch.arange(64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match(points[:64], torch.arange(64))
        ra.OperatorMatch(target_of(GAUGES["shape"]), rows="minibatch")(cloud()[:64], torch.arange(64))


@pytest.mark.parametrize(("size", "most"), [(64, 0.09), (128, 0.035)])
def test_the_bias_of_minibatches_at_the_wide_scale(size: int, most: float) -> None:
    points = torch.randn(288, 12, generator=torch.Generator().manual_seed(0))
    match = ra.OperatorMatch(target_of(ra.DiffusionGauge(perplexity=72), points), rows="minibatch")
    left = [float(match(points[batch], batch)) for batch in batches(size, 288) if len(batch) == size]
    assert 0 < np.mean(left) < most


def test_a_state_goes_on_bit_for_bit_and_belongs_to_its_target() -> None:
    gauge = GAUGES["neighbourhoods"]
    first, second = (ra.OperatorMatch(target_of(gauge)) for _ in range(2))
    for batch in batches(16)[:4]:
        first(cloud(1)[batch], batch)
    second.load_state_dict(first.state_dict())
    for batch in batches(16):
        assert float(first(cloud(2)[batch], batch)) == float(second(cloud(2)[batch], batch))
    other = ra.OperatorMatch(target_of(gauge, cloud(7)))
    with pytest.raises(OperatorError, match="another operator"):
        other.load_state_dict(first.state_dict())


def test_the_precision_stays_where_a_model_is_cast() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["shape"]))
    match(cloud(), torch.arange(N))
    cast = nn.ModuleDict({"match": match}).to(torch.bfloat16)["match"]
    assert cast.bank.dtype == torch.float64
    points = cloud()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(cast(points, torch.arange(N))) < 1e-6


@pytest.mark.parametrize(
    ("gauge", "message"),
    [
        (ra.DiffusionGauge(kernel="alpha_decay"), "alpha_decay"),
        (ra.DiffusionGauge(knn=5, neighbors=20), "neighbors=20"),
        (ra.DiffusionGauge(knn=5, landmarks=30), "landmarks=30"),
    ],
)
def test_gauges_that_it_cannot_follow_are_refused(gauge: ra.DiffusionGauge, message: str) -> None:
    target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(knn=5)(cloud()), gauge=gauge)
    with pytest.raises(OperatorError, match=message):
        ra.OperatorMatch(target)


@pytest.mark.parametrize(
    ("features", "index", "message"),
    [
        (torch.zeros(3, 2, 2), torch.arange(3), "as many indices"),
        (torch.zeros(3, 2), torch.arange(2), "as many indices"),
        (torch.zeros(3, 2), torch.zeros(3), "whole numbers"),
        (torch.zeros(3, 2), torch.tensor([0, 1, N]), f"-1 to {N - 1}, found {N}"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -2]), "found -2"),
    ],
)
def test_batches_that_do_not_fit_are_told(features: torch.Tensor, index: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ra.OperatorMatch(target_of(GAUGES["shape"]))(features, index)
    with pytest.raises(ValueError, match="loss is one of"):
        ra.OperatorMatch(target_of(GAUGES["shape"]), "l2")
    with pytest.raises(ValueError, match="rows is"):
        ra.OperatorMatch(target_of(GAUGES["shape"]), rows="some")


@pytest.mark.parametrize("rows", ["full", "minibatch"])
@pytest.mark.filterwarnings("ignore::repaudit.errors.AlignmentWarning")
def test_a_layer_that_begins_at_zero_has_a_gradient(rows):
    points = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(perplexity=5)(points))
    features = torch.zeros(40, 4, requires_grad=True)
    ra.OperatorMatch(target, rows=rows)(features, torch.arange(40)).backward()
    assert torch.isfinite(features.grad).all()


def test_a_state_of_another_gauge_is_refused() -> None:
    operator = ra.DiffusionGauge(perplexity=10)(cloud())
    one, other = (
        ra.OperatorMatch(ra.AlignmentTarget.from_operator(operator, gauge=gauge))
        for gauge in (ra.DiffusionGauge(perplexity=10), ra.DiffusionGauge(knn=5))
    )
    one(cloud(), torch.arange(N))
    with pytest.raises(OperatorError, match=r"expected a state saved with .*knn=5.*found one of .*perplexity=10"):
        other.load_state_dict(one.state_dict())


def test_a_bandwidth_that_is_a_number_draws_features_to_its_size() -> None:
    gauge, points = ra.DiffusionGauge(bandwidth=1.0), cloud().double()
    match = ra.OperatorMatch(target_of(gauge), rows="minibatch")
    size = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    match(points * size, torch.arange(N)).backward()
    step = 1e-5
    up, down = (float(match(points * (1.5 + way), torch.arange(N))) for way in (step, -step))
    assert float(size.grad) == pytest.approx((up - down) / (2 * step), rel=0.2)
    assert float(size.grad) > 0.1


def test_a_row_without_a_direction_does_not_come_into_the_bank() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["cosine"]))
    batch = torch.arange(40, 60)
    points = cloud()[batch]
    points[3] = 0
    with pytest.raises(ActivationError, match="row 3 of the batch"):
        match(points, batch)
    assert torch.isfinite(match(cloud()[:30], torch.arange(30)))


def test_what_is_not_taught_may_be_anything() -> None:
    match = ra.OperatorMatch(target_of(GAUGES["shape"]))
    points = torch.full((4, 10), torch.nan, requires_grad=True)
    loss = match(points, torch.full((4,), -1))
    loss.backward()
    assert float(loss.detach()) == 0
