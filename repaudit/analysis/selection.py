"""What is analysed: which models, layers and steps of a store, and what is left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.names import TOKEN
from repaudit.store.read import catalog

T = TypeVar("T", str, int)


@dataclass(frozen=True)
class Selection:
    """The models, layers and steps to analyse, in the store's order, and one line for everything left out."""

    models: tuple[str, ...]
    layers: tuple[str, ...]
    steps: Mapping[str, tuple[int, ...]]
    layers_of: Mapping[str, frozenset[str]]
    left_out: tuple[str, ...] = ()

    def keys(self, layer: str) -> list[tuple[str, int]]:
        """Return (model, step) of every operator of one layer, model by model."""
        return [(model, step) for model in self.models if layer in self.layers_of[model] for step in self.steps[model]]

    def alone(self) -> dict[str, str]:
        """Return the layers that one of several models has, each with that model: nothing is compared in them."""
        if len(self.models) < 2:
            return {}
        having = {layer: [model for model in self.models if layer in self.layers_of[model]] for layer in self.layers}
        return {layer: models[0] for layer, models in having.items() if len(models) == 1}

    def all_steps(self) -> list[int]:
        """Return every step that at least one model has, increasing."""
        return sorted({step for steps in self.steps.values() for step in steps})


def select(
    tree: xr.DataTree,
    models: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
) -> Selection:
    """Choose what to analyse; ``None`` means everything.

    Raises
    ------
    AnalysisError
        A model, layer or step that was asked for is not in the store, or nothing is left.
    """
    present = catalog.models(tree)
    chosen = _choose("model", models, present)
    recorded = {model: catalog.steps(tree, model) for model in chosen}
    left_out = [f"model {model}: no committed step yet" for model in chosen if not recorded[model]]
    chosen = [model for model in chosen if recorded[model]]
    if not chosen:
        raise AnalysisError(
            f"expected at least one model with a committed step, found none among {present or 'no models'}; "
            "record at least one audit first"
        )
    _choose("step", steps, sorted({step for model in chosen for step in recorded[model]}))
    wanted = {model: _wanted(recorded[model], steps) for model in chosen}
    layers_of = {model: catalog.layers(tree, model) for model in chosen}
    names = _choose("layer", layers, list(dict.fromkeys(name for model in chosen for name in layers_of[model])))
    operators = [name for name in names if catalog.holds_operators(_first(tree, name, layers_of))]
    left_out += [
        f"layer {name}: has operators computed during training, which are not computed again" for name in operators
    ]
    names = [name for name in names if name not in operators]
    pooled = [name for name in names if not _keeps_tokens(tree, name, layers_of)]
    left_out += [
        f"layer {name}: keeps its tokens; operators need one row per sample" for name in names if name not in pooled
    ]
    if not pooled:
        raise AnalysisError(
            "expected at least one pooled layer (sample, feature), found only layers with a token dimension or of "
            "operators; record activations with reduce='mean'"
        )
    empty = [name for name in pooled if not any(wanted[model] for model in chosen if name in layers_of[model])]
    left_out += [f"layer {name}: no model with this layer has one of these steps" for name in empty]
    pooled = [name for name in pooled if name not in empty]
    left_out += _mismatches(chosen, pooled, layers_of, wanted)
    return Selection(
        tuple(chosen), tuple(pooled), wanted, {m: frozenset(layers_of[m]) for m in chosen}, tuple(left_out)
    )


def _choose(what: str, asked: Iterable[T] | None, present: Sequence[T]) -> list[T]:
    if asked is None:
        return list(present)
    asked = list(dict.fromkeys(asked))
    if not asked:
        raise AnalysisError(f"expected at least one {what}, found none; the store has {', '.join(map(str, present))}")
    unknown = [item for item in asked if item not in present]
    if unknown:
        raise AnalysisError(
            f"{what} {', '.join(map(str, unknown))} is not in the store; it has {', '.join(map(str, present))}"
        )
    return [item for item in present if item in asked]


def _wanted(recorded: Sequence[int], steps: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(recorded) if steps is None else tuple(step for step in recorded if step in set(steps))


def _keeps_tokens(tree: xr.DataTree, layer: str, layers_of: Mapping[str, list[str]]) -> bool:
    return TOKEN in _first(tree, layer, layers_of).dims


def _first(tree: xr.DataTree, layer: str, layers_of: Mapping[str, list[str]]) -> xr.DataArray:
    model = next(model for model, layers in layers_of.items() if layer in layers)
    return catalog.activations(tree, model, layer)


def _mismatches(
    models: Sequence[str],
    layers: Sequence[str],
    layers_of: Mapping[str, list[str]],
    steps: Mapping[str, tuple[int, ...]],
) -> list[str]:
    lines = []
    for layer in layers:
        lacking = [model for model in models if layer not in layers_of[model]]
        if lacking:
            lines.append(f"layer {layer}: not recorded in {', '.join(lacking)}")
    every = sorted({step for model in models for step in steps[model]})
    for model in models:
        missing = [step for step in every if step not in set(steps[model])]
        if missing:
            lines.append(f"model {model}: lacks {len(missing)} of {len(every)} steps ({_brief(missing)})")
    return lines


def _brief(steps: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, steps[:most]))
    return shown if len(steps) <= most else f"{shown}, ... {steps[-1]}"
