"""How each model's recording stands: its last audit, the age of its writer's heartbeat, and what failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import xarray as xr

from repaudit.names import STEP
from repaudit.store.format.keys import model_key
from repaudit.store.format.layout import LEASE
from repaudit.store.read import catalog
from repaudit.store.storage.lease import Holder
from repaudit.store.storage.storage import Storage

State: TypeAlias = Literal["running", "silent", "ended"]
"""A writer lives; a writer is gone or sends no heartbeat and left its lease; no writer."""

_WALL_TIME = "wall_time"


@dataclass(frozen=True)
class Run:
    """One model's recording.

    Attributes
    ----------
    model : str
    state : "running", "silent" or "ended"
    audits : int
        Committed steps.
    step : int or None
        The last of them.
    seconds_since_audit, seconds_since_heartbeat : float or None
        By the clocks of the writer's host and this one; an audit is a heartbeat too.
    failures : list of (step, reason)
        Steps that were due and are not in the store.
    """

    model: str
    state: State
    audits: int
    step: int | None
    seconds_since_audit: float | None
    seconds_since_heartbeat: float | None
    failures: tuple[tuple[int, str], ...]


def runs(tree: xr.DataTree, storage: Storage, models: Sequence[str] | None = None) -> list[Run]:
    """Return how the recording of every model of a store stands."""
    return [_run(tree, storage, model) for model in (catalog.models(tree) if models is None else models)]


def _run(tree: xr.DataTree, storage: Storage, model: str) -> Run:
    dataset, now = catalog.model_dataset(tree, model), time.time()
    steps = catalog.steps(tree, model)
    audited = None
    if steps and _WALL_TIME in dataset:
        last = dataset[_WALL_TIME].isel({STEP: -1}).values
        audited = (
            None if np.isnat(last) else max(0.0, now - float(last.astype("datetime64[ns]").astype(np.int64)) / 1e9)
        )
    holder = Holder.read(storage, f"{model_key(model)}/{LEASE}")
    state: State = "ended" if holder is None else "silent" if holder.stale or holder.quiet else "running"
    failures = tuple((int(gap["step"]), str(gap.get("reason", ""))) for gap in catalog.gaps(tree, model))
    heartbeat = max(0.0, now - holder.heartbeat) if holder is not None and holder.token else None
    if heartbeat is not None and audited is not None:
        heartbeat = min(heartbeat, audited)
    return Run(model, state, len(steps), steps[-1] if steps else None, audited, heartbeat, failures)
