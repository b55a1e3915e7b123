"""What the first forward of a model tells of its layers, and for which inputs that holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from repaudit.capture.extract.layout import Layout

Shapes = frozenset[tuple[str, tuple[int, ...]]]


class Call(NamedTuple):
    """What is known of one call of a layer.

    Parameters
    ----------
    origins
        The inputs that it depends on, where that could be followed.
    are_learned
        Whether its tokens are rows of parameters, as learned queries, and not of the inputs; None where they may be.
    """

    origins: frozenset[str] = frozenset()
    are_learned: bool | None = False


@dataclass(frozen=True)
class Facts:
    """What the first forward of a model told of a layer.

    Parameters
    ----------
    layout
        What its dims mean, where that could be followed.
    calls
        What is known of each of its calls.
    is_certain
        Whether that holds for inputs of other shapes: among dims of size 1, what each means may be a guess.
    """

    layout: Layout | None
    calls: tuple[Call, ...]
    is_certain: bool = True

    def call(self, number: int) -> Call:
        """Return what is known of a call; nothing of one that the first forward had not."""
        return self.calls[number] if number < len(self.calls) else Call()

    def joined(self, other: Facts) -> Facts:
        """Return the facts of these calls and of further ones."""
        layout = self.layout if self.layout == other.layout else None
        return Facts(layout, (*self.calls, *other.calls), self.is_certain and other.is_certain)


class KnownFacts:
    """The facts of models that were forwarded, each for the shapes of its inputs."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, dict[Shapes | None, dict[str, Facts]]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, net: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Facts] | None:
        """Return the facts that inputs of these shapes told; None where there were none yet."""
        return self._known.get(net, {}).get(shapes(inputs))

    def certain(self, net: nn.Module) -> dict[str, Facts] | None:
        """Return facts that hold for inputs of any shapes."""
        return next((facts for facts in self._known.get(net, {}).values() if facts and are_certain(facts)), None)

    def keep(self, net: nn.Module, inputs: Mapping[str, Any] | None, facts: dict[str, Facts]) -> None:
        """Keep the facts that inputs told, or without inputs those of several forwards."""
        self._known.setdefault(net, {})[None if inputs is None else shapes(inputs)] = facts


def are_certain(facts: Mapping[str, Facts]) -> bool:
    """Return whether facts hold for inputs of other shapes."""
    return all(fact.is_certain for fact in facts.values())


def has_single(tensors: Iterable[Any]) -> bool:
    """Return whether a dim behind the samples has size 1, or there is one sample."""
    return any(1 in value.shape for value in tensors if isinstance(value, torch.Tensor))


def shapes(inputs: Mapping[str, Any]) -> Shapes:
    """Return the shapes of inputs behind the samples.

    Examples
    --------
    >>> shapes({"x": torch.zeros(4, 3)}) == shapes({"x": torch.zeros(2, 3)})
    True
    """
    return frozenset((name, tuple(x.shape[1:])) for name, x in inputs.items() if isinstance(x, torch.Tensor))
