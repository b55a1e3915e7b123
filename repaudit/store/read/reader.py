"""Open a store: lazy, committed steps only, and only a repaudit store of a known version and a believable size."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import xarray as xr
from zarr.storage import FsspecStore, LocalStore

from repaudit.errors import CorruptStoreError, StoreError, StoreWarning
from repaudit.names import ATTRS, LAYER, MODEL, MODELS, TRIGGER, decode_name, in_natural_order
from repaudit.store.check.rebuilt_root import attributes_of
from repaudit.store.format.layout import ABSENT, COLUMNS, LOST, RECORDED_DTYPE, UNREADABLE
from repaudit.store.format.root_document import nothing_there
from repaudit.store.read.guarded_store import GuardedStore
from repaudit.store.read.pinned import PinnedStore
from repaudit.store.read.plain_store import PlainStore
from repaudit.store.read.snapshot import Snapshot, take_snapshot
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.place import open_storage, without_listings
from repaudit.store.storage.remote import RemoteStorage
from repaudit.store.storage.storage import Storage


def open_store(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> xr.DataTree:
    """Open a trajectory store as a lazy tree of datasets.

    The documents and the coordinates of all models are read at once, and stay those of this moment. Where labels,
    texts, or values that describe steps (epoch, loss, trigger, wall time) are damaged, they are given as missing, and
    the attribute ``lost`` of their node names them; ``absent_inputs`` names damaged inputs.

    ``tree["models/seed0"]["model.layers.3"]`` is a DataArray (step, sample[, token], feature) over dask chunks of one
    step each; sample ids, labels and texts are at the root, the encoded inputs in ``probe``.

    What was recorded of a model is in the attributes ``model``, its name, and ``repaudit``, a JSON text, so that xarray
    writes a model to any format that it knows; ``tree.repaudit.facts("seed0")`` gives it as a dict.

    Parameters
    ----------
    url : path or URL
        A local path, or any URL that fsspec knows.
    storage_options : mapping, optional
        Passed to fsspec.

    Returns
    -------
    DataTree
        A node ``models/<name>`` per model, whose layers are variables (step, sample[, token], feature).

    Raises
    ------
    StoreNotFoundError
        If nothing exists there.
    NotAStoreError
        If it is something else than a repaudit store.
    UnknownVersionError
        If its format version is not one that this library reads.
    CorruptStoreError
        If its metadata is damaged; only a model's own is no reason, if others can be read: a :class:`StoreWarning` then
        says which model is left out, as does ``repaudit.store.read.catalog.lost``.

    See Also
    --------
    repaudit.TrajectoryWriter : Writes a store.
    repaudit.verify : Checks a store.

    Examples
    --------
    >>> import numpy as np
    >>> from repaudit.store.read.stored_probe_set import StoredProbeSet
    >>> from repaudit.store.write.writer import TrajectoryWriter
    >>> probe_set = StoredProbeSet("abc", ["s0", "s1"], {"x": np.eye(2)})
    >>> with TrajectoryWriter("memory://open.zarr", model_name="seed0", probe_set=probe_set,
    ...                       layers={"layer.0": ((2, 3), "float32")}) as writer:
    ...     writer.append(10, {"layer.0": np.ones((2, 3), "float32")})
    >>> open_store("memory://open.zarr")["models/seed0"]["layer.0"].dims
    ('step', 'sample', 'feature')
    """
    storage = open_storage(url, storage_options)
    if attributes_of(storage) is None:
        raise nothing_there(storage)
    snapshot = take_snapshot(storage)
    try:
        folder = storage.root if isinstance(storage, LocalStorage) else None
        archive = storage if isinstance(storage, RemoteStorage) and storage.is_plain else None
        guarded = GuardedStore(_zarr_store(storage, url, storage_options), snapshot.arrays, folder, archive)
        zarr_store: Any = PinnedStore(guarded, snapshot.pinned)
        tree = xr.open_datatree(zarr_store, engine="zarr", consolidated=False, chunks={})
        _make_plain(tree, snapshot)
    except (PermissionError, ConnectionError, TimeoutError, Warning, StoreError):
        raise
    except Exception as error:  # any part of the store may be damaged
        raise CorruptStoreError(
            f"{storage.url} cannot be opened ({type(error).__name__}: {error}): run `repaudit verify --data`"
        ) from error
    for key, reason in snapshot.unreadable.items():
        name = decode_name(key.rpartition("/")[2])
        tree.attrs.setdefault(UNREADABLE, []).append(name)
        why = reason.partition("; nothing was read")[0]
        warnings.warn(
            f"model {name!r} is left out: {why}: run `repaudit verify`, then `repaudit repair`", StoreWarning, 2
        )
    return tree


def _make_plain(tree: xr.DataTree, snapshot: Snapshot) -> None:
    """Give a tree the texts, the names, and the marks of what is missing that xarray's readers expect."""
    tree.dataset = tree.to_dataset().assign_coords(_plain_texts(tree, COLUMNS, snapshot.lost.get("", [])))
    if MODELS in tree.children:
        nodes = tree[MODELS].children
        for node in nodes.values():
            node.dataset = _plain_model(node)
        tree[MODELS].children = {key: nodes[key] for key in sorted(nodes, key=lambda key: _order(nodes[key]))}
    for key in snapshot.absent:
        group, _, name = key.rpartition("/")
        inputs: Any = tree[group]
        inputs.attrs.setdefault(ABSENT, []).append(name)
        inputs.dataset = _without_zeros(inputs.to_dataset(inherit=False), name)
    for key, names in snapshot.lost.items():
        (tree[key] if key else tree).attrs[LOST] = names


