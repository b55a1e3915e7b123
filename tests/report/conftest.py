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


def _comparison(layers: list[str], steps: np.ndarray) -> xr.Dataset:
    at = np.linspace(0, 1, len(steps)) + 0.1 * np.arange(len(layers))[:, None]
    found = {"from_untrained": 0.9 * np.sqrt(at - at[0, 0]), "from_inputs": 0.25 + 0.4 * at}
    data = {}
    for name, value in found.items():
        for end, values in (("", value), ("_low", value - 0.05), ("_high", value + 0.05)):
            data[name + end] = (("layer", "step"), values)
    data["feature_halves"] = ("layer", np.full(len(layers), 0.03))
    return xr.Dataset(data, coords={"layer": layers, "step": steps}, attrs={"inputs": "token counts of input_ids"})


def _approach(layers: list[str], models: list[str], steps: np.ndarray) -> xr.Dataset:
    value = np.broadcast_to(0.9 * (1 - np.linspace(0, 1, len(steps))), (len(layers), len(models), len(steps)))
    on = ("layer", "model", "step")
    data = {"approach": (on, value), "low": (on, np.maximum(value - 0.05, 0)), "high": (on, value + 0.05)}
    return xr.Dataset(data, coords={"layer": layers, "model": models, "step": steps})


def _groups(layers: list[str], steps: np.ndarray) -> xr.Dataset:
    names = ["small", "large"]
    at = np.linspace(0, 1, len(steps))[None, :, None, None]
    value = np.broadcast_to(0.5 - 0.4 * at + 0.4 * (1 - np.eye(2)), (len(layers), len(steps), 2, 2))
    on = ("layer", "step", "group", "other")
    data = {"spread": (on, value), "low": (on, value - 0.04), "high": (on, value + 0.04)}
    return xr.Dataset(data, coords={"layer": layers, "step": steps, "group": names, "other": names})


def _similarity(layers: list[str], models: list[str], steps: np.ndarray) -> xr.Dataset:
    measures = ["cka", "mutual_knn", "procrustes"]
    model, layer = (
        np.array(names, dtype=object) for names in zip(*[(m, k) for m in models for k in layers], strict=True)
    )
    depth = np.array([layers.index(name) for name in layer]) / max(1, len(layers) - 1)
    apart = np.abs(depth[:, None] - depth) + 0.15 * (model[:, None] != model)
    kept = steps[[0, -1]] if len(steps) > 1 else steps
    value = np.stack([[np.exp(-(k + 1) * apart * (2 - s)) for s in range(len(kept))] for k in range(len(measures))])
    on = ("measure", "step", "representation", "other")
    return xr.Dataset(
        {"similarity": (on, value), "null": (on, np.full_like(value, 0.1))},
        coords={
            "measure": measures,
            "step": kept,
            "model": ("representation", model),
            "layer": ("representation", layer),
        },
    )


def _frames(merged: xr.Dataset, models: list[str], steps: np.ndarray) -> xr.Dataset:
    """Samples that grow out of one point to where they lie in the merged embedding."""
    last = merged["embedding"].values
    grow = np.linspace(0.2, 1, len(steps))[:, None, None]
    moving = last[:, None] * grow
    of_models = moving[:, None] + 0.3 * np.arange(1, len(models) + 1)[:, None, None, None]
    return xr.Dataset(
        {
            "merged": (("layer", "step", "sample", "component"), moving),
            "models": (("layer", "model", "step", "sample", "component"), of_models),
            "stress": (("layer", "step"), np.full(moving.shape[:2], 0.12)),
        },
        coords={"layer": merged["layer"], "model": models, "step": steps, "sample": merged["sample"]},
    )


