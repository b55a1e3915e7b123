"""A resolved layer: which module, and what is read of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from repaudit.capture.extract.layer_spec import ExtractionPoint, LayerSpec


@dataclass(frozen=True)
class StatesEntry:
    """An entry of the ``hidden_states`` that a model returns.

    Parameters
    ----------
    index
        Which one, from 0.
    expected
        How many there must be; None where that does not matter.
    models
        Models around the blocks, the outermost first: the first one that a forward passes through returns the states.

    Examples
    --------
    >>> StatesEntry(index=2).fits(7), StatesEntry(index=6, expected=7).fits(13)
    (True, False)
    """

    index: int
    expected: int | None = None
    models: tuple[nn.Module, ...] = ()

    def fits(self, n_states: int) -> bool:
        """Return whether a model with that many hidden states has the entry."""
        return self.index < n_states and self.expected in {None, n_states}

    def __str__(self) -> str:
        return f"{self.expected}" if self.expected is not None else f"at least {self.index + 1}"


@dataclass(frozen=True)
class Layer:
    """A resolved layer.

    Parameters
    ----------
    name
        Its name in the record.
    path, module
        Where it is, and the module there; for an entry of the hidden states, the model that returns them.
    spec
        The spec that asked for it.
    point
        What is read of the module.
    entry
        Which entry of the module's own ``hidden_states``, where the path says so.
    """

    name: str
    path: str
    module: nn.Module
    spec: LayerSpec
    point: ExtractionPoint
    entry: StatesEntry | None = None
