"""Spread of operators: closed cases, calibration, intervals."""

from __future__ import annotations

import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from repaudit.errors import OperatorError, OperatorWarning
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.distances import operator_distances
from repaudit.measure.null import null_squared_distance
from repaudit.measure.spread import jackknife_error, leave_one_out, spread, spread_of_pairs
from repaudit.measure.tally import Halves, Tallies, Tally
from repaudit.merge.merging import DiffusionMerging


def gauge(points: np.ndarray, knn: int = 10) -> np.ndarray:
    distance = squareform(pdist(points))
    scale = np.sort(distance, axis=1)[:, knn]
    kernel = np.exp(-(distance**2) / np.outer(scale, scale))
    return kernel / kernel.sum(1, keepdims=True)


def replicas(shared: float, models: int, seed: int, samples: int = 150, features: int = 12) -> dict[str, np.ndarray]:
    """Operators of models that see one common signal (share ``shared`` of the variance) and noise of their own."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((samples, features))
    operators = {}
    for k in range(models):
        own = rng.standard_normal((samples, features))
        rotation = np.linalg.qr(rng.standard_normal((features, features)))[0]
        operators[f"seed{k}"] = gauge((math.sqrt(shared) * common + math.sqrt(1 - shared) * own) @ rotation)
    return operators


def test_value_raw_and_null_are_their_definitions() -> None:
    operators = replicas(0.8, 3, seed=0)
    pairs = [("seed0", "seed1"), ("seed0", "seed2"), ("seed1", "seed2")]
    squares = [np.sum((operators[a] - operators[b]) ** 2) for a, b in pairs]
    nulls = [null_squared_distance(operators[a], operators[b]) for a, b in pairs]
    found = spread(operators)
    assert found.value == pytest.approx(np.mean(np.divide(squares, nulls)), rel=1e-10)
    assert found.raw == pytest.approx(np.mean(np.sqrt(squares)), rel=1e-10)
    assert found.null == pytest.approx(np.mean(nulls), rel=1e-10)
    assert found.n_models == 3


def test_operators_of_different_scales_are_told() -> None:
    """A merged operator at another scale, too; those of one gauge on different samples are not."""
    points = np.random.default_rng(0).standard_normal((60, 4))
    near, far = (DiffusionGauge(perplexity=u)(points) for u in (5, 15))
    other = DiffusionGauge(perplexity=5)(points[::-1].copy())
    merged = DiffusionMerging().merge({"a": near, "b": other})
    for mixed in ({"seed0": near, "seed1": far}, [merged, far]):
        with pytest.warns(OperatorWarning, match=r"perplexity 5 \(.*\) and 15 \("):
            spread(mixed)
    with pytest.warns(OperatorWarning, match=r"perplexity 5 \('a'\) and 15 \('b'\)"):
        DiffusionMerging().merge({"a": near, "b": far})
    spread([near, other, merged, near.to_numpy()])


def test_operators_of_other_samples_are_refused() -> None:
    values = xr.DataArray(
        np.random.default_rng(0).standard_normal((40, 4)), dims=("sample", "feature"), coords={"sample": range(40)}
    )
    one, turned = (DiffusionGauge(perplexity=5)(array) for array in (values, values[::-1]))
    said = r"the same samples in the same order, found '?0'? in '(a|0)' and '?39'? in '(b|1)' at position 0"
    with pytest.raises(OperatorError, match=said):
        spread({"a": one, "b": turned})
    with pytest.raises(OperatorError, match=said):
        operator_distances([one, turned])
    with pytest.raises(OperatorError, match=r"found a mapping: pass list\(operators.values\(\)\)"):
        operator_distances({"a": one, "b": one})
    assert spread({"a": one, "b": turned.to_numpy()}).value > 0.9  # an array tells of none


def test_why_a_spread_is_not_defined() -> None:
    points = np.random.default_rng(0).standard_normal((2, 80, 4))
    uniform = [DiffusionGauge(perplexity=100)(one) for one in points]
    assert "at least two models" in repr(spread(uniform[:1]))
    assert repr(spread(uniform)).startswith("Spread(nan, 2 models: relabelling the samples")
    assert "its diagnostics" in spread(uniform)._repr_html_()
    usual = spread([DiffusionGauge()(one) for one in points])
    assert usual.undefined == ""
    assert "not defined" not in usual._repr_html_()


def test_unrelated_replicas_are_at_one_and_copies_at_zero() -> None:
    values = [spread(replicas(0.0, 3, seed)) for seed in range(5)]
    assert np.mean([v.value for v in values]) == pytest.approx(1, abs=0.01)
    assert np.mean([v.hellinger for v in values]) == pytest.approx(1, abs=0.01)
    one = replicas(0.5, 1, 0)["seed0"]
    copies = spread({"a": one, "b": one, "c": one})
    assert (copies.value, copies.low, copies.high, copies.hellinger) == (0, 0, 0, 0)


def test_rotation_and_sharpening_alone_do_not_change_it() -> None:
    rng = np.random.default_rng(5)
    points = rng.standard_normal((100, 6))
    turned = [gauge(points @ np.linalg.qr(rng.standard_normal((6, 6)))[0] * scale, knn=8) for scale in (1, 20)]
    assert spread(turned).value < 1e-20


def test_relabelled_copies_reach_one_for_value_and_hellinger() -> None:
    rng = np.random.default_rng(0)
    p = replicas(0.5, 1, 1)["seed0"]
    found = []
    for _ in range(100):
        order = rng.permutation(len(p))
        found.append(spread([p, p[np.ix_(order, order)]]))
    assert np.mean([f.value for f in found]) == pytest.approx(1, abs=0.003)
    assert np.mean([f.hellinger for f in found]) == pytest.approx(1, abs=0.003)


def test_one_model_has_no_spread_and_two_have_an_interval_over_samples() -> None:
    operators = replicas(0.7, 3, seed=2)
    one = spread({"seed0": operators["seed0"]})
    assert math.isnan(one.value)
    assert one.n_models == 1
    two = spread({name: operators[name] for name in ("seed0", "seed1")})
    assert math.isnan(two.models_error)
    assert two.high - two.value == pytest.approx(stats.t.ppf(0.975, 19) * two.samples_error, rel=1e-5)


def test_the_jackknife_leaves_one_model_out_at_a_time() -> None:
    operators = replicas(0.7, 4, seed=3)
    names = list(operators)
    alone = [spread({n: operators[n] for n in names if n != left}).value for left in names]
    expected = math.sqrt(3 / 4 * sum((a - np.mean(alone)) ** 2 for a in alone))
    assert spread(operators).models_error == pytest.approx(expected, rel=1e-9)
    assert math.isnan(jackknife_error(leave_one_out(np.ones(1), [(0, 1)], 2)))


def test_the_interval_over_samples_covers_what_more_samples_would_give() -> None:
    truth = np.mean([spread(replicas(0.85, 2, seed, samples=300)).value for seed in range(40)])
    inside = [
        found.low <= truth <= found.high
        for found in (spread(replicas(0.85, 2, 1000 + s, samples=300)) for s in range(60))
    ]
    assert np.mean(inside) >= 0.85


def test_the_seed_decides_and_order_of_models_does_not() -> None:
    operators = replicas(0.6, 3, seed=4)
    assert spread(operators, seed=1) == spread(operators, seed=1)
    assert spread(operators, seed=1).samples_error != spread(operators, seed=2).samples_error
    reverse = spread(dict(reversed(operators.items())), seed=1)
    assert reverse.value == pytest.approx(spread(operators, seed=1).value, rel=1e-12)


def test_uniform_operators_have_no_answer() -> None:
    uniform = np.full((12, 12), 1 / 12)
    assert math.isnan(spread({"a": uniform, "b": uniform}).value)


def test_bad_operators_are_named_by_model() -> None:
    broken = np.eye(4)
    broken[1, 2] = np.nan
    with pytest.raises(OperatorError, match="model 'seed1': expected finite"):
        spread({"seed0": np.eye(4), "seed1": broken})
    with pytest.raises(OperatorError, match=r"same samples, found \{'seed0': 4, 'seed1': 5\}"):
        spread({"seed0": np.eye(4), "seed1": np.eye(5)})


def test_what_is_held_of_operators_does_not_grow_with_their_number() -> None:
    side, rng = 200, np.random.default_rng(0)
    kernels = rng.random((16, side, side)).astype(np.float32)
    named = [(str(k), one) for k, one in enumerate(kernels / kernels.sum(2, keepdims=True))]
    one = Tally.of(named[0][1], Halves.of(side, 0)).nbytes
    assert one == 2 * 8 * side**2
    for held in (2, 5):
        peaks = []
        for count in (3, 16):
            pairs = list(combinations(range(count), 2))
            tracemalloc.start()
            spread_of_pairs(named[:count], pairs, count, 0, Tallies(memory=held * one))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        kept = (len(pairs) - 3) * 8 * (400 + 400 + side)  # resamples and shares of every pair
        assert peaks[1] < (held + 4) * one + kept, held


def test_kept_tallies_give_the_same_numbers() -> None:
    operators = list(replicas(0.8, 4, seed=0).items())
    pairs = list(combinations(range(4), 2))
    every, two = (spread_of_pairs(operators, pairs, 4, 0, Tallies(memory=memory)) for memory in (2**30, 0))
    assert every == two
    np.testing.assert_array_equal(every.halves, two.halves)


def test_a_spread_is_shown_with_its_interval():
    rng = np.random.default_rng(0)
    kernels = rng.random((3, 30, 30))
    found = spread(list(kernels / kernels.sum(2, keepdims=True)))
    assert repr(found) == f"Spread({found.value:.3f}, 95% interval [{found.low:.3f}, {found.high:.3f}], 3 models)"
    page = found._repr_html_()
    assert all(f"{value:.3f}" in page for value in (found.value, found.low, found.high, found.rows))
