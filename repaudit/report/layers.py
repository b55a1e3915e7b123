"""What the report shows of each layer, gathered from the groups of the results that contain the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from repaudit.names import LABEL, LAYER, MODEL, SAMPLE, STEP, TEXT
from repaudit.plots import style
from repaudit.plots.lines import distances, line_of, pairs, varying
from repaudit.report import words
from repaudit.report.figures import curves, embeddings
from repaudit.report.figures.frames import Thinning, figure_of_frames, frames_of
from repaudit.report.sparkline import sparkline
from repaudit.results import (
    APPROACH,
    COMPARISON,
    DIAGNOSTIC_NAMES,
    DIAGNOSTICS,
    DISTANCE_STRESS,
    EMBEDDING,
    FRAMES,
    GROUPS,
    HIGH,
    MDS,
    MERGED,
    SIMILARITY,
    SPREAD,
    STRESS,
    TRAJECTORIES,
    TRAJECTORY,
    UNITS,
    group,
    known,
    names_of,
    of_layer,
    one_layer,
    scalar,
)


@dataclass
class LayerView:
    """What the report says and shows of one layer; ``figures`` maps a kind of figure to its JSON."""

    name: str
    anchor: str
    verdict: str
    sentence: str
    agreement: str
    numbers: dict[str, str]
    groups: dict[str, str]
    sparkline: Markup | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, Any] | None = None
    units: dict[str, str] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    table: list[dict[str, str]] = field(default_factory=list)
    stress: dict[str, str] = field(default_factory=dict)
    merged: str = "the merged operator"


@dataclass(frozen=True)
class Groups:
    """Groups of the results; a group is None if it is absent or all its values are unknown."""

    spread: xr.Dataset | None
    approach: xr.Dataset | None
    comparison: xr.Dataset | None
    groups: xr.Dataset | None
    trajectories: xr.Dataset | None
    merged: xr.Dataset | None
    frames: xr.Dataset | None
    units: xr.Dataset | None
    similarity: xr.Dataset | None
    diagnostics: xr.Dataset | None

    @classmethod
    def of(cls, results: xr.DataTree) -> Groups:
        """Pick the groups out of a tree."""
        merged = group(results, MERGED, EMBEDDING)
        return cls(
            spread=group(results, SPREAD, SPREAD),
            approach=group(results, APPROACH, APPROACH),
            comparison=group(results, COMPARISON),
            groups=group(results, GROUPS, SPREAD),
            trajectories=group(results, TRAJECTORIES),
            merged=merged,
            frames=_labelled(group(results, FRAMES, MERGED), merged),
            units=group(results, UNITS, EMBEDDING),
            similarity=group(results, SIMILARITY, SIMILARITY),
            diagnostics=group(results, DIAGNOSTICS),
        )

    def layers(self) -> list[str]:
        """Return the names of the layers, in the order in which the groups first have them."""
        datasets = (self.spread, self.trajectories, self.merged, self.diagnostics, self.approach, self.comparison)
        return list(
            dict.fromkeys(name for dataset in datasets if dataset is not None for name in names_of(dataset, LAYER))
        )


def _labelled(frames: xr.Dataset | None, merged: xr.Dataset | None) -> xr.Dataset | None:
    """Add the merged embedding's labels and texts to the frames of the same samples, so that both are grouped alike."""
    if frames is None or merged is None or frames.sizes[SAMPLE] != merged.sizes[SAMPLE]:
        return frames
    return frames.assign_coords({name: merged[name].variable for name in (LABEL, TEXT) if name in merged.variables})


def layer_views(groups: Groups, summary: Mapping[str, Any]) -> list[LayerView]:
    """Gather what is said and shown of every layer that the summary or the results know."""
    said: Mapping[str, Any] = summary.get("layers", {})
    thinning = Thinning.of(groups.frames) if groups.frames is not None else None
    views = []
    for index, name in enumerate(dict.fromkeys([*said, *groups.layers()])):
        entry = said.get(name, {})
        view = LayerView(
            name,
            f"layer-{index}",
            str(entry.get("verdict") or "undecided"),
            words.sentence(entry),
            words.agreement(entry),
            words.numbers(entry),
            words.group_numbers(entry),
        )
        _add_spread(view, groups, entry)
        _add_comparison(view, groups)
        _add_trajectories(view, groups.trajectories)
        _add_samples(view, groups, thinning)
        _add_units(view, groups.units)
        _add_diagnostics(view, groups.diagnostics)
        views.append(view)
    return views


