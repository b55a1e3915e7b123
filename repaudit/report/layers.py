"""What the report shows of each layer, gathered from the groups of the results that contain the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import xarray as xr
from markupsafe import Markup

from repaudit.names import LAYER, MODEL, SAMPLE, STEP
from repaudit.plots import style
from repaudit.plots.embeddings import ROUGH
from repaudit.plots.lines import distances, line_of, pairs, varying
from repaudit.plots.pairs import last_step_of_most, pair_distances
from repaudit.plots.scales import Scale
from repaudit.report import scale_words, words
from repaudit.report.figures import curves, embeddings, maps
from repaudit.report.figures.frames import MOST_NUMBERS, Thinning, figure_of_frames, frames_of
from repaudit.report.sparkline import sparkline
from repaudit.results import (
    APPROACH,
    COMPARISON,
    DIAGNOSTIC_NAMES,
    DIAGNOSTICS,
    DISTANCE,
    DISTANCE_STRESS,
    EMBEDDING,
    FRAMES,
    GROUPS,
    HIGH,
    MDS,
    MERGED,
    OF_SAMPLES,
    PAIRS,
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

CURVES: Final = ("spread", "approach")
"""Figures of a layer's scales that stand next to each other."""


@dataclass
class ScaleView:
    """What the report says and shows of one layer at one scale; ``figures`` maps a kind of figure to its JSON."""

    name: str
    anchor: str
    scale: str
    verdict: str
    sentence: str
    agreement: str
    numbers: dict[str, str]
    groups: dict[str, str]
    sparkline: Markup | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    neighbours: str = ""
    cautions: list[str] = field(default_factory=list)
    pair: str = ""
    pairs_step: str = ""
    frames: dict[str, Any] | None = None
    units: dict[str, str] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    table: list[dict[str, str]] = field(default_factory=list)
    stress: dict[str, str] = field(default_factory=dict)
    merged: str = "the merged operator"
    paths: str = TRAJECTORY

    @property
    def origin(self) -> str:
        """Where the models' agreement comes from, in a word; empty where that is not known."""
        return next((word for word in ("learned", "inherited") if self.agreement.lower().startswith(word)), "")


@dataclass
class LayerView:
    """What the report says and shows of one layer: the views of all scales, the first of which has its units."""

    name: str
    anchor: str
    sentence: str
    views: list[ScaleView]

    @property
    def first(self) -> ScaleView:
        """The view of the first scale."""
        return self.views[0]

    @property
    def alike(self) -> bool:
        """Whether the same is said at all scales."""
        return len({view.sentence for view in self.views}) == 1


@dataclass(frozen=True)
class AtScale:
    """A scale with the groups of the results and the summary there."""

    scale: Scale
    groups: Groups
    summary: Mapping[str, Any]

    @property
    def others(self) -> str:
        """Name under which the page keeps the curves of all layers; empty where there is one layer."""
        return f"lines-{self.scale.index}" if len(self.groups.layers()) > 1 else ""

    def lines(self) -> dict[str, Any]:
        """Return the curves of all layers by their name, where there are several."""
        spread, approach = self.groups.spread, self.groups.approach
        if self.others and spread is not None:
            return {self.others: curves.every_line(spread, SPREAD)}
        if self.others and approach is not None:
            return {self.others: curves.every_line(approach, APPROACH, model=0)}
        return {}


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
    pairs: xr.Dataset | None

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
            pairs=group(results, PAIRS, DISTANCE),
        )

    @property
    def samples(self) -> int:
        """Number of samples; 0 where it is not known."""
        dataset = self.merged if self.merged is not None else self.frames
        return int(dataset.sizes.get(SAMPLE, 0)) if dataset is not None else 0

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
    return frames.assign_coords({name: merged[name].variable for name in OF_SAMPLES if name in merged.variables})


def layer_views(every: Sequence[AtScale], summary: Mapping[str, Any]) -> list[LayerView]:
    """Gather what is said and shown of every layer that the summary or the results know, at all scales."""
    said: Mapping[str, Any] = summary.get("layers") or {}
    names = dict.fromkeys([*said, *(name for at in every for name in at.groups.layers())])
    thinnings = [_thinning(at.groups.frames, len(every)) for at in every]
    layers = []
    for index, name in enumerate(names):
        anchor = f"layer-{index}"
        views = [_scale_view(name, anchor, at, thinning) for at, thinning in zip(every, thinnings, strict=True)]
        _add_units(views[0], every[0].groups.units)
        curves.same_height([view.figures[kind] for view in views for kind in CURVES if kind in view.figures])
        layers.append(LayerView(name, anchor, words.sentence(said.get(name, {})), views))
    return layers


