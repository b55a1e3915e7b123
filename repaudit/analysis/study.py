"""One analysis under way: the store, what is looked at, how, and where what it computes is kept."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import xarray as xr

from repaudit.analysis.cache import Cache
from repaudit.analysis.selection import Selection
from repaudit.analysis.settings import Settings
from repaudit.names import ATTRS


@dataclass(frozen=True)
class Study:
    """What every part of an analysis needs to know."""

    url: str
    tree: xr.DataTree
    selection: Selection
    settings: Settings
    cache: Cache
    run: str = ""
    """Tells this run's view of the store from earlier ones in processes that serve several."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", self.run or uuid4().hex)

    @property
    def fingerprint(self) -> str:
        return str(self.tree.attrs[ATTRS]["fingerprint"])