def _add_spread(view: LayerView, groups: Groups, entry: Mapping[str, Any]) -> None:
    """Add the spread over steps; for a single model its approach to its own end."""
    color = style.VERDICTS.get(view.verdict, style.OTHER)
    spread, approach = groups.spread, groups.approach
    if spread is not None and of_layer(spread, view.name, SPREAD):
        view.figures["spread"] = curves.spread_figure(spread, view.name, entry.get("phases") or ())
        axis = style.StepAxis.of(spread[STEP].values)
        view.sparkline = sparkline(line_of(spread, view.name), axis, color, _top(spread))
        view.table = list(words.rows(one_layer(spread, view.name)))
    elif spread is None and approach is not None and of_layer(approach, view.name, APPROACH):
        line = line_of(approach, view.name, APPROACH, model=0)
        if not line.step.size:
            return
        view.figures["approach"] = curves.approach_figure(approach, view.name)
        view.sparkline = sparkline(line, style.StepAxis.of(approach[STEP].values), color, max(1.1, line.top))


def _top(spread: xr.Dataset) -> float:
    """Return the upper end of the scale that the small drawings of all layers share."""
    values = [np.asarray(spread[name].values, dtype=float) for name in (SPREAD, HIGH) if name in spread]
    return max([1.1, *(float(array[np.isfinite(array)].max(initial=0)) for array in values)])


def _add_comparison(view: LayerView, groups: Groups) -> None:
    lines, _ = distances(None, groups.comparison, view.name)
    if lines:
        view.figures["comparison"] = curves.comparison_figure(groups.comparison, groups.spread, view.name)
    if groups.groups is not None and of_layer(groups.groups, view.name, SPREAD) and pairs(groups.groups, view.name):
        view.figures["groups"] = curves.groups_figure(groups.groups, view.name)


def _add_trajectories(view: LayerView, trajectories: xr.Dataset | None) -> None:
    if trajectories is None or view.name not in names_of(trajectories, LAYER):
        return
    dataset = one_layer(trajectories, view.name)
    for variable in (TRAJECTORY, MDS):
        if variable in dataset and known(dataset[variable]):
            view.figures[variable] = embeddings.trajectory_figure(trajectories, view.name, variable)
    view.stress["trajectory"] = words.stress(scalar(dataset, STRESS), scalar(dataset, DISTANCE_STRESS))


def _add_samples(view: LayerView, groups: Groups, thinning: Thinning | None) -> None:
    """Add the samples as they move over steps, else as they lie in the merged operator."""
    frames, merged = groups.frames, groups.merged
    if frames is not None and thinning is not None and view.name in names_of(frames, LAYER):
        view.frames = frames_of(frames, view.name, thinning)
        if view.frames is not None:
            view.figures["embedding"] = figure_of_frames(frames, view.frames["range"])
            view.stress["embedding"] = _worst(one_layer(frames, view.name)) + thinning.words
            return
    if merged is not None and of_layer(merged, view.name, EMBEDDING):
        dataset = one_layer(merged, view.name)
        view.figures["embedding"] = embeddings.embedding_figure(merged, view.name)
        view.merged = words.merged_words(dataset)
        view.stress["embedding"] = words.stress(scalar(dataset, STRESS), None)


def _worst(frames: xr.Dataset) -> str:
    values = np.asarray(frames[STRESS].values if STRESS in frames else [], dtype=float)
    values = values[np.isfinite(values)]
    return f"Stress at most {values.max():.2f}. " if values.size else ""


def _add_units(view: LayerView, units: xr.Dataset | None) -> None:
    if units is None or not of_layer(units, view.name, EMBEDDING):
        return
    dataset = one_layer(units, view.name)
    for index, model in enumerate(names_of(units, MODEL)):
        if known(dataset[EMBEDDING].isel({MODEL: index})):
            view.units[f"units-{index}"] = model
            view.figures[f"units-{index}"] = embeddings.units_figure(units, view.name, index)


def _add_diagnostics(view: LayerView, diagnostics: xr.Dataset | None) -> None:
    """Add curves of what varies, and remarks on every count that is not as it should be."""
    if diagnostics is None or view.name not in names_of(diagnostics, LAYER):
        return
    dataset = one_layer(diagnostics, view.name)
    view.diagnostics = {variable: DIAGNOSTIC_NAMES[variable] for variable in varying(dataset)}
    for variable in view.diagnostics:
        view.figures[variable] = curves.diagnostic_figure(diagnostics, view.name, variable)
    for variable in filter(dataset.__contains__, words.HEALTHY):
        view.remarks += words.remarks(variable, dataset)
        view.checked.append(words.diagnostic(variable))
