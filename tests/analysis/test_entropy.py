"""The entropy of operators on many samples, which an analysis estimates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import repaudit as ra
from repaudit.analysis.contract import contract_violations
from repaudit.analysis.layer_operators import MOST_EIGENVALUES


def test_the_entropy_of_many_samples_comes_with_its_error(tmp_path: Path, undrawn: None) -> None:
    side = MOST_EIGENVALUES + 50
    probe_set = ra.ProbeSet.from_tensors({"input_ids": np.arange(2 * side).reshape(side, 2)})
    points = np.random.default_rng(0).normal(size=(2, side, 6)).astype(np.float32)
    for model, values in enumerate(points):
        shapes = {"norm": (values.shape, "float32")}
        with ra.TrajectoryWriter(
            tmp_path / "s.zarr", model_name=f"seed{model}", probe_set=probe_set, layers=shapes, durable=False
        ) as writer:
            writer.append(0, {"norm": values})
    results = ra.analyze(tmp_path / "s.zarr", frames=0, units=0, similarity=(), scales=(15,), figures="none")
    found, error = (results["diagnostics"][name].values.ravel() for name in ("entropy", "entropy_error"))
    exact = [ra.DiffusionGauge()(values).spectral_entropy(1, exact=side).value for values in points]
    assert (np.abs(found - exact) < 4 * error).all()
    assert (error < 0.1).all()
    assert contract_violations(results) == []
