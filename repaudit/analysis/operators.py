"""The diffusion operators of one layer, computed one (model, step) at a time and kept on disk, not in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.utils import format_bytes, parse_bytes
from numpy.typing import NDArray

from repaudit.errors import ActivationError, AnalysisError
from repaudit.gauge.diffusion import DiffusionGauge
from repaudit.names import STEP
from repaudit.store import catalog

Key = tuple[str, int]
"""(model, step): with the store's URL and the layer, one unit of work."""


@dataclass(frozen=True)
class LayerOperators:
    """Operators of one layer, in the order of ``keys``; what could not be computed is in ``failed`` with its reason."""

    layer: str
    keys: list[Key]
    matrices: Sequence[NDArray[np.floating[Any]]] | NDArray[np.floating[Any]]
    diagnostics: dict[Key, dict[str, float]]
    failed: dict[Key, str]
    gauge: dict[str, Any]
    """The gauge's parameters as they were used, e.g. the number of neighbours that None stood for."""

    def at(self, step: int) -> dict[str, NDArray[np.floating[Any]]]:
        """The operators of one step by model."""
        return {model: self.matrices[i] for i, (model, s) in enumerate(self.keys) if s == step}


def compute_operators(
    tree: xr.DataTree,
    layer: str,
    keys: Sequence[Key],
    gauge: DiffusionGauge,
    *,
    folder: Path,
    memory: str = "2GB",
    advance: Callable[[], None] = lambda: None,
) -> LayerOperators:
    """Compute P for every (model, step) of a layer, threaded, within a memory budget.

    Parameters
    ----------
    tree
        An open store.
    layer
        The layer's name.
    keys
        The (model, step) pairs to compute.
    gauge
        How activations become operators.
    folder
        Where the operators are spilled to, as one file of shape (operator, sample, neighbor).
    memory
        Budget for what is held at once.
    advance
        Called once after every operator.

    Raises
    ------
    AnalysisError
        When one operator does not fit into the budget.
    """
    n, width = catalog.activations(tree, keys[0][0], layer).isel({STEP: 0}).shape
    workers = _workers(layer, n, width, memory)
    matrices = np.lib.format.open_memmap(folder / "operators.npy", mode="w+", dtype=np.float32, shape=(len(keys), n, n))
    diagnostics: dict[Key, dict[str, float]] = {}
    failed: dict[Key, str] = {}
    used: dict[str, Any] = asdict(gauge)

    def one(index: int) -> None:
        model, step = keys[index]
        try:
            operator = gauge(catalog.activations(tree, model, layer).sel({STEP: step}).compute(scheduler="synchronous"))
        except ActivationError as error:
            failed[model, step] = str(error)
            return
        matrices[index] = operator.to_numpy()
        used.update({name: operator.attrs[name] for name in used if name in operator.attrs})
        diagnostics[model, step] = {**_numbers(operator.diagnostics), "entropy": float(operator.entropy(1))}

    with ThreadPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(one, index) for index in range(len(keys))]):
            future.result()
            advance()
    good = [index for index, key in enumerate(keys) if key not in failed]
    kept = matrices if not failed else [matrices[index] for index in good]  # views, still on disk
    return LayerOperators(layer, [keys[index] for index in good], kept, diagnostics, failed, used)


def memory_budget(memory: str | int) -> int:
    """Bytes of a budget such as ``"2GB"``."""
    try:
        return int(parse_bytes(memory))
    except (ValueError, TypeError, AttributeError):
        raise AnalysisError(f"expected a memory budget such as 2GB, found {memory!r}") from None


def _workers(layer: str, n: int, width: int, memory: str) -> int:
    """How many operators can be computed at once: P in float32, its float64 eigenwork, and the activations."""
    need = n * n * (4 + 3 * 8) + 3 * n * width * 8
    budget = memory_budget(memory)
    if need > budget:
        raise AnalysisError(
            f"layer {layer}: one operator of {n} samples needs about {format_bytes(need)}, "
            f"the memory budget is {format_bytes(budget)}; raise it"
        )
    return int(max(1, min(cpu_count() or 1, budget // need)))


def _numbers(diagnostics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in dict(diagnostics).items()}
