"""The whole analysis: a store in; results, summary, figures and report out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import xarray as xr

from repaudit.analysis.operators import LayerOperators, compute_operators, memory_budget
from repaudit.analysis.results import (
    diagnostics_dataset,
    merged_dataset,
    spread_dataset,
    trajectory_dataset,
    undefined_spreads,
)
from repaudit.analysis.selection import Selection, select
from repaudit.analysis.summary import headline, layer_summary
from repaudit.errors import AnalysisError
from repaudit.gauge.diffusion import DiffusionGauge
from repaudit.merge.merging import DiffusionMerging, Strategy
from repaudit.names import ATTRS, LAYER, STEP
from repaudit.output import analysis_folder, default_folder, finite, scratch, write_results
from repaudit.store.reader import open_store

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

GROUPS = ("spread", "trajectories", "merged", "diagnostics")
PACKAGES = ("repaudit", "torch", "numpy", "xarray", "zarr", "phate", "pot")


def analyze(
    url: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    models: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    merge: str = "frobenius",
    memory: str = "2GB",
    scheduler: str | None = None,
    *,
    gauge: DiffusionGauge | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Say whether the models of a store converge, layer by layer, and write it down beside the store.

    For every layer the activations of each (model, step) become a diffusion operator; from these follow the calibrated
    spread of the models over steps, PHATE trajectories of all operators, and the PHATE embedding of the operator
    merged over models at the last step they share. The store is never written to.

    Parameters
    ----------
    url
        The store: a path or an fsspec URL.
    out
        Folder for ``results.zarr``, ``summary.json``, ``report.html`` and ``figures/``;
        ``<store>.analysis`` by default.
    models, layers, steps
        What to look at; everything by default.
    merge
        Merge strategy, see :class:`repaudit.DiffusionMerging`.
    memory
        Budget for what is held in memory at once, e.g. ``"2GB"``.
    scheduler
        Address of a Dask scheduler; threads on this machine by default.
    gauge
        How activations become operators; ``DiffusionGauge()`` by default.
    seed
        Seed of every random choice: resampling and embeddings.
    progress
        Called with (what, done, total) as the work goes on.

    Returns
    -------
    xarray.DataTree
        Groups ``spread``, ``trajectories``, ``merged`` and ``diagnostics``; the summary is in
        ``attrs["summary"]`` as JSON.

    Raises
    ------
    StoreError
        When there is no store of ours at ``url``.
    AnalysisError
        When the selection is empty or names what is not there.

    Examples
    --------
    >>> import repaudit as ra
    >>> results = ra.analyze("store.zarr")  # doctest: +SKIP
    >>> results["spread"]["spread"].sel(layer="model.layers.2")  # doctest: +SKIP
    """
    report = progress or (lambda _what, _done, _total: None)
    if scheduler is not None:
        raise AnalysisError(
            f"scheduler={scheduler!r}: this version analyses with threads on one machine; leave scheduler out"
        )
    merging = _merging(merge)
    memory_budget(memory)
    tree = open_store(url)
    selection = select(tree, models, layers, steps)
    with analysis_folder(Path(out) if out is not None else default_folder(url), url) as folder:
        gauge = gauge or DiffusionGauge()
        parts = _analyze_layers(
            tree, selection, gauge, merging=merging, memory=memory, seed=seed, folder=folder, report=report
        )
        used = json.loads(parts["diagnostics"].attrs["gauge"])
        parameters = {"url": os.fspath(url), "merge": merge, "memory": memory, "seed": seed, "gauge": used}
        summary = _summary(parts["spread"], selection, tree, parameters)
        results = _labelled(parts, summary)
        report("writing", 0, 1)
        write_results(results, summary, folder)
        report("writing", 1, 1)
    return results


def _labelled(parts: dict[str, xr.Dataset], summary: dict[str, Any]) -> xr.DataTree:
    """The groups as one tree; each carries parameters, versions and fingerprint, since groups are taken out alone."""
    provenance = {name: json.dumps(summary[name]) for name in ("parameters", "versions")}
    provenance["fingerprint"] = summary["fingerprint"]
    groups = {name: part.assign_attrs({**part.attrs, **provenance}) for name, part in parts.items()}
    root = xr.Dataset(attrs={"summary": json.dumps(finite(summary)), **provenance})
    return xr.DataTree.from_dict({"/": root, **groups})


def _merging(merge: str) -> DiffusionMerging:
    """Refuse an unknown strategy before any work, and the one whose P* is not over the store's samples."""
    if merge == "gromov":
        raise AnalysisError("merge: gromov is for operators on different samples; those of a store share theirs")
    try:
        return DiffusionMerging(cast(Strategy, merge))
    except ValueError as error:
        raise AnalysisError(f"merge: {error}") from None


def _analyze_layers(
    tree: xr.DataTree,
    selection: Selection,
    gauge: DiffusionGauge,
    *,
    merging: DiffusionMerging,
    memory: str,
    seed: int,
    folder: Path,
    report: Progress,
) -> dict[str, xr.Dataset]:
    steps = selection.all_steps()
    total = sum(len(selection.keys(layer)) for layer in selection.layers)
    done = 0
    rows: dict[str, list[xr.Dataset]] = {group: [] for group in GROUPS}
    for i, layer in enumerate(selection.layers):
        with scratch(folder) as spill:

            def advance() -> None:
                nonlocal done
                done += 1
                report("operators", done, total)

            operators = compute_operators(
                tree, layer, selection.keys(layer), gauge, folder=spill, memory=memory, advance=advance
            )
            if operators.keys:
                found = _layer_results(operators, selection, tree, steps, merging, memory, seed)
                selection.left_out.extend(undefined_spreads(found["spread"], operators))
                for row, dataset in found.items():
                    rows[row].append(dataset)
        selection.left_out.extend(
            f"layer {layer}, {model} at step {step}: {why}" for (model, step), why in operators.failed.items()
        )
        report("layers", i + 1, len(selection.layers))
    if not rows["spread"]:
        raise AnalysisError(f"no operator of any layer could be computed; the first reason: {selection.left_out[0]}")
    return {
        group: xr.concat(found, dim=LAYER, data_vars="minimal", coords="minimal", compat="override", join="outer")
        for group, found in rows.items()
    }


def _layer_results(
    operators: LayerOperators,
    selection: Selection,
    tree: xr.DataTree,
    steps: list[int],
    merging: DiffusionMerging,
    memory: str,
    seed: int,
) -> dict[str, xr.Dataset]:
    samples = tree.to_dataset()
    return {
        "spread": spread_dataset(operators, steps, seed=seed),
        "trajectories": trajectory_dataset(operators, selection.models, steps, memory=memory, seed=seed),
        "merged": merged_dataset(operators, selection, samples, merging=merging, seed=seed),
        "diagnostics": diagnostics_dataset(operators, selection.models, steps),
    }


def _summary(spread: xr.Dataset, selection: Selection, tree: xr.DataTree, parameters: dict[str, Any]) -> dict[str, Any]:
    layers = {str(name): layer_summary(spread.sel({LAYER: name})) for name in spread[LAYER].values}
    return {
        "headline": headline(layers, len(selection.models)),
        "layers": layers,
        "models": list(selection.models),
        "steps": [int(step) for step in spread[STEP].values],
        "left_out": selection.left_out,
        "parameters": parameters,
        "fingerprint": tree.attrs[ATTRS]["fingerprint"],
        "versions": {name: version(name) for name in PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
