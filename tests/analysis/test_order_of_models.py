"""Models are listed as a reader counts, and what was kept of another order is never taken for this one's."""

from __future__ import annotations

import json

import numpy as np
import pytest

import repaudit as ra
from repaudit.cli import app
from repaudit.results import OF_MODELS
from repaudit.store.read import catalog

COUNTED = [f"seed{number}" for number in range(12)]
BARE = {"frames": 1, "units": 0, "similarity": (), "figures": "none"}


@pytest.fixture
def twelve(planted_store):
    return planted_store(models=12, layers=("only",), steps=(0, 1))


def test_models_are_listed_as_a_reader_counts(twelve, tmp_path, capsys):
    tree = ra.open_store(twelve)
    assert catalog.models(tree) == list(tree["models"].children) == tree.repaudit.models == COUNTED
    with pytest.raises(SystemExit):
        app(["info", str(twelve)], prog_name="repaudit")
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert [word for word in shown if word in COUNTED] == COUNTED
    (twelve / "models" / "seed2" / "only" / "c.0.0.0").unlink()
    (twelve / "models" / "seed10" / "only" / "c.0.0.0").unlink()
    places = [problem.location.split("/")[1] for problem in ra.verify(twelve)]
    assert places == ["seed2", "seed10"]
    with pytest.raises(ra.errors.NotInStoreError, match=", ".join(COUNTED)):
        catalog.steps(tree, "seed12")


@pytest.mark.usefixtures("undrawn")
def test_results_kept_under_another_order_are_not_mixed_up(twelve, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("repaudit.store.read.catalog.in_natural_order", str)
        before = ra.analyze(twelve, tmp_path / "out", **BARE)
    assert before["pairs"]["model"].values.tolist() == sorted(COUNTED)
    now = ra.analyze(twelve, tmp_path / "out", **BARE)
    assert json.loads(now.attrs["summary"])["models"] == now["pairs"]["model"].values.tolist() == COUNTED
    for group, name in (("pairs", "distance"), ("frames", OF_MODELS), ("spread", "low")):
        counted, sorted_by_text = now[group][name], before[group][name]
        if "model" in counted.dims:
            several = {dim: COUNTED for dim in ("model", "other") if dim in counted.dims}
            sorted_by_text = sorted_by_text.sel(several)
        np.testing.assert_allclose(counted.values, sorted_by_text.values, rtol=1e-5, atol=1e-7)
