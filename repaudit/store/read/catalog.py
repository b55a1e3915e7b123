"""What a store holds, by real names: models, layers, steps, activations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from repaudit.errors import CorruptStoreError, NotInStoreError
from repaudit.names import (
    ATTRS,
    GAUGE,
    KIND,
    LABEL,
    LAYER,
    MODEL,
    MODELS,
    OPERATOR,
    PROBE,
    SAMPLE,
    SKETCH,
    STEP,
    in_natural_order,
)
from repaudit.store.format.layout import ABSENT, ENCODING, INPUTS_FINGERPRINT, LOST, UNREADABLE
from repaudit.store.format.sample_set import inputs_key


def models(tree: xr.DataTree) -> list[str]:
    """Return the names of the models in natural order: seed2 before seed10.

    Examples
    --------
    >>> models(xr.DataTree())
    []
    """
    return sorted(_groups(tree), key=in_natural_order)


def layers(tree: xr.DataTree, model: str) -> list[str]:
    """Return the names of a model's layers, in the order they were recorded."""
    dataset = model_dataset(tree, model)
    recorded = [str(name) for name in dataset[LAYER].values] if LAYER in dataset.coords else []
    present = [str(array.attrs[LAYER]) for array in dataset.data_vars.values() if LAYER in array.attrs]
    known = {name: place for place, name in enumerate(recorded)}
    return sorted(present, key=lambda name: (known.get(name, len(known)), in_natural_order(name)))


def steps(tree: xr.DataTree, model: str) -> list[int]:
    """Return a model's committed steps."""
    return [int(step) for step in model_dataset(tree, model)[STEP].values]


def gaps(tree: xr.DataTree, model: str) -> list[dict[str, Any]]:
    """Return the steps that were due and not stored, each with its reason."""
    return list(facts(tree, model).get("gaps", []))


def activations(tree: xr.DataTree, model: str, layer: str) -> xr.DataArray:
    """Return the lazy activations (step, sample[, token], feature) of one layer, with the sample's coordinates.

    Raises
    ------
    NotInStoreError
        If the store has no such model or layer.
    """
    for array in model_dataset(tree, model).data_vars.values():
        if array.attrs.get(LAYER) == layer:
            return array
    known = layers(tree, model)
    plain = layer.removesuffix(f"@{OPERATOR}").removesuffix(f"@{SKETCH}")
    readers = {plain: "activations", f"{plain}@{OPERATOR}": "operators", f"{plain}@{SKETCH}": "sketches"}
    hint = next((f"; {reader}() reads {name!r}" for name, reader in readers.items() if name in known), "")
    raise NotInStoreError(f"model {model!r} has no layer {layer!r}: it has {', '.join(known)}{hint}")


def holds_operators(array: xr.DataArray) -> bool:
    """Return whether a layer holds diffusion operators (step, sample, neighbor) instead of activations.

    Examples
    --------
    >>> holds_operators(xr.DataArray(0.0, attrs={"kind": "operator"}))
    True
    """
    return bool(array.attrs.get(KIND) == OPERATOR)


def model_dataset(tree: xr.DataTree, model: str) -> xr.Dataset:
    """Return the dataset of one model, with the sample ids of the root."""
    groups = _groups(tree)
    if model not in groups:
        if model in tree.attrs.get(UNREADABLE, ()):
            raise NotInStoreError(
                f"model {model!r} is damaged and left out: run `repaudit verify`, then `repaudit repair`"
            )
        raise NotInStoreError(f"the store has no model {model!r}: it has {', '.join(models(tree)) or 'none'}")
    return groups[model].to_dataset()


def inputs(tree: xr.DataTree, model: str | None = None, *, damaged: bool = False) -> xr.Dataset:
    """Return the encoded inputs that a model read, samples along the first dim; by default the first encoding.

    Raises
    ------
    NotInStoreError
        If the store has no such model, or not its inputs.
    CorruptStoreError
        If a part of them is missing or damaged, unless `damaged` ones are wanted too.
    """
    probe = tree.children[PROBE]
    if not probe.children:  # format version 1: one encoding
        return _whole(probe, damaged)
    wanted = str(tree.attrs[ATTRS]["fingerprint"]) if model is None else fingerprint(tree, model)
    key = inputs_key(wanted)
    if key not in probe.children:
        raise NotInStoreError(f"the store lacks the inputs {wanted} of model {model!r}: run `repaudit verify`")
    return _whole(probe.children[key], damaged)