def _units(layers: list[str], models: list[str], steps: np.ndarray, count: int = 12) -> xr.Dataset:
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    points = np.linspace(0.2, 1, len(steps))[:, None, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    shape = (len(layers), len(models))
    return xr.Dataset(
        {
            "embedding": (
                ("layer", "model", "step", "unit", "component"),
                np.broadcast_to(points, (*shape, *points.shape)),
            ),
            "feature": (("layer", "model", "unit"), np.broadcast_to(7 * np.arange(count), (*shape, count))),
            "stress": (("layer", "model"), np.full(shape, 0.2)),
        },
        coords={"layer": layers, "model": models, "step": steps},
    )


def _together(trajectories: xr.Dataset) -> xr.Dataset:
    shift = 0.8 * np.arange(trajectories.sizes["layer"])[:, None, None, None]
    extra = {
        "together": (trajectories["trajectory"].dims, trajectories["trajectory"].values + shift),
        "together_stress": ((), 0.05),
        "together_distance_stress": ((), 0.31),
        "distance_stress": ("layer", np.full(trajectories.sizes["layer"], 0.33)),
    }
    return trajectories.assign(extra)


def _add_more(tree: xr.DataTree, summary: dict[str, Any], models: list[str]) -> None:
    """Add every group and every word of the summary that an analysis may leave out."""
    trajectories, merged = tree["trajectories"].to_dataset(), tree["merged"].to_dataset()
    layers, steps = [str(name) for name in trajectories["layer"].values], trajectories["step"].values
    tree["trajectories"] = xr.DataTree(_together(trajectories))
    tree["comparison"] = xr.DataTree(_comparison(layers, steps))
    tree["similarity"] = xr.DataTree(_similarity(layers, models, steps))
    tree["frames"] = xr.DataTree(_frames(merged, models, steps[-6:]))
    tree["units"] = xr.DataTree(_units(layers, models[:2], steps))
    if len(models) == 1:
        tree["approach"] = xr.DataTree(_approach(layers, models, steps))
    else:
        tree["groups"] = xr.DataTree(_groups(layers, steps))
    last = int(steps[-1])
    for k, entry in enumerate(summary["layers"].values()):
        entry["untrained"] = {"step": last, "value": 0.85, "low": 0.8, "high": 0.9}
        entry["inputs"] = {"value": 0.65, "low": 0.6, "high": 0.7}
        if len(models) > 1:
            entry["agreement"] = ("learned", "inherited")[k % 2]
            entry["groups"] = {"small": {"value": 0.1, "low": 0.06, "high": 0.14}, "small | large": {"value": 0.5}}
    order = [*reversed(layers)]
    settled = {name: last // 2 ** (len(order) - k) if k < len(order) - 1 else None for k, name in enumerate(order)}
    summary["settling"] = [{"layer": name, "settled": settled[name], "below_start": last // 4} for name in order]


SCALES = (("neighbourhoods", 15.0), ("shape", 30.0))
ON_ACTIVATIONS = ("units", "similarity")


def _pairs(layers: list[str], models: list[str], steps: np.ndarray) -> xr.Dataset:
    """Distances of models of which the first and the third are alike; at the last step nothing is known."""
    where = np.arange(len(models)) % 2 + 0.1 * np.arange(len(models))
    apart = np.abs(where[:, None] - where)
    value = np.broadcast_to(0.8 * apart, (len(layers), len(steps), *apart.shape)).copy()
    value *= np.linspace(0.5, 1, len(steps))[:, None, None]
    value[:, -1] = np.nan
    on = ("layer", "step", "model", "other")
    data = {"distance": value, "low": value * 0.9, "high": value * 1.1, "pvalue_holm": np.where(value > 0.5, 0.3, 1e-9)}
    return xr.Dataset(
        {name: (on, values) for name, values in data.items()},
        coords={"layer": layers, "step": steps, "model": models, "other": models},
    )


def _add_scales(tree: xr.DataTree, summary: dict[str, Any], models: list[str]) -> None:
    """Give every group that stands on operators a second scale, at which all values are half of those at the first."""
    spread, diagnostics = tree["spread"].to_dataset(), tree["diagnostics"].to_dataset()
    layers, steps = [str(name) for name in spread["layer"].values], spread["step"].values
    on, wide = ("layer", "step"), 0.1 + spread["high"].values - spread["spread"].values
    tree["spread"] = xr.DataTree(
        spread.assign(
            band_low=(on, spread["spread"].values - wide),
            band_high=(on, spread["spread"].values + wide),
            spread_rows=(on, 0.8 * spread["spread"].values),
            largest_row=(on, np.full(wide.shape, 0.02)),
            largest_sample=(on, np.full(wide.shape, "json:1", dtype=object)),
        )
    )
    tree["diagnostics"] = xr.DataTree(diagnostics.assign(unheld=diagnostics["isolated"] * 0))
    tree["pairs"] = xr.DataTree(_pairs(layers, models, steps))
    for name in tree.children:
        if name not in ON_ACTIVATIONS:
            tree[name] = xr.DataTree(_at_both(tree[name].to_dataset()))
    for layer, entry in summary["layers"].items():
        first = dict(entry)
        other = first | {"verdict": "diverging", "settled": None, "sentence": f"Shape of {layer} goes apart."}
        both = zip(SCALES, (first, other), strict=True)
        entry["scales"] = {name: {"scale": value, **found} for (name, value), found in both}
        entry["sentence"] = f"Neighbourhoods: {first['sentence']} Shape: {other['sentence']}"
    summary["scales"] = [{"name": name, "scale": value} for name, value in SCALES]
    summary["headline"] = "The scales disagree in every layer."


def _at_both(dataset: xr.Dataset) -> xr.Dataset:
    halved = dataset.map(lambda values: values * 0.5 if values.dtype.kind == "f" else values)
    coords = {"scale": [value for _, value in SCALES], "scale_name": ("scale", [name for name, _ in SCALES])}
    both = xr.concat([dataset, halved], "scale", data_vars="all", coords="minimal", compat="override")
    return both.assign_coords(coords).transpose("layer", "scale", ...)


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
    more: bool = False,
    scales: bool = False,
) -> tuple[xr.DataTree, dict[str, Any]]:
    """Results and their summary; with one model neither has a spread that is known.

    ``more`` adds all that an analysis may leave out, ``scales`` a second scale and what older results lack.
    """
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
    if more:
        _add_more(tree, summary, list(models))
    if scales:
        _add_scales(tree, summary, list(models))
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
