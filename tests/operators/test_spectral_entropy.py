"""The estimated entropy of a spectrum against the one from all eigenvalues."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse

import repaudit as ra
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.spectral_entropy import EXACT, estimate_entropy

SIDE = 700


def points(kind: str, side: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(0)
    along = 6 * rng.random(side)
    centres = 4 * rng.normal(size=(20, 16))[rng.integers(0, 20, side)]
    found: np.ndarray = {
        "normal": rng.normal(size=(side, 16)),
        "clusters": centres + rng.normal(size=(side, 16)),
        "curve": np.stack([np.cos(along), np.sin(along), along], axis=1),
    }[kind]
    return found.astype(np.float32)


@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("kind", ["normal", "clusters", "curve"])
@pytest.mark.parametrize("gauge", [{}, {"perplexity": SIDE / 4}, {"kernel": "alpha_decay", "knn": 5}], ids=str)
def test_the_estimate_is_the_entropy_within_its_error(gauge: dict, kind: str, t: int) -> None:
    operator = ra.DiffusionGauge(**gauge)(points(kind))
    exact, found = operator.spectral_entropy(t), operator.spectral_entropy(t, exact=100)
    assert exact.error == 0
    assert exact.value == operator.entropy(t)
    assert 0 < found.error < 0.3
    assert abs(found.value - exact.value) < 4 * found.error + 0.01


def test_closed_forms() -> None:
    even = np.full(300, 1 / 300)
    assert estimate_entropy(scipy.sparse.eye_array(300, format="csr"), even).value == pytest.approx(math.log(300))
    assert estimate_entropy(np.full((300, 300), 1 / 300), even).value == pytest.approx(0, abs=1e-6)
    cycle = scipy.sparse.csr_array(np.roll(np.eye(300), 1, axis=0) + np.roll(np.eye(300), -1, axis=0)) / 2
    values = np.abs(np.cos(2 * np.pi * np.arange(300) / 300))
    p = values[values > 1e-12] / values.sum()
    found = estimate_entropy(cycle, even)
    assert abs(found.value + float(p @ np.log(p))) < 4 * found.error


def test_large_operators_are_estimated_and_small_ones_exact() -> None:
    large = ra.DiffusionGauge()(points("normal", EXACT + 1))
    found = large.spectral_entropy()
    assert 0 < found.error < 0.1
    assert large.entropy() == found.value
    moduli = np.abs(np.linalg.eigvalsh(large.symmetric.to_dense().numpy()))
    p = moduli / moduli.sum()
    assert abs(found.value + float(p @ np.log(np.maximum(p, 1e-300)))) < 4 * found.error + 0.01
    assert large.spectral_entropy(1, exact=EXACT + 1).error == 0


def test_without_a_symmetric_conjugate_it_is_exact() -> None:
    rng = np.random.default_rng(0)
    operator = DiffusionOperator.from_matrix(rng.dirichlet(np.ones(60), size=60))
    assert not operator.reversible
    assert operator.spectral_entropy(1, exact=10).error == 0
    landmarks = ra.DiffusionGauge(knn=5, landmarks=40)(points("clusters"))
    assert landmarks.spectral_entropy(1, exact=10).error == 0