def _whole(inputs: xr.DataTree, damaged: bool) -> xr.Dataset:
    absent = inputs.attrs.get(ABSENT)
    if absent and not damaged:
        raise CorruptStoreError(
            f"values of the inputs {', '.join(absent)} in {inputs.path} are missing or damaged: restore them from a "
            "backup, or record with the same inputs again"
        )
    return inputs.to_dataset(inherit=False)


def all_inputs(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return every encoding of the samples that the store has, by its fingerprint."""
    probe = tree.children[PROBE]
    if not probe.children:
        return {str(tree.attrs[ATTRS]["fingerprint"]): probe.to_dataset(inherit=False)}
    datasets = [probe.children[key].to_dataset(inherit=False) for key in sorted(probe.children)]
    return {str(dataset.attrs[INPUTS_FINGERPRINT]): dataset for dataset in datasets}


def inputs_of_models(tree: xr.DataTree, models: Sequence[str]) -> dict[str, xr.Dataset]:
    """Return the encodings that some models read, each once, by fingerprint.

    Raises
    ------
    NotInStoreError, CorruptStoreError
        As :func:`inputs`.
    """
    names = {fingerprint(tree, model): model for model in models}
    return {read: inputs(tree, model) for read, model in names.items()}


def fingerprint(tree: xr.DataTree, model: str) -> str:
    """Return the fingerprint of the inputs that a model read."""
    return str(facts(tree, model).get(INPUTS_FINGERPRINT, tree.attrs[ATTRS]["fingerprint"]))


def encoding(tree: xr.DataTree, model: str) -> dict[str, Any]:
    """Return how a model's texts were encoded, as far as it was recorded: tokenizer, length, number of cut texts."""
    known = facts(tree, model)
    return {name: known[name] for name in ENCODING if name in known}


def lost(tree: xr.DataTree) -> list[str]:
    """Say what of a store is read as missing because it is damaged, or was when the store was repaired.

    Examples
    --------
    >>> lost(xr.DataTree(xr.Dataset(attrs={"lost": ["label"]})))
    ['label of the samples']
    """
    found = [f"model {name}" for name in tree.attrs.get(UNREADABLE, ())]
    found += [f"{name} of the samples" for name in tree.attrs.get(LOST, ())]
    for node in tree.children[PROBE].subtree if PROBE in tree.children else ():
        found += [f"input {name} of the samples" for name in node.attrs.get(ABSENT, ())]
    groups = _groups(tree)
    for model in models(tree):
        found += [f"{name} of model {model}" for name in groups[model].attrs.get(LOST, ())]
    return found


def _groups(tree: xr.DataTree) -> dict[str, xr.DataTree]:
    if MODELS not in tree.children:
        return {}
    groups = {}
    for key, node in tree.children[MODELS].children.items():
        groups[str(node.attrs.get(MODEL) or _facts(node.attrs).get("name", key))] = node
    return groups


def facts(tree: xr.DataTree, model: str) -> dict[str, Any]:
    """Return what was recorded of a model: versions, gaps, metadata of the run."""
    return _facts(model_dataset(tree, model).attrs)


def _facts(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a dict from the text that an opened store has, or as plain xarray gives it."""
    found = attrs.get(ATTRS, {})
    decoded: dict[str, Any] = json.loads(found) if isinstance(found, str) else dict(found)
    return decoded


def describe(tree: xr.DataTree) -> dict[str, Any]:
    """Return what a store holds in plain types, as ``repaudit info`` prints it."""
    attributes = tree.attrs[ATTRS]
    known = LABEL in tree.variables and LABEL not in tree.attrs.get(LOST, ())
    labels = tree.to_dataset()[LABEL].values if known else ()
    return {
        "version": attributes["version"],
        "fingerprint": attributes["fingerprint"],
        "samples_fingerprint": attributes.get("samples_fingerprint"),
        "created": attributes.get("created"),
        "samples": tree.sizes.get(SAMPLE, 0),
        "labels": sorted({str(label) for label in labels}, key=in_natural_order),
        "models": [_describe_model(tree, model) for model in models(tree)],
        "lost": lost(tree),
    }


def _describe_model(tree: xr.DataTree, model: str) -> dict[str, Any]:
    arrays = {layer: activations(tree, model, layer) for layer in layers(tree, model)}
    return {
        "name": model,
        "steps": steps(tree, model),
        "gaps": gaps(tree, model),
        "encoding": encoding(tree, model),
        "layers": [
            {
                "name": layer,
                "dims": list(array.dims),
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                **({GAUGE: array.attrs[GAUGE].get("given", array.attrs[GAUGE])} if GAUGE in array.attrs else {}),
            }
            for layer, array in arrays.items()
        ],
    }
