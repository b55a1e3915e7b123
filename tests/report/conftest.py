"""Results of the analysis' shapes with known values, for drawing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LAYERS = ("model.layers.0", "model.layers.1", "model.norm")
MODELS = ("seed0", "seed1", "seed2")
LABELS = ("ast", "json", "email", "http")


def _spread(layers: list[str], steps: np.ndarray) -> xr.Dataset:
    at = np.linspace(0, 1, len(steps))
    depth = np.linspace(1.0, 0.6, len(layers))[:, None]
    value = 0.1 * depth + 0.65 * np.exp(-(((at - 0.45) / 0.2) ** 2)) * (1.1 - 0.3 * depth) + 0.02
    width = 0.03 + 0.1 * value
    on = ("layer", "step")
    return xr.Dataset(
        {
            "spread": (on, value),
            "spread_raw": (on, value * 3),
            "low": (on, value - width),
            "high": (on, value + width),
            "hellinger": (on, np.sqrt(value) / 2),
            "null": (on, np.full_like(value, 9.0)),
            "n_models": ("step", np.full(len(steps), 3)),
        },
        coords={"layer": layers, "step": steps},
    )


def _trajectories(layers: list[str], models: list[str], steps: np.ndarray) -> xr.Dataset:
    rng = np.random.default_rng(1)
    at = np.linspace(0, 1, len(steps))
    points = np.empty((len(layers), len(models), len(steps), 2))
    for m in range(len(models)):
        angle = 2.2 * m * np.sin(np.pi * at) ** 2
        points[:, m, :, 0] = 4 * at + 0.3 * np.cos(angle)
        points[:, m, :, 1] = np.sin(angle) + 0.05 * rng.normal(size=len(steps))
    points[-1, -1, 0] = np.nan
    return xr.Dataset(
        {
            "trajectory": (("layer", "model", "step", "component"), points),
            "mds": (("layer", "model", "step", "component"), points[..., ::-1] * 0.5),
            "stress": ("layer", np.full(len(layers), 0.07)),
        },
        coords={"layer": layers, "model": models, "step": steps},
    )


def _merged(layers: list[str], labels: list[str], n: int) -> xr.Dataset:
    rng = np.random.default_rng(2)
    which = np.arange(n) % len(labels)
    centre = 3 * np.stack([np.cos(2 * np.pi * which / len(labels)), np.sin(2 * np.pi * which / len(labels))], 1)
    points = np.stack([centre + rng.normal(size=(n, 2)) for _ in layers])
    return xr.Dataset(
        {"embedding": (("layer", "sample", "component"), points), "stress": ("layer", np.full(len(layers), 0.11))},
        coords={
            "layer": layers,
            "sample": [f"{labels[k]}:{i}" for i, k in enumerate(which)],
            "label": ("sample", [labels[k] for k in which]),
            "text": (
                "sample",
                [f"def parse_{i}(source):\n    return {labels[k]}(source)" for i, k in enumerate(which)],
            ),
        },
    )


def _diagnostics(layers: list[str], models: list[str], steps: np.ndarray) -> xr.Dataset:
    shape = (len(layers), len(models), len(steps))
    at = np.linspace(0, 1, len(steps)) + 0.05 * np.arange(shape[1])[:, None] + 0.1 * np.arange(shape[0])[:, None, None]
    counts = {name: np.zeros(shape, int) for name in ("isolated", "duplicates", "floored")}
    values: dict[str, Any] = {
        **counts,
        "collapsed": np.zeros(shape, bool),
        "components": np.ones(shape, int),
        "effective_neighbors": 60 - 30 * at,
        "uniformity": 0.3 - 0.1 * at,
        "entropy": 4 - at,
    }
    on = ("layer", "model", "step")
    return xr.Dataset({k: (on, v) for k, v in values.items()}, coords={"layer": layers, "model": models, "step": steps})


def _summary(spread: xr.Dataset, models: list[str]) -> dict[str, Any]:
    layers = {}
    steps = spread["step"].values.tolist()
    for name in spread["layer"].values:
        one = spread.sel(layer=name)
        start, end = float(one["spread"][0]), float(one["spread"][-1])
        top = int(np.argmax(one["spread"].values))
        layers[str(name)] = {
            "verdict": "converging",
            "start": start,
            "end": end,
            "low": float(one["low"][-1]),
            "high": float(one["high"][-1]),
            "peak": {"step": steps[top], "value": float(one["spread"][top])},
            "phases": [
                {"from": steps[0], "to": steps[top], "direction": "rises"},
                {"from": steps[top], "to": steps[-1], "direction": "falls"},
            ],
            "sentence": f"converging: spread {start:.2f} at step 0, peak at step {steps[top]}, {end:.2f} in {name}.",
        }
    return {
        "headline": f"The {len(models)} replicas converge in every layer.",
        "layers": layers,
        "models": models,
        "steps": steps,
        "left_out": [],
        "parameters": {"gauge": {"kernel": "gaussian", "knn": 15, "alpha": 1.0}, "merge": "frobenius"},
        "versions": {"repaudit": "0.1.0", "torch": "2.13.0"},
        "fingerprint": "3f9a" * 16,
    }


def make_results(
    *,
    layers: tuple[str, ...] = LAYERS,
    models: tuple[str, ...] = MODELS,
    steps: tuple[int, ...] = STEPS,
    labels: tuple[str, ...] = LABELS,
    n: int = 120,
) -> tuple[xr.DataTree, dict[str, Any]]:
    """Results and their summary; with one model neither has a spread that is known."""
    at = np.array(steps, dtype=np.int64)
    spread = _spread(list(layers), at)
    summary = _summary(spread, list(models))
    if len(models) < 2:
        spread = spread.map(lambda values: values * np.nan)
        unknown = dict.fromkeys(("start", "end", "low", "high", "peak"))
        words = {"verdict": "undecided", "phases": [], "sentence": "One model only: nothing to compare."}
        summary["layers"] = {name: {**unknown, **words} for name in summary["layers"]}
        summary["headline"] = "One model: no spread."
    tree = xr.DataTree.from_dict(
        {
            "spread": spread,
            "trajectories": _trajectories(list(layers), list(models), at),
            "merged": _merged(list(layers), list(labels), n),
            "diagnostics": _diagnostics(list(layers), list(models), at),
        }
    )
    tree.attrs = {
        "parameters": summary["parameters"],
        "fingerprint": summary["fingerprint"],
        "versions": summary["versions"],
        "store": "runs/store.zarr",
        "summary": json.dumps(summary),
    }
    return tree, summary


Maker = Callable[..., tuple[xr.DataTree, dict[str, Any]]]


@pytest.fixture(name="make_results")
def _make_results() -> Maker:
    return make_results
