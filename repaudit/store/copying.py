"""Copy a store, whole or in part, and export single layers to plain files."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.errors import CorruptStoreError, LayoutError, NotInStoreError
from repaudit.names import ATTRS, CHECKSUM, EPOCH, LABEL, LAYER, LOSS, PROBE, SAMPLE, STEP, TEXT, TRIGGER, WALL_TIME
from repaudit.store import catalog
from repaudit.store.encoding import checksum
from repaudit.store.probe import StoredProbeSet
from repaudit.store.reader import open_store
from repaudit.store.writer import TrajectoryWriter

_OWN_ATTRIBUTES = frozenset({LAYER, "source_dtype", "codec", "keepbits", "long_name", "units"})


def copy_store(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    models: Collection[str] | None = None,
    layers: Collection[str] | None = None,
    steps: Collection[int] | None = None,
    codec: str = "auto",
    keepbits: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, list[int]]:
    """Copy committed steps into another store, step by step through the commit protocol.

    A copy that was interrupted goes on where it stopped. Memory holds a few steps of one model at a time.

    Parameters
    ----------
    source, destination : path or URL
    models, layers, steps : collection, optional
        What to copy; all by default. Steps that a model does not have are left out for that model.
    codec, keepbits
        How the copy is encoded, as for :class:`TrajectoryWriter`; what a lossy source has lost stays lost.
    storage_options : mapping, optional
        Handed to fsspec for both ends; local paths need none.

    Returns
    -------
    dict
        The steps now in the copy, by model.

    Raises
    ------
    NotInStoreError
        If a model, a layer or a step is not in the source.
    """
    tree = open_store(source, storage_options)
    chosen = _choose(models, catalog.models(tree), "model", os.fspath(source))
    if steps is not None:
        _choose(steps, {step for model in chosen for step in catalog.steps(tree, model)}, "step", os.fspath(source))
    probe_set = stored_probe_set(tree)
    copied = {}
    for model in chosen:
        names = _choose(layers, catalog.layers(tree, model), "layer", f"model {model!r}")
        arrays = {name: catalog.activations(tree, model, name) for name in names}
        with TrajectoryWriter(
            destination,
            model_name=model,
            probe_set=probe_set,
            layers={name: (array.shape[1:], str(array.attrs["source_dtype"])) for name, array in arrays.items()},
            codec=codec,
            keepbits=keepbits,
            layer_attrs={name: _more_attributes(array) for name, array in arrays.items()},
            model_attrs=_model_attributes(tree, model),
            storage_options=storage_options,
        ) as writer:
            _copy_steps(writer, tree, model, arrays, steps)
        copied[model] = writer.committed
    return copied


def _copy_steps(
    writer: TrajectoryWriter,
    tree: xr.DataTree,
    model: str,
    arrays: Mapping[str, xr.DataArray],
    steps: Collection[int] | None,
) -> None:
    dataset = catalog.model_dataset(tree, model)
    rows = dataset[[EPOCH, LOSS, TRIGGER, WALL_TIME]].load()
    done = set(writer.steps)
    for index, step in enumerate(dataset[STEP].values.tolist()):
        if step in done or (steps is not None and step not in steps):
            continue
        row = rows.isel({STEP: index})
        values = {name: _as_source(_checked_step(tree, model, name, step), array) for name, array in arrays.items()}
        microseconds = row[WALL_TIME].values.astype("datetime64[us]").astype(np.int64)
        writer.append(
            step,
            values,
            epoch=_known(row[EPOCH]),
            loss=_known(row[LOSS]),
            trigger=str(row[TRIGGER].values) or None,
            wall_time=int(microseconds) / 1e6,
            copy=False,
        )


def _checked_step(tree: xr.DataTree, model: str, layer: str, step: int) -> NDArray[Any]:
    """Read one step of one layer and compare it with its checksum: a missing chunk would read as NaN."""
    dataset = catalog.model_dataset(tree, model)
    array = catalog.activations(tree, model, layer)
    index = dataset[STEP].values.tolist().index(step)
    column = [str(name) for name in dataset[LAYER].values].index(layer)
    try:
        values = np.ascontiguousarray(array[index].values)
        sound = checksum(values) == int(dataset[CHECKSUM][index, column])
        reason = "it is missing, or does not match its checksum"
    except Exception as error:  # noqa: BLE001 - a damaged chunk may fail in any decoder
        sound, reason = False, f"it cannot be decoded ({error})"
    if not sound:
        raise CorruptStoreError(
            f"Step {step} of layer {layer!r} of model {model!r}: {reason}. Run `repaudit verify --data`."
        )
    return values


def _known(value: xr.DataArray) -> float | None:
    number = float(value)
    return None if np.isnan(number) else number


def _as_source(values: Any, array: xr.DataArray) -> Any:
    """Give the values in the dtype they were recorded in; float32 images of bfloat16 go back without loss."""
    if array.attrs["source_dtype"] != "bfloat16":
        return values
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)


def _more_attributes(array: xr.DataArray) -> dict[str, Any]:
    kept = {name: value for name, value in array.attrs.items() if name not in _OWN_ATTRIBUTES}
    if array.attrs.get("codec") == "lossy":  # the copy may be exact, but of values that were rounded
        kept["copied_from"] = {"codec": "lossy", "keepbits": array.attrs.get("keepbits")}
    return kept


def _model_attributes(tree: xr.DataTree, model: str) -> dict[str, Any]:
    own = catalog.model_dataset(tree, model).attrs[ATTRS]
    kept = {name: value for name, value in own.items() if name not in {"name", "committed", "gaps", "created"}}
    return {**kept, "copied_gaps": own["gaps"]} if own["gaps"] else kept


def _choose(wanted: Collection[Any] | None, present: Collection[Any], what: str, where: str) -> list[Any]:
    if wanted is None:
        return list(present)
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise NotInStoreError(
            f"No {what} {', '.join(map(repr, missing))} in {where}: it has {', '.join(map(repr, sorted(present)))}."
        )
    return [item for item in present if item in wanted]


def stored_probe_set(tree: xr.DataTree) -> StoredProbeSet:
    """Give the probe set of an open store."""
    root = tree.to_dataset()
    inputs = {
        str(array.attrs.get("input", key)): np.asarray(array.values)
        for key, array in tree.children[PROBE].to_dataset(inherit=False).data_vars.items()
    }
    labels, texts = ([str(value) for value in root[name].values] if name in root else None for name in (LABEL, TEXT))
    ids = [str(value) for value in root[SAMPLE].values]
    return StoredProbeSet(str(root.attrs[ATTRS]["fingerprint"]), ids, inputs, labels, texts)


def export_layer(
    source: str | os.PathLike[str],
    model: str,
    layer: str,
    path: str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Write one layer (step, sample[, token], feature) to a ``.npy`` or ``.safetensors`` file.

    ``.npy`` holds the activations alone and is written step by step; ``.safetensors`` also holds ``step``, and model,
    layer and fingerprint in its metadata.

    Returns
    -------
    tuple of int
        The shape written.

    Raises
    ------
    NotInStoreError
        If model, layer or a step is not in the store.
    CorruptStoreError
        If a step is missing or damaged.
    LayoutError
        If the path ends in neither ``.npy`` nor ``.safetensors``.
    """
    target = Path(path)
    if target.suffix not in {".npy", ".safetensors"}:
        raise LayoutError(f"Cannot export to {target.name!r}: expected a path that ends in .npy or .safetensors.")
    tree = open_store(source, storage_options)
    array = catalog.activations(tree, model, layer)
    chosen = _choose(steps, catalog.steps(tree, model), "step", f"model {model!r}")
    shape = (len(chosen), *array.shape[1:])
    if target.suffix == ".npy":
        out = np.lib.format.open_memmap(target, mode="w+", dtype=array.dtype, shape=shape)
        for index, step in enumerate(chosen):
            out[index] = _checked_step(tree, model, layer, step)
        out.flush()
    else:
        from safetensors.numpy import save_file

        metadata = {"model": model, "layer": layer, "fingerprint": str(tree.attrs[ATTRS]["fingerprint"])}
        values = np.empty(shape, array.dtype)
        for index, step in enumerate(chosen):
            values[index] = _checked_step(tree, model, layer, step)
        save_file({"activations": values, "step": np.array(chosen, dtype=np.int64)}, target, metadata=metadata)
    return shape
