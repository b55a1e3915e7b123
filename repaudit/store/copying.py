"""Copy a store, whole or in part, and export single layers to plain files."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.errors import CorruptStoreError, LayoutError, ModelExistsError, NotInStoreError, StepOrderError
from repaudit.names import (
    ATTRS,
    EPOCH,
    LABEL,
    LAYER,
    LOSS,
    SAMPLE,
    SHA256,
    STEP,
    TEXT,
    TRIGGER,
    WALL_TIME,
    at_home,
    matching,
    matching_layers,
    meant_layer,
)
from repaudit.store.format.encoding import CodecName
from repaudit.store.format.layout import ABSENT, INPUTS_FINGERPRINT, LOST, RECORDED_DTYPE
from repaudit.store.format.sample_set import PREVIEW_1, text_hash
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step, step_checksums
from repaudit.store.read.reader import open_store
from repaudit.store.read.stored_probe_set import StoredProbeSet
from repaudit.store.storage.place import location, open_storage
from repaudit.store.storage.replacing import replacing
from repaudit.store.write.writer import TrajectoryWriter

_SET_BY_WRITER = frozenset({LAYER, INPUTS_FINGERPRINT, "source_dtype", "codec", "keepbits", "long_name", "units"})


def copy_store(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    models: Collection[str] | None = None,
    layers: Collection[str] | None = None,
    steps: Collection[int] | None = None,
    codec: CodecName = "auto",
    keepbits: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[int]]:
    """Copy committed steps into another store, step by step through the commit protocol.

    The copy is of the present format version, and may already hold other models of the same samples. An interrupted
    copy continues where it stopped, once the steps already copied are found equal.
    Memory holds a few steps of one model at a time.

    Parameters
    ----------
    source, destination : path or URL
        Where to copy from, and to; the destination is created if needed.
    models, layers, steps : collection, optional
        What to copy; all by default. A model skips the steps that it does not have.
    codec, keepbits
        How the copy is encoded, as for :class:`repaudit.TrajectoryWriter`; what a lossy source lost stays lost.
    storage_options : mapping, optional
        Passed to fsspec for both ends; local paths need none.
    progress : callable, optional
        Called with (what, done, total) as steps are copied.

    Returns
    -------
    dict
        The steps in the copy, by model.

    Raises
    ------
    NotInStoreError
        If a model, a layer or a step is not in the source.
    ModelExistsError, StepOrderError
        If the destination holds something else under a model's name, or later steps than those to be copied.
    CorruptStoreError
        If a step or a coordinate of the source is missing or damaged.
    LayoutError
        If source and destination are the same.

    See Also
    --------
    repaudit.open_store : Reads a store.

    Examples
    --------
    >>> probe_set = StoredProbeSet("abc", ["s0", "s1"], {"x": np.eye(2)})
    >>> with TrajectoryWriter("memory://all.zarr", model_name="seed0", probe_set=probe_set,
    ...                       layers={"layer.0": ((2, 3), "float32")}) as writer:
    ...     for step in (0, 10):
    ...         writer.append(step, {"layer.0": np.ones((2, 3), "float32")})
    >>> copy_store("memory://all.zarr", "memory://fewer.zarr", steps=[10])
    {'seed0': [10]}
    """
    _refuse_same(source, destination, storage_options)
    tree = open_store(source, storage_options)
    chosen = _choose(models, catalog.models(tree), "model", os.fspath(source))
    if steps is not None:
        recorded = sorted({step for model in chosen for step in catalog.steps(tree, model)})
        _choose(steps, recorded, "step", os.fspath(source))
    copied = {}
    for model in chosen:
        names = _choose(layers, catalog.layers(tree, model), "layer", f"model {model!r}")
        arrays = {name: catalog.activations(tree, model, name) for name in names}
        with TrajectoryWriter(
            destination,
            model_name=model,
            probe_set=stored_probe_set(tree, model),
            layers={name: (array.shape[1:], str(array.attrs["source_dtype"])) for name, array in arrays.items()},
            codec=codec,
            keepbits=keepbits,
            layer_attrs={name: _more_attributes(array) for name, array in arrays.items()},
            model_attrs=_model_attributes(tree, model),
            storage_options=storage_options,
        ) as writer:
            _copy_steps(writer, tree, model, arrays, steps, progress)
        copied[model] = writer.committed
    return copied


def _refuse_same(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], options: Mapping[str, Any] | None
) -> None:
    ends = [open_storage(url, options) for url in (source, destination)]
    one, other = (location(end) for end in ends)
    if other == one or other.startswith(f"{one}/"):
        raise LayoutError(f"{ends[0].url} cannot be copied into itself: expected another destination")


def _copy_steps(
    writer: TrajectoryWriter,
    tree: xr.DataTree,
    model: str,
    arrays: Mapping[str, xr.DataArray],
    steps: Collection[int] | None,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    recorded = catalog.steps(tree, model)
    chosen = [step for step in recorded if steps is None or step in steps]
    sums = {name: step_checksums(tree, model, name) for name in arrays}

    def values(step: int) -> dict[str, Any]:
        read = {name: read_step(tree, model, name, step, sums[name][step]) for name in arrays}
        return {name: _as_source(np.ascontiguousarray(array.values), array) for name, array in read.items()}

    todo = [step for step in chosen if step not in set(writer.steps)]
    if todo and writer.steps and todo[0] < writer.steps[-1]:
        raise StepOrderError(
            f"the destination holds model {model!r} up to step {writer.steps[-1]}; step {todo[0]} is earlier, and a "
            f"copy only adds later ones: copy all steps to another path or URL"
        )
    for step in writer.steps:
        if step not in recorded or writer.checksums(step) != writer.would_be(values(step)):
            raise ModelExistsError(
                f"the destination holds another model {model!r}: its step {step} differs from the source, and nothing "
                f"was copied; choose another destination"
            )
    rows = _step_rows(tree, model)
    for count, step in enumerate(todo, start=1):
        writer.append(step, values(step), **rows[step], copy=False)
        if progress is not None:
            progress(f"steps of {model}", count, len(todo))


def _step_rows(tree: xr.DataTree, model: str) -> dict[int, dict[str, Any]]:
    """Return the coordinates of each step as a writer takes them."""
    try:
        dataset = catalog.model_dataset(tree, model)[[EPOCH, LOSS, TRIGGER, WALL_TIME]].load()
    except (OSError, ValueError) as error:
        raise CorruptStoreError(
            f"a coordinate of model {model!r} cannot be read ({error}): run `repaudit verify --data`"
        ) from error
    rows = {}
    for index, step in enumerate(dataset[STEP].values.tolist()):
        row = dataset.isel({STEP: index})
        microseconds = row[WALL_TIME].values.astype("datetime64[us]").astype(np.int64)
        rows[step] = {
            EPOCH: _known(row[EPOCH]),
            LOSS: _known(row[LOSS]),
            TRIGGER: str(row[TRIGGER].values) or None,
            WALL_TIME: 0.0 if np.isnat(row[WALL_TIME].values) else int(microseconds) / 1e6,
        }
    return rows


def _known(value: xr.DataArray) -> float | None:
    number = float(value)
    return None if np.isnan(number) else number


def _as_source(values: Any, array: xr.DataArray) -> Any:
    """Return the values in the dtype they were recorded in; bfloat16 stored as float32 is restored exactly."""
    if array.attrs["source_dtype"] != "bfloat16":
        return values
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)


def _more_attributes(array: xr.DataArray) -> dict[str, Any]:
    kept = {name: value for name, value in array.attrs.items() if name not in _SET_BY_WRITER}
    if array.attrs.get("codec") == "lossy":  # the copy may be exact, but of values that were rounded
        kept["copied_from"] = {"codec": "lossy", "keepbits": array.attrs.get("keepbits")}
    return kept


def _model_attributes(tree: xr.DataTree, model: str) -> dict[str, Any]:
    attrs = catalog.model_dataset(tree, model).attrs
    facts = catalog.facts(tree, model) | ({LOST: attrs[LOST]} if LOST in attrs else {})
    kept = {name: value for name, value in facts.items() if name not in {"name", "committed", "gaps", "created"}}
    return {**kept, "copied_gaps": facts["gaps"]} if facts["gaps"] else kept


def _choose(wanted: Collection[Any] | None, present: Collection[Any], what: str, where: str) -> list[Any]:
    if wanted is None:
        return list(present)
    find = matching_layers if what == "layer" else matching
    meant = {item: find(item, present) if isinstance(item, str) else {item} & {*present} for item in wanted}
    missing = [item for item in meant if not meant[item]]
    if missing:
        raise NotInStoreError(
            f"no {what} {', '.join(map(repr, missing))} in {where}: it has {', '.join(map(repr, present))}"
        )
    chosen = {item for some in meant.values() for item in some}
    return [item for item in present if item in chosen]


def stored_probe_set(tree: xr.DataTree, model: str | None = None) -> StoredProbeSet:
    """Return the samples of an open store in the encoding that a model read; by default that of the first model.

    Raises
    ------
    CorruptStoreError
        If a part of it is missing or damaged.
    NotInStoreError
        If the store has no such model.
    """
    try:
        return _stored_probe_set(tree, model)
    except (OSError, ValueError) as error:
        raise CorruptStoreError(f"the probe set cannot be read ({error}): run `repaudit verify --data`") from error


def _stored_probe_set(tree: xr.DataTree, model: str | None) -> StoredProbeSet:
    root = tree.to_dataset()
    facts = root.attrs[ATTRS]
    gone = root.attrs.get(LOST, ())
    known = {
        name: [str(value) for value in root[name].values] if name in root and name not in gone else None
        for name in (SAMPLE, LABEL, TEXT, SHA256)
    }
    encoded = catalog.inputs(tree, model, damaged=True)
    absent = frozenset(str(encoded[key].attrs.get("input", key)) for key in encoded.attrs.get(ABSENT, ()))
    if (facts.get("raw") == "text" or absent) and known[SHA256] is None and facts["version"] > 1:
        raise CorruptStoreError("what the samples are known by is lost (sha256): restore it from a backup")
    arrays = {str(array.attrs.get("input", key)): _as_recorded(array) for key, array in encoded.data_vars.items()}
    return StoredProbeSet(
        str(encoded.attrs.get(INPUTS_FINGERPRINT, facts["fingerprint"])),
        known[SAMPLE] or [],
        arrays,
        known[LABEL],
        known[TEXT],
        _text_hashes(facts, known),
        {} if model is None else catalog.encoding(tree, model),
        absent,
        known[SHA256] if absent and facts.get("raw") == "inputs" else None,
    )


def _as_recorded(values: xr.DataArray) -> NDArray[Any]:
    """Return an input with the dtype that was recorded; where this cannot say what is missing, that is 0."""
    dtype = values.attrs.get(RECORDED_DTYPE)
    return np.asarray(values.values) if dtype is None else np.zeros(values.shape, dtype)


def _text_hashes(facts: Mapping[str, Any], known: Mapping[str, list[str] | None]) -> list[str] | None:
    """Return the hashes of the samples' texts, if these are what a store knows them by.

    A store of version 1 kept previews of 200 characters: where all are shorter, they are the texts.
    """
    texts = known[TEXT]
    if facts["version"] == 1 and texts is not None and max(map(len, texts)) < PREVIEW_1:
        return [text_hash(text) for text in texts]
    return known[SHA256] if facts.get("raw") == "text" else None


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

    ``.npy`` holds only the activations and is written step by step; ``.safetensors`` also holds ``step``, and model,
    layer and fingerprint in its metadata. An earlier file stays until the new one is whole.

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
    target = at_home(path)
    if target.suffix not in {".npy", ".safetensors"}:
        raise LayoutError(f"path {target.name!r}: expected one that ends in .npy or .safetensors")
    if target.is_dir():
        raise LayoutError(f"path {target.name!r}: expected a file, found a folder of that name")
    tree = open_store(source, storage_options)
    layer = meant_layer(layer, catalog.layers(tree, model))
    array, sums = catalog.activations(tree, model, layer), step_checksums(tree, model, layer)
    chosen = _choose(steps, catalog.steps(tree, model), "step", f"model {model!r}")
    shape = (len(chosen), *array.shape[1:])
    with replacing(target) as stream:
        if target.suffix == ".npy":
            header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for step in chosen:
                stream.write(np.ascontiguousarray(read_step(tree, model, layer, step, sums[step]).values).data)
        else:
            from safetensors.numpy import save

            metadata = {"model": model, "layer": layer, "fingerprint": catalog.fingerprint(tree, model)}
            values = np.empty(shape, array.dtype)
            for index, step in enumerate(chosen):
                values[index] = read_step(tree, model, layer, step, sums[step]).values
            stream.write(save({"activations": values, "step": np.array(chosen, dtype=np.int64)}, metadata))
    return shape