def _thinning(frames: xr.Dataset | None, scales: int) -> Thinning | None:
    return None if frames is None else Thinning.of(frames, MOST_NUMBERS // scales)


def _scale_view(name: str, anchor: str, at: AtScale, thinning: Thinning | None) -> ScaleView:
    entry: Mapping[str, Any] = at.summary["layers"].get(name, {})
    view = ScaleView(
        name,
        f"{anchor}-scale-{at.scale.index}" if at.scale.index else anchor,
        style.visible(at.scale.name, 40),
        str(entry.get("verdict") or "undecided"),
        words.sentence(entry),
        words.agreement(entry),
        words.numbers(entry),
        words.group_numbers(entry),
    )
    _add_spread(view, at, entry)
    _add_pairs(view, at.groups.pairs)
    _add_comparison(view, at.groups)
    _add_trajectories(view, at.groups.trajectories)
    _add_samples(view, at.groups, thinning)
    _add_diagnostics(view, at)
    return view


def _add_spread(view: ScaleView, at: AtScale, entry: Mapping[str, Any]) -> None:
    """Add the spread over steps; for a single model its approach to its own end."""
    color = style.VERDICTS.get(view.verdict, style.OTHER)
    spread, approach, others = at.groups.spread, at.groups.approach, at.others
    if spread is not None and of_layer(spread, view.name, SPREAD):
        view.figures["spread"] = curves.spread_figure(spread, view.name, entry.get("phases") or (), others)
        axis = style.StepAxis.of(spread[STEP].values)
        view.sparkline = sparkline(line_of(spread, view.name), axis, color, _top(spread))
        view.table = list(words.rows(one_layer(spread, view.name)))
        view.cautions += scale_words.outlying(one_layer(spread, view.name))
    elif spread is None and approach is not None and of_layer(approach, view.name, APPROACH):
        line = line_of(approach, view.name, APPROACH, model=0)
        if not line.step.size:
            return
        view.figures["approach"] = curves.approach_figure(approach, view.name, others)
        view.sparkline = sparkline(line, style.StepAxis.of(approach[STEP].values), color, max(1.1, line.top))


def _top(spread: xr.Dataset) -> float:
    """Return the upper end of the scale that the small drawings of all layers share."""
    values = [np.asarray(spread[name].values, dtype=float) for name in (SPREAD, HIGH) if name in spread]
    return max([1.1, *(float(array[np.isfinite(array)].max(initial=0)) for array in values)])


def _add_pairs(view: ScaleView, pairs: xr.Dataset | None) -> None:
    """Add the map of every two models, or a line where there are only two."""
    if pairs is None or view.name not in names_of(pairs, LAYER):
        return
    found = pair_distances(pairs, view.name, last_step_of_most(pairs, view.name))
    if found is not None and len(found.models) == 2:
        view.pair = scale_words.only_pair(found)
    elif found is not None:
        view.figures["pairs"] = maps.pairs_figure(found)
        view.pairs_step = f"{found.step:,}"


def _add_comparison(view: ScaleView, groups: Groups) -> None:
    lines, _ = distances(None, groups.comparison, view.name)
    if lines:
        view.figures["comparison"] = curves.comparison_figure(groups.comparison, groups.spread, view.name)
    if groups.groups is not None and of_layer(groups.groups, view.name, SPREAD) and pairs(groups.groups, view.name):
        view.figures["groups"] = curves.groups_figure(groups.groups, view.name)


def _add_trajectories(view: ScaleView, trajectories: xr.Dataset | None) -> None:
    if trajectories is None or view.name not in names_of(trajectories, LAYER):
        return
    dataset = one_layer(trajectories, view.name)
    for variable in (TRAJECTORY, MDS):
        if variable in dataset and known(dataset[variable]):
            view.figures[variable] = embeddings.trajectory_figure(trajectories, view.name, variable)
    apart = scalar(dataset, DISTANCE_STRESS)
    view.stress[TRAJECTORY] = words.stress(scalar(dataset, STRESS), apart)
    if MDS in view.figures and apart is not None and apart >= ROUGH:  # PHATE would show what is not there
        view.paths = MDS
        view.stress[MDS] = f"Classical scaling; PHATE has a stress of {apart:.2f} against the operators' distances."


def _add_samples(view: ScaleView, groups: Groups, thinning: Thinning | None) -> None:
    """Add the samples as they move over steps, else as they lie in the merged operator."""
    frames, merged = groups.frames, groups.merged
    if frames is not None and thinning is not None and view.name in names_of(frames, LAYER):
        view.frames = frames_of(frames, view.name, thinning)
        if view.frames is not None:
            view.figures["embedding"] = figure_of_frames(frames, view.frames["ranges"][0])
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
    rough = ": a rough picture" if values.max(initial=0) >= ROUGH else ""
    return f"Stress at most {values.max():.2f}{rough}. " if values.size else ""


def _add_units(view: ScaleView, units: xr.Dataset | None) -> None:
    if units is None or not of_layer(units, view.name, EMBEDDING):
        return
    dataset = one_layer(units, view.name)
    for index, model in enumerate(names_of(units, MODEL)):
        if known(dataset[EMBEDDING].isel({MODEL: index})):
            view.units[f"units-{index}"] = model
            view.figures[f"units-{index}"] = embeddings.units_figure(units, view.name, index)
            shown, steps = embeddings.units_shown(units).sizes[STEP], units.sizes[STEP]
            view.stress[f"units-{index}"] = f"Shown: {shown} of {steps} steps." if shown < steps else ""


def _add_diagnostics(view: ScaleView, at: AtScale) -> None:
    """Add curves of what varies, and remarks on every count that is not as it should be."""
    diagnostics = at.groups.diagnostics
    if diagnostics is None or view.name not in names_of(diagnostics, LAYER):
        return
    dataset = one_layer(diagnostics, view.name)
    view.neighbours = scale_words.neighbours(dataset)
    view.cautions += scale_words.unheld(dataset, at.scale, at.groups.samples)
    view.diagnostics = {variable: DIAGNOSTIC_NAMES[variable] for variable in varying(dataset)}
    for variable in view.diagnostics:
        view.figures[variable] = curves.diagnostic_figure(diagnostics, view.name, variable)
    for variable in filter(dataset.__contains__, words.HEALTHY):
        view.remarks += words.remarks(variable, dataset)
        view.checked.append(words.diagnostic(variable))
