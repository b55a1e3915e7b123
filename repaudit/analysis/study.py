"""One running analysis: the store, what is analysed, how, and where results are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

import xarray as xr

from repaudit.analysis.cache import Cache
from repaudit.analysis.scales import Scale
from repaudit.analysis.selection import Selection
from repaudit.analysis.settings import Settings
from repaudit.analysis.sources import Sources
from repaudit.errors import StoreError
from repaudit.names import ATTRS
from repaudit.store.read import catalog


@dataclass(frozen=True)
class Study:
    """What every part of an analysis uses."""

    sources: Sources
    selection: Selection
    settings: Settings
    cache: Cache
    scales: tuple[Scale, ...]
    unread: dict[tuple[str, str, int], str] = field(default_factory=dict)
    """Activations of which an operator is known, and which could not be read once more: why, by model, layer, step."""
    run: str = ""
    """Distinguishes this run from earlier ones in processes that work for several."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", self.run or uuid4().hex)

    @property
    def tree(self) -> xr.DataTree:
        """The models and samples, as of one store."""
        return self.sources.tree

    @property
    def samples(self) -> xr.Dataset:
        """What the rows of operators are: the samples, or tokens in their place."""
        return self.sources.samples

    def read(self, model: str, layer: str, step: int) -> xr.DataArray:
        """Read activations once more, and note it if they cannot be: damaged meanwhile, or truncated.

        Raises
        ------
        StoreError
            They cannot be read.
        """
        try:
            return self.sources.read(model, layer, step)
        except StoreError as error:
            self.unread[model, layer, step] = str(error)
            raise

    def unread_notes(self) -> list[str]:
        """Say what of the results lacks activations that could not be read."""
        return [
            f"layer {layer}, {model} at step {step}: similarity, units and halves of features, as far as they need its "
            f"activations: {why}"
            for (model, layer, step), why in sorted(self.unread.items())
        ]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the inputs that the store was created with; of several stores, of the samples they share."""
        return str(self.tree.attrs[ATTRS]["fingerprint"])

    @property
    def inputs(self) -> list[str]:
        """Fingerprints of the encodings that the models read."""
        return sorted({catalog.fingerprint(self.tree, model) for model in self.selection.models})
