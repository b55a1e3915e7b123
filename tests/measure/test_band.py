"""Bands over whole curves: few false verdicts where nothing changes, and changes that are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import repaudit as ra
from repaudit.measure.band import band
from repaudit.measure.phases import verdict
from repaudit.measure.spread import spread

SAMPLES, FEATURES = 128, 8


def curve(seed, models, steps, kind):
    """Spreads of models that share a cloud: a model's own part stays, or fades; that of a step is drawn anew."""
    rng = np.random.default_rng(seed)
    base, own = rng.normal(size=(SAMPLES, FEATURES)), rng.normal(size=(models, SAMPLES, FEATURES))
    gauge = ra.DiffusionGauge()
    found = []
    for step in range(steps):
        share = 0.6 if kind == "null" else 1.2 - 0.9 * step / (steps - 1)
        clouds = [base + share * own[k] + 0.3 * rng.normal(size=base.shape) for k in range(models)]
        found.append(spread([gauge(cloud) for cloud in clouds]))
    return found


def judged(spreads):
    left_out = np.array([one.left_out for one in spreads])
    margins = band(np.array([one.halves for one in spreads]), left_out if left_out.shape[1] > 2 else None)
    values = [one.value for one in spreads]
    return verdict(range(len(values)), values, [s.low for s in spreads], [s.high for s in spreads], margins.change)


@pytest.mark.parametrize(("models", "steps", "curves"), [(2, 5, 12), (3, 5, 8)])
def test_null_curves_are_hardly_ever_said_to_change(models, steps, curves):
    found = [judged(curve(seed, models, steps, "null")) for seed in range(curves)]
    assert sum(one in ("converging", "diverging") for one in found) <= 1


@pytest.mark.parametrize(("models", "steps", "curves"), [(2, 5, 4), (3, 5, 3)])
def test_planted_convergence_is_found(models, steps, curves):
    assert {judged(curve(seed, models, steps, "convergence")) for seed in range(curves)} == {"converging"}


MANY = [(2, 5, 1000), (3, 5, 1000), (8, 5, 150), (2, 20, 300), (3, 20, 200), (2, 100, 60)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("models", "steps", "curves"), MANY)
def test_the_rate_of_false_verdicts_is_at_most_five_per_cent(models, steps, curves):
    found = [judged(curve(seed, models, steps, "null")) for seed in range(curves)]
    false = sum(one in ("converging", "diverging") for one in found)
    assert false <= 0.05 * curves + 2 * (0.05 * 0.95 * curves) ** 0.5


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("models", "steps", "curves"), MANY)
def test_planted_convergences_are_found_nearly_always(models, steps, curves):
    found = [judged(curve(seed, models, steps, "convergence")) for seed in range(curves)]
    assert sum(one == "converging" for one in found) >= 0.98 * curves


def test_what_the_steps_share_cancels_in_a_difference():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=400), rng.normal(size=(6, 400))
    apart, together = band(own), band(shared + 0.01 * own)
    assert together.change[0, 5] < 0.03 * apart.change[0, 5]
    assert together.level[0] == pytest.approx(apart.level[0], rel=0.3)
    assert (np.diag(apart.change) == 0).all()
    np.testing.assert_allclose(apart.change, apart.change.T)


def test_the_margin_grows_with_the_number_of_steps_but_less_than_bonferroni():
    own = np.random.default_rng(0).normal(size=(60, 400))
    few, many = band(own[:3]).change[0, 1], band(own).change[0, 1]
    bonferroni = stats.t.isf(0.025 / (60 * 59 / 2), 19) / stats.t.isf(0.025 / 3, 19)
    assert 1.2 < many / few < 1.01 * bonferroni


def test_models_widen_the_margin_and_a_constant_effect_of_theirs_does_not():
    halves = np.random.default_rng(0).normal(size=(5, 400)) * 1e-3
    effect = np.array([0.1, -0.05, -0.05])
    constant = band(halves, np.tile(effect, (5, 1)))
    moving = band(halves, np.random.default_rng(1).normal(size=(5, 3)) * 0.1)
    assert constant.change[0, 4] == pytest.approx(band(halves).change[0, 4], rel=1e-9)
    assert moving.change[0, 4] > 20 * constant.change[0, 4]


def test_models_that_lack_steps_are_not_paired():
    left_out = np.full((3, 4), np.nan)
    left_out[0, :3], left_out[1], left_out[2, :2] = (0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4), (0.5, 0.6)
    margins = band(np.zeros((3, 400)), left_out)
    assert np.isfinite(margins.change[0, 1])
    assert margins.change[0, 1] > 0.1
