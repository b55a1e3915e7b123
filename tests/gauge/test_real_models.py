"""What the default gauge makes of real activations: two sets of text and one of images, four models each."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import repaudit as ra

SETS = ("emails", "source", "digits")
ALIKE = ("emails", "digits")
"""Sets on which no model is much better than the others."""
FILE = Path(__file__).parents[1] / "data" / "activations.npz"


@cache
def activations(name):
    with np.load(FILE) as arrays:
        labels = arrays[f"{name}/labels"]
        keys = [key for key in arrays.files if key.startswith(f"{name}/") and not key.endswith("labels")]
        return {key.partition("/")[2]: arrays[key].astype(np.float32) for key in keys}, labels


def operators(name, **gauge):
    return {model: ra.DiffusionGauge(**gauge)(X) for model, X in activations(name)[0].items()}


def same_class(operator, labels):
    """Chance that one step of a walk from a random sample ends at one with the same label."""
    return float((np.asarray(operator, dtype=float) * (labels[:, None] == labels)).sum(1).mean())


@pytest.mark.parametrize("k", [10, 15])
def test_distances_of_models_are_ordered_as_their_neighbours_agree(k):
    distance, neighbours = [], []
    for name in SETS:
        X, P = activations(name)[0], operators(name)
        for a, b in combinations(X, 2):
            distance.append(ra.spread([P[a], P[b]]).value)
            neighbours.append(1 - ra.similarity(X[a], X[b], measure="mutual_knn", k=k).value)
    assert spearmanr(distance, neighbours).statistic >= 0.9


@pytest.mark.parametrize("name", SETS)
def test_models_look_at_one_scale_and_the_earlier_kernel_at_half_of_the_samples(name):
    seen = [operator.diagnostics["effective_neighbors"] for operator in operators(name).values()]
    assert max(seen) <= 1.15 * min(seen)
    earlier = [operator.diagnostics["effective_neighbors"] for operator in operators(name, knn=15).values()]
    assert min(earlier) > 5 * max(seen)


@pytest.mark.parametrize(
    "name", ["source", *(pytest.param(one, marks=pytest.mark.slow) for one in SETS if one != "source")]
)
def test_the_barycenter_knows_the_classes_better_than_the_mean_of_the_operators(name):
    """The mean's walk stays in its class exactly as often as the models' walks do on average."""
    labels, P = activations(name)[1], operators(name)
    single = [same_class(operator, labels) for operator in P.values()]
    mean = same_class(ra.DiffusionMerging().merge(P), labels)
    assert mean == pytest.approx(np.mean(single), abs=1e-6)
    assert mean > same_class(ra.DiffusionMerging().merge(operators(name, knn=15)), labels) + 0.2
    merged = same_class(ra.DiffusionMerging("ot_barycenter", tolerance=1e-3).merge(P), labels)
    assert merged > mean
    if name in ALIKE:
        assert merged >= max(single) - 0.01


@pytest.mark.parametrize("name", SETS)
def test_a_step_whose_scale_alone_drifts_changes_nothing(name):
    X = next(iter(activations(name)[0].values())).astype(np.float64)
    P = ra.DiffusionGauge()(X)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((X.shape[1],) * 2))[0]
    for size in (0.01, 1.0, 30.0):
        assert ra.spread([P, ra.DiffusionGauge()(size * X @ rotation)]).value <= 1e-10
