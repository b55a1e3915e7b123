"""The accessors give the store's own names and the operators that the gauge gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import repaudit as ra
from repaudit.errors import ActivationError, AnalysisError


@pytest.fixture
def tree(planted_store):
    return ra.open_store(planted_store(layers=("first", "a/b")))


def test_names_are_the_real_ones(tree, probe_set):
    assert tree.repaudit.models == ["seed0", "seed1", "seed2"]
    assert tree.repaudit.layers("seed1") == ["first", "a/b"]
    assert tree.repaudit.steps("seed2") == [0, 1, 2, 4, 8, 16]
    assert tree.repaudit.fingerprint == probe_set.fingerprint


def test_activations_carry_where_they_are_from(tree):
    found = tree.repaudit.activations("seed0", "a/b")
    assert found.dims[:2] == ("step", "sample")
    assert (found.coords["model"].item(), found.coords["layer"].item()) == ("seed0", "a/b")
    assert found.chunks is not None
    assert found["sample"].values.tolist() == tree["sample"].values.tolist()


def test_operators_are_those_of_the_gauge_and_feed_the_spread(tree):
    found = tree.repaudit.operators("first", step=16, knn=7)
    assert list(found) == ["seed0", "seed1", "seed2"]
    by_hand = ra.DiffusionGauge(knn=7)(tree["models/seed1"]["first"].sel(step=16).values)
    np.testing.assert_array_equal(found["seed1"].to_numpy(), by_hand.to_numpy())
    early, late = (ra.spread(tree.repaudit.operators("first", step=step)).value for step in (0, 16))
    assert late < 0.1 < early


def test_a_missing_step_and_a_foreign_tree_are_said(tree):
    with pytest.raises(AnalysisError, match=r"step 3 .* seed0, seed1, seed2"):
        tree.repaudit.operators("first", step=3)
    with pytest.raises(KeyError, match=r"no layer 'nowhere'.*first"):
        tree.repaudit.operators("nowhere", step=16)
    with pytest.raises(ActivationError, match="step"):
        tree.repaudit.activations("seed0", "first").repaudit.gauge()
    foreign = xr.DataTree()
    assert foreign.repaudit.models == []
    with pytest.raises(AnalysisError, match="root of a store"):
        _ = foreign.repaudit.fingerprint
    with pytest.raises(AnalysisError, match="results of an analysis"):
        _ = tree.repaudit.summary


def test_summary_is_that_of_the_results(make_results):
    results, summary = make_results()
    assert results.repaudit.summary == summary


@pytest.mark.parametrize("first", ["import repaudit; repaudit.open_store", "import repaudit.accessor"])
def test_registering_needs_no_torch(first):
    program = f"{first}\nimport sys, xarray\nprint(hasattr(xarray.DataTree, 'repaudit'), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]
