"""The gauge over whole trees."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import repaudit as ra
from repaudit.errors import ActivationError


def tree(bad=None):
    rng = np.random.default_rng(0)
    groups = {}
    for model in ("a", "b"):
        X = rng.standard_normal((3, 20, 4)).astype(np.float32)
        if bad == model:
            X[1, 7, 0] = np.nan
        layers = {
            "layer.0": (("step", "sample", "feature"), X, {"layer": "layer.0"}),
            "tokens": (("step", "sample", "token", "feature"), np.zeros((3, 20, 2, 4))),
            "loss": ("step", np.arange(3.0)),
        }
        coords = {"step": [0, 10, 20], "sample": np.arange(20)}
        groups[f"/models/{model}"] = xr.Dataset(layers, coords, {"repaudit": {"name": model}}).chunk()
    return xr.DataTree.from_dict(groups)


@pytest.mark.parametrize("parameters", [{"perplexity": 4.0}, {"knn": 3}], ids=["perplexity", "knn"])
def test_every_step_of_every_layer_is_its_own_lazy_operator(parameters):
    gauge = ra.DiffusionGauge(**parameters)
    found = gauge.map(tree())
    for model in ("a", "b"):
        operators = found[f"models/{model}"]["layer.0"]
        assert operators.dims == ("step", "sample", "neighbor")
        assert operators.chunks[0] == (1, 1, 1)
        assert operators.attrs.items() >= parameters.items()
        activations = tree()[f"models/{model}"]["layer.0"]
        for step in (0, 10, 20):
            truth = gauge(activations.sel(step=step)).to_numpy()
            np.testing.assert_array_equal(operators.sel(step=step).values, truth)
    assert found.attrs["left_out"] == ["/models/a/tokens", "/models/b/tokens"]


@pytest.mark.parametrize("parameters", [{}, {"knn": 3}], ids=["perplexity", "knn"])
def test_an_error_says_where(parameters):
    found = ra.DiffusionGauge(**parameters).map(tree(bad="b"))
    found["models/a"].load()
    with pytest.raises(ActivationError, match=r"sample 7 at model b, layer layer\.0, step 10"):
        found["models/b"].load()
