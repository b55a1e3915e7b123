"""What is analysed: which models, layers and steps of a store, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, TypeVar

import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.measure.curve import of_most_models
from repaudit.names import KIND, TOKEN, matching_layers, matching_models
from repaudit.store.read import catalog
from repaudit.store.read.stand_ins import stands_in

T = TypeVar("T", str, int)

_UNFITTING: Final = {
    False: "keeps its tokens; operators need one row per sample: analyse its tokens (tokens='samples', --tokens)",
    True: "has its tokens pooled",
}
_NO_LAYER: Final = {
    False: "expected at least one pooled layer (sample, feature), found only layers with a token dimension or of "
    "operators; record activations with reduce='mean', or analyse tokens (tokens='samples', --tokens)",
    True: "expected at least one layer (sample, token, feature), found only pooled ones or of operators; record "
    "activations with reduce='all' (--pooling all)",
}


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
    *,
    tokens: bool = False,
) -> Selection:
    """Choose what to analyse; ``None`` means everything. Layers are those that pooled their tokens, or that kept them.

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
    known = list(dict.fromkeys(name for model in chosen for name in layers_of[model]))
    names = _choose("layer", _by_layer(layers, known, tree, layers_of), known)
    operators = [name for name in names if _beside_activations(_first(tree, name, layers_of))]
    left_out += [
        f"layer {name}: has operators that were recorded beside activations, of which its own are computed"
        for name in operators
    ]
    names = [name for name in names if name not in operators]
    fitting = [name for name in names if _keep_tokens(tree, name, layers_of) == {tokens}]
    left_out += [f"layer {name}: {_UNFITTING[tokens]}" for name in names if name not in fitting]
    if not fitting:
        raise AnalysisError(_NO_LAYER[tokens])
    empty = [name for name in fitting if not any(wanted[model] for model in chosen if name in layers_of[model])]
    left_out += [f"layer {name}: no model with this layer has one of these steps" for name in empty]
    fitting = [name for name in fitting if name not in empty]
    left_out += [line for model in chosen for line in _gaps(tree, model, steps)]
    left_out += _mismatches(chosen, fitting, layers_of, wanted)
    return Selection(
        tuple(chosen), tuple(fitting), wanted, {m: frozenset(layers_of[m]) for m in chosen}, tuple(left_out)
    )


def _choose(what: str, asked: Iterable[T] | None, present: Sequence[T]) -> list[T]:
    if asked is None:
        return list(present)
    asked = list(dict.fromkeys(asked))
    if not asked:
        raise AnalysisError(f"expected at least one {what}, found none; the store has {_brief(present, most=40)}")
    find = matching_layers if what == "layer" else matching_models
    found = {item: find(item, present) if isinstance(item, str) else {item} & {*present} for item in asked}
    unknown = [item for item, meant in found.items() if not meant]
    if unknown:
        several = any("," in str(item) for item in unknown)
        raise AnalysisError(
            f"{what} {', '.join(map(str, unknown))} is not in the store; it has {_brief(present, most=40)}"
            + (f"; several {what}s are a list" if several else "")
        )
    chosen = {item for meant in found.values() for item in meant}
    return [item for item in present if item in chosen]


def _by_layer(
    asked: Sequence[str] | None, known: Sequence[str], tree: xr.DataTree, layers_of: Mapping[str, list[str]]
) -> Sequence[str] | None:
    """Return the layers asked for, those of ``<layer>@operator`` that stand in for activations by the layer's name."""
    if asked is None or all(matching_layers(name, known) for name in asked):
        return asked
    recorded = {
        catalog.activations(tree, model, name).attrs[KIND]: name
        for model, names in layers_of.items()
        for name in names
        if stands_in(catalog.activations(tree, model, name))
    }
    meant = []
    for name in asked:
        of, _, kind = name.rpartition("@")
        meant.append(of if kind in recorded and not matching_layers(name, known) else name)
    return meant


def _wanted(recorded: Sequence[int], steps: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(recorded) if steps is None else tuple(step for step in recorded if step in set(steps))


def _keep_tokens(tree: xr.DataTree, layer: str, layers_of: Mapping[str, list[str]]) -> set[bool]:
    """Return whether the models' activations in a layer have a token dim: of one kind of layer it is one answer."""
    having = [model for model, layers in layers_of.items() if layer in layers]
    return {TOKEN in catalog.activations(tree, model, layer).dims for model in having}


def _beside_activations(array: xr.DataArray) -> bool:
    """Whether a layer of operators has a name of its own, since its model kept the activations too."""
    return catalog.holds_operators(array) and not stands_in(array)


def _first(tree: xr.DataTree, layer: str, layers_of: Mapping[str, list[str]]) -> xr.DataArray:
    model = next(model for model, layers in layers_of.items() if layer in layers)
    return catalog.activations(tree, model, layer)


def _gaps(tree: xr.DataTree, model: str, steps: Sequence[int] | None) -> list[str]:
    """Say which audits of a model failed or could not be stored, and why the first one did."""
    recorded = catalog.steps(tree, model)
    gaps = [gap for gap in catalog.gaps(tree, model) if gap["step"] not in recorded]
    gaps = [gap for gap in gaps if steps is None or gap["step"] in steps]
    if not gaps:
        return []
    missing = [int(gap["step"]) for gap in gaps]
    first = f"; that of {missing[0]}" if len(missing) > 1 else ""
    return [
        f"model {model} at step{'s' * (len(missing) > 1)} {_brief(missing)}: not recorded{first}: {gaps[0]['reason']}"
    ]


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
            lines.append(
                f"layer {layer}: not recorded in {', '.join(lacking)}; the layer is of the other "
                + (f"{len(models) - len(lacking)} models" if len(models) - len(lacking) > 1 else "model alone")
            )
    every = sorted({step for model in models for step in steps[model]})
    for model in models:
        missing = [step for step in every if step not in set(steps[model])]
        if missing:
            lines.append(
                f"model {model} at {len(missing)} of {len(every)} steps, which it has not recorded: {_brief(missing)}"
            )
    return [*lines, *_going_on(models, steps)]


def _going_on(models: Sequence[str], steps: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Say which models go on together where others end: a verdict is of the steps that most models share."""
    counts = Counter(step for model in models for step in steps[model])
    every = sorted(counts)
    most = list(compress(every, of_most_models([counts[step] for step in every])))
    shared, last = counts[most[-1]], most[-1]
    beyond = [step for step in every if counts[step] > 1 and step > last]
    if not beyond:
        return []
    going = [model for model in models if max(beyond) in steps[model]]
    return [
        f"verdicts are of the steps that {shared} models share, up to {last}; {', '.join(going)} go on "
        f"together to {max(beyond)}: choose them (--models) for a verdict up to there"
    ]


def _brief(steps: Sequence[object], most: int = 8) -> str:
    shown = ", ".join(map(str, steps[:most]))
    return shown if len(steps) <= most else f"{shown}, ... {steps[-1]}"