def _without_zeros(inputs: xr.Dataset, name: str) -> xr.Dataset:
    """Return inputs of which one that was damaged is NaN: whole numbers have no other sign of what is missing."""
    damaged = inputs[name]
    if damaged.dtype.kind == "f":
        return inputs
    unknown = xr.full_like(damaged, np.nan, dtype=np.float64).assign_attrs({RECORDED_DTYPE: str(damaged.dtype)})
    return inputs.assign({name: unknown})


def _plain_model(node: xr.DataTree) -> xr.Dataset:
    """Return a model with attributes of text, and texts as ``str``, so that xarray can write it to any format.

    Its step numbers are its coordinate ``step``.
    """
    facts = {name: value for name, value in node.attrs.get(ATTRS, {}).items() if name != "steps"}
    dataset = node.to_dataset(inherit=False).assign_coords(_plain_texts(node, (LAYER, TRIGGER), ()))
    return dataset.assign_attrs({MODEL: str(facts.get("name", node.name)), ATTRS: json.dumps(facts)})


def _order(node: xr.DataTree) -> Any:
    return in_natural_order(node.attrs[MODEL])


def _plain_texts(tree: xr.DataTree, names: Collection[str], lost: Collection[str]) -> dict[str, xr.DataArray]:
    """Return ids, labels and texts as arrays of ``str``: other libraries do not know NumPy's own type of strings.

    Lost ones are None.
    """
    present = {name: tree.variables[name] for name in names if name in tree.variables}
    try:
        return {
            name: xr.DataArray(
                np.full(column.shape, None, dtype=object) if name in lost else column.values.astype(object),
                dims=column.dims,
                attrs=column.attrs,
            )
            for name, column in present.items()
        }
    except (OSError, ValueError) as error:
        raise CorruptStoreError(
            f"the texts of {tree.path} ({', '.join(present)}) cannot be read ({error}): run `repaudit verify --data`"
        ) from error


def _zarr_store(storage: Storage, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Any:
    """Return the Zarr store of a storage, without remembered listings."""
    if isinstance(storage, LocalStorage):
        return LocalStore(storage.root, read_only=True)
    if isinstance(storage, RemoteStorage) and storage.is_plain:
        return PlainStore(storage)
    text = os.fspath(url)
    store = FsspecStore.from_url(text, storage_options=without_listings(text, storage_options), read_only=True)
    store.fs.invalidate_cache()  # an earlier instance would answer from the listings it remembers
    return store
