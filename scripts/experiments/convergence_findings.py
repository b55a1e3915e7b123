"""What a run of the experiment on convergence found, as numbers: curves of recipes, and recipes against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.measure.comparison import holm

RELABELLINGS: Final = 9_999


@dataclass(frozen=True)
class Run:
    """What a run of the experiment found: replicas of each recipe by name, losses by name, and the analyses."""

    members: Mapping[str, Mapping[str, Any]]
    losses: Mapping[str, Mapping[str, Any]]
    trained: int
    together: xr.DataTree
    alone: Mapping[str, xr.DataTree]
    analysis_seconds: float

    @property
    def summary(self) -> Mapping[str, Any]:
        summary: Mapping[str, Any] = self.together.repaudit.summary
        return summary

    @property
    def scales(self) -> list[str]:
        return [one["name"] for one in self.summary["scales"]]


@dataclass(frozen=True)
class Estimate:
    """A spread with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, dataset: xr.Dataset) -> Estimate:
        return cls(*(float(dataset[name]) for name in ("spread", "low", "high")))

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "not known"
        known = math.isfinite(self.low + self.high)
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if known else f"{self.value:.2f}"

    def against(self, other: Estimate) -> int:
        """Return -1 or 1 where this is below or above another beyond both margins that face each other, else 0."""
        if self.value < other.value:
            return -int(other.value - self.value > math.hypot(self.high - self.value, other.value - other.low))
        return int(self.value - other.value > math.hypot(self.value - self.low, other.high - other.value))


@dataclass(frozen=True)
class Curve:
    """The spread of some models at one layer and scale: three points of its curve, and the summary's entry."""

    models: str
    scale: str
    layer: str
    start: Estimate
    peak: Estimate
    end: Estimate
    entry: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        return str(self.entry["verdict"])

    @property
    def phases(self) -> str:
        if [phase["direction"] for phase in self.entry["phases"]] == ["flat"]:
            return "flat throughout"
        return ", ".join(f"{phase['direction']} {phase['from']} to {phase['to']}" for phase in self.entry["phases"])

    @property
    def settled(self) -> str:
        if self.verdict in {"unrelated", "undecided"}:
            return "no answer"
        return "not before the end" if self.entry["settled"] is None else f"from step {self.entry['settled']}"

    def cells(self) -> tuple[object, ...]:
        peak = self.entry["peak"]
        highest = f"{self.peak} at step {peak['step']}" if peak else "not known"
        agreement = self.entry["agreement"] or "neither shown"
        return self.layer, self.start, highest, self.end, self.verdict, self.phases, self.settled, agreement


def curves_of(models: str, results: xr.DataTree) -> list[Curve]:
    """Return every curve of an analysis, scale by scale."""
    summary, spread = results.repaudit.summary, results["spread"].to_dataset()
    first, *_, last = summary["steps"]
    curves = []
    for index, scale in enumerate(summary["scales"]):
        for layer, entry in ((name, both["scales"][scale["name"]]) for name, both in summary["layers"].items()):
            at = spread.isel(scale=index).sel(layer=layer)
            steps = first, entry["peak"]["step"] if entry["peak"] else first, last
            points = (Estimate.of(at.sel(step=step)) for step in steps)
            curves.append(Curve(models, scale["name"], layer, *points, entry))
    return curves


@dataclass(frozen=True)
class Grouping:
    """Spread within and between recipes at the start and the end, at one layer and scale, and a p-value of the end."""

    scale: str
    layer: str
    start: tuple[float, float]
    end: tuple[float, float]
    pvalue: float

    def cells(self) -> tuple[str, ...]:
        return self.scale, self.layer, *(f"{value:.2f}" for value in (*self.start, *self.end)), f"{self.pvalue:.2g}"


def within_and_between(squared: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean over pairs of equal and of different labels.

    >>> within_and_between(np.array([[0, 1, 5], [1, 0, 7], [5, 7, 0.0]]), np.array([0, 0, 1]))
    (1.0, 6.0)
    """
    i, j = np.triu_indices(len(labels), k=1)
    same, values = labels[i] == labels[j], squared[i, j]
    return float(values[same].mean()), float(values[~same].mean())


def chance(squared: np.ndarray, labels: np.ndarray) -> float:
    """Return how often recipes dealt out at random to the models have a mean within them as small as theirs."""
    rng = np.random.default_rng(0)
    found, _ = within_and_between(squared, labels)
    drawn = (within_and_between(squared, rng.permutation(labels))[0] for _ in range(RELABELLINGS))
    return (1 + sum(value <= found + 1e-12 for value in drawn)) / (1 + RELABELLINGS)


def groupings(run: Run) -> list[Grouping]:
    pairs = run.together["pairs"].to_dataset()
    recipe_of = {name: recipe for recipe, names in run.members.items() for name in names}
    labels = np.array([recipe_of[str(name)] for name in pairs["model"].values])
    found = []
    for index, scale in enumerate(run.scales):
        for layer in map(str, pairs["layer"].values):
            squared = (
                pairs["distance"].isel(scale=index).sel(layer=layer).transpose("step", "model", "other").values ** 2
            )
            ends = (within_and_between(squared[step], labels) for step in (0, -1))
            found.append(Grouping(scale, layer, *ends, chance(squared[-1], labels)))
    adjusted = holm([one.pvalue for one in found])
    return [
        Grouping(one.scale, one.layer, one.start, one.end, float(p)) for one, p in zip(found, adjusted, strict=True)
    ]


def recipe_spreads(run: Run, scale: str) -> dict[tuple[str, str], dict[str, tuple[Estimate, Estimate]]]:
    """Return the spread at start and end by layer, of every recipe and every two of them."""
    groups = run.together["groups"].to_dataset().isel(scale=run.scales.index(scale))
    names = list(run.members)
    return {
        (name, other): {
            str(layer): tuple(
                Estimate.of(groups.sel(layer=layer, group=name, other=other).isel(step=step)) for step in (0, -1)
            )
            for layer in groups["layer"].values
        }
        for name, other in [(a, a) for a in names] + [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    }
