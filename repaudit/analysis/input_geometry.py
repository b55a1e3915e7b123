"""The geometry of the inputs, which no network has learned: a diffusion operator of the probe set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.errors import ActivationError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.names import PROBE, SAMPLE

IDS, MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class InputGeometry:
    """An operator of the inputs, and in words what it was computed from."""

    operator: NDArray[np.float32]
    words: str


def input_geometry(tree: xr.DataTree, gauge: DiffusionGauge) -> InputGeometry:
    """Compute a diffusion operator of a store's probe set, without any network.

    Token ids become the share of every token among a sample's unmasked ones: where embeddings are random, the mean of
    a sample's embeddings has these distances up to scale and noise. Other inputs (pixels, features) are
    flattened.

    Raises
    ------
    ActivationError
        The probe set has no such inputs, or the gauge refuses them.
    """
    probe = tree[PROBE].to_dataset()
    if IDS in probe and probe[IDS].ndim == 2:
        mask = probe[MASK].values if MASK in probe else np.ones(probe[IDS].shape)
        return InputGeometry(_operator(token_shares(probe[IDS].values, mask), gauge), f"token counts of {IDS}")
    real = [name for name, array in probe.data_vars.items() if array.dtype.kind == "f" and array.dims[0] == SAMPLE]
    if not real:
        present = ", ".join(map(str, probe))
        raise ActivationError(f"expected {IDS} or real-valued inputs in the probe set, found only {present}")
    flat = np.concatenate([probe[name].values.reshape(probe.sizes[SAMPLE], -1) for name in real], axis=1)
    return InputGeometry(_operator(flat, gauge), ", ".join(map(str, real)))


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


def _operator(values: NDArray[Any], gauge: DiffusionGauge) -> NDArray[np.float32]:
    return gauge(values.astype(np.float32)).to_numpy()
