"""Find what is wrong with a store, and mend what can be mended without inventing data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from repaudit.errors import CorruptStoreError, NotAStoreError, StoreNotFoundError, UnknownVersionError
from repaudit.names import ATTRS, CHECKSUM, LAYER, MODELS, STEP
from repaudit.schema import unbelievable
from repaudit.store.encoding import checksum
from repaudit.store.layout import DOCUMENT
from repaudit.store.root import read_document, store_attributes
from repaudit.store.storage import LocalStorage, Storage, open_storage


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a store: where, of what kind, and in words."""

    location: str
    kind: str
    message: str


def verify(
    url: str | os.PathLike[str], data: bool = False, storage_options: Mapping[str, Any] | None = None
) -> list[Problem]:
    """List every problem of a store.

    Parameters
    ----------
    url : path or URL
    data : bool
        Whether to read every committed step and compare it with its checksum.
    storage_options : mapping, optional
        Handed to fsspec.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is nothing to verify.
    """
    storage = open_storage(url, storage_options)
    try:
        if store_attributes(storage) is None:
            raise StoreNotFoundError(f"There is no repaudit store at {storage.url}.")
    except UnknownVersionError as error:
        return [Problem(DOCUMENT, "unknown_version", str(error))]
    except NotAStoreError:
        raise
    except CorruptStoreError as error:
        return [Problem(DOCUMENT, "damaged_metadata", str(error))]
    names = [name for name in storage.children(MODELS) if name != DOCUMENT]
    return [problem for name in names for problem in _verify_model(storage, f"{MODELS}/{name}", data)]


def _verify_model(storage: Storage, key: str, data: bool) -> Iterator[Problem]:
    place = f"{key}/{DOCUMENT}"
    try:
        document = read_document(storage, place)
    except CorruptStoreError as error:
        yield Problem(place, "damaged_metadata", str(error))
        return
    if document is None:
        yield Problem(key, "foreign", f"{key} is no Zarr group: expected {place}.")
        return
    try:
        committed = int(document["attributes"][ATTRS]["committed"])
        arrays = document["consolidated_metadata"]["metadata"]
        over_steps = {name: array for name, array in arrays.items() if array["dimension_names"][0] == STEP}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Problem(place, "damaged_metadata", f"{place} is no model's document ({type(error).__name__}: {error}).")
        return
    for name, array in over_steps.items():
        reason = unbelievable(array)
        if reason is not None:
            yield Problem(f"{key}/{name}", "damaged_metadata", f"The metadata of {name} cannot be right: {reason}.")
            return
        if array["shape"][0] != committed:
            yield Problem(
                f"{key}/{name}", "misaligned", f"{name} has {array['shape'][0]} steps, {committed} are committed."
            )
            return
    yield from _verify_chunks(storage, key, over_steps, committed)
    if data and committed:
        yield from _verify_data(storage, key, over_steps, committed)


def _verify_chunks(storage: Storage, key: str, arrays: Mapping[str, Any], committed: int) -> Iterator[Problem]:
    for name, array in arrays.items():
        present = set(storage.children(f"{key}/{name}"))
        rows = array["chunk_grid"]["configuration"]["chunk_shape"][0]
        for chunk in range(-(-committed // rows)):
            file = "c." + ".".join([str(chunk), *("0" for _ in array["shape"][1:])])
            if file not in present:
                yield Problem(
                    f"{key}/{name}/{file}",
                    "missing_chunk",
                    f"Step {chunk} of {name} is committed, but its chunk is gone.",
                )


def _verify_data(storage: Storage, key: str, arrays: Mapping[str, Any], committed: int) -> Iterator[Problem]:
    group = zarr.open_group(_zarr_place(storage), path=key, mode="r", use_consolidated=True)
    names = [str(name) for name in np.asarray(_array(group, LAYER)[:])]
    sums = np.asarray(_array(group, CHECKSUM)[:])
    for name, array in arrays.items():
        layer = array.get("attributes", {}).get(LAYER)
        if layer not in names:
            continue
        values = _array(group, name)
        for index in range(committed):
            location = f"{key}/{name}[{index}]"
            try:
                found = checksum(np.ascontiguousarray(values[index]))
            except Exception as error:  # noqa: BLE001 - a damaged chunk may fail in any decoder
                yield Problem(location, "damaged_chunk", f"Step {index} of {name} cannot be decoded ({error}).")
                continue
            if found != int(sums[index, names.index(layer)]):
                yield Problem(location, "damaged_chunk", f"Step {index} of {name} does not match its checksum.")


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


def _zarr_place(storage: Storage) -> Any:
    if isinstance(storage, LocalStorage):
        return storage.url
    return storage.url
