"""Committed activations as they were written, or an error: a missing chunk would read as NaN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from repaudit.errors import CorruptStoreError, NotInStoreError, StoreError
from repaudit.names import CHECKSUM, KIND, LAYER, STEP
from repaudit.store.format.encoding import checksum
from repaudit.store.read import catalog


def step_checksums(tree: xr.DataTree, model: str, layer: str) -> dict[int, int]:
    """Return the checksum of a layer's activations at every committed step."""
    dataset = catalog.model_dataset(tree, model)
    column = [str(name) for name in dataset[LAYER].values].index(layer)
    try:
        sums = dataset[CHECKSUM].isel({LAYER: column}).values
    except (OSError, ValueError) as error:
        raise CorruptStoreError(
            f"the checksums of model {model!r} cannot be read ({error}); run `repaudit verify --data`"
        ) from error
    return {int(step): int(crc) for step, crc in zip(dataset[STEP].values, sums, strict=True)}


def read_step(tree: xr.DataTree, model: str, layer: str, step: int, expected: int | None = None) -> xr.DataArray:
    """Read one step of one layer, and compare it with its checksum: the committed one unless another is expected.

    Returns
    -------
    DataArray (sample[, token], feature)
        The values, in memory, with the coordinates of dims alone.

    Raises
    ------
    NotInStoreError
        If the store has no such model, layer or step.
    CorruptStoreError
        If the step's data is missing or damaged.
    """
    array = catalog.activations(tree, model, layer).reset_coords(drop=True)  # each would be a read of its own
    steps = array[STEP].values.tolist()
    if step not in steps:
        raise NotInStoreError(f"model {model!r} has no step {step}: it has {', '.join(map(str, steps)) or 'none'}")
    expected = step_checksums(tree, model, layer)[step] if expected is None else expected
    where = f"step {step} of layer {layer!r} of model {model!r}"
    try:
        read: xr.DataArray = array.isel({STEP: steps.index(step)}).compute(scheduler="synchronous")
        sound = checksum(np.ascontiguousarray(read.values)) == expected
        reason = "it is missing, or does not match its checksum"
    except StoreError as error:
        raise CorruptStoreError(f"{where}: {error}") from error
    except Exception as error:  # noqa: BLE001 - a damaged chunk may fail in any decoder
        sound, reason = False, f"it cannot be decoded ({error})"
    if not sound:
        raise CorruptStoreError(f"{where}: {reason}; run `repaudit verify --data`")
    return read


@dataclass(frozen=True, eq=False)
class RecordedStep(Mapping[str, Any]):
    """The activations of a recorded step by layer, each read when it is asked for."""

    tree: xr.DataTree
    model: str
    step: int
    layers: Sequence[str]

    def __getitem__(self, layer: str) -> xr.DataArray:
        return read_step(self.tree, self.model, layer, self.step)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def first_and_last(tree: xr.DataTree, model: str) -> list[RecordedStep]:
    """Return the activations of a model's first and last step: of one step once, of none nothing, and no operators."""
    steps = catalog.steps(tree, model)
    layers = [
        name for name in catalog.layers(tree, model) if not catalog.activations(tree, model, name).attrs.get(KIND)
    ]
    return [RecordedStep(tree, model, step, layers) for step in sorted({*steps[:1], *steps[-1:]})]
