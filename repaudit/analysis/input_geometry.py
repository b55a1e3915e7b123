"""The geometry of the inputs, which no network has learned: a diffusion operator of the probe set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.errors import ActivationError, CorruptStoreError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.names import SAMPLE
from repaudit.store.format.sample_set import row_hashes
from repaudit.store.read import catalog

IDS, MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class InputGeometry:
    """An operator of the inputs, and in words what it was computed from."""

    operator: NDArray[np.float32]
    words: str


def input_geometry(tree: xr.DataTree, gauge: DiffusionGauge, models: Sequence[str]) -> InputGeometry:
    """Compute a diffusion operator of the samples as these models read them, without any network.

    Token ids become the share of every token among a sample's unmasked ones: where embeddings are random, the mean of
    a sample's embeddings has these distances up to scale and noise. Other inputs (pixels, features) are
    flattened. Where models read the samples in several encodings, it is the mean of their operators.

    Raises
    ------
    ActivationError
        The samples have no such inputs, or the gauge refuses them.
    """
    encodings = {digest_of(encoded): encoded for encoded in catalog.inputs_of_models(tree, models).values()}
    found = [_values(encoded) for encoded in encodings.values()]
    operators = [gauge(values.astype(np.float32)).to_numpy() for values, _ in found]
    words = ", ".join(dict.fromkeys(words for _, words in found))
    several = f", mean over {len(found)} encodings" if len(found) > 1 else ""
    return InputGeometry(np.mean(operators, axis=0, dtype=np.float32), words + several)


def _values(encoded: xr.Dataset) -> tuple[NDArray[Any], str]:
    """Return encoded inputs as a table (sample, feature), and in words what it holds."""
    if IDS in encoded and encoded[IDS].ndim == 2:
        mask = encoded[MASK].values if MASK in encoded else np.ones(encoded[IDS].shape)
        return token_shares(encoded[IDS].values, mask), f"token counts of {IDS}"
    real = [name for name, array in encoded.data_vars.items() if array.dtype.kind == "f" and array.dims[0] == SAMPLE]
    if not real:
        present = ", ".join(map(str, encoded))
        raise ActivationError(f"expected {IDS} or real-valued inputs in the probe set, found only {present}")
    flat = [encoded[name].values.reshape(encoded.sizes[SAMPLE], -1) for name in real]
    return np.concatenate(flat, axis=1), ", ".join(map(str, real))


def digest_of(encoded: xr.Dataset) -> str:
    """Return what tells encoded inputs from others, whatever store they are in."""
    try:
        arrays = {str(name): array.values for name, array in encoded.data_vars.items()}
    except (OSError, ValueError) as error:
        raise CorruptStoreError(f"the inputs cannot be read ({error}): run `repaudit verify --data`") from error
    return hashlib.sha256("".join(row_hashes(arrays, encoded.sizes[SAMPLE])).encode()).hexdigest()


def token_shares(ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float64]:
    """Return the share of every token that occurs, (sample, token); a sample without tokens is a row of 0.

    Examples
    --------
    >>> token_shares(np.array([[7, 7, 9, 0]]), np.array([[1, 1, 1, 0]])).round(2).tolist()
    [[0.67, 0.33]]
    """
    seen = mask.astype(bool)
    tokens, column = np.unique(ids[seen], return_inverse=True)
    counts = np.zeros((len(ids), len(tokens)))
    np.add.at(counts, (np.nonzero(seen)[0], column), 1)
    shares: NDArray[np.float64] = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares
