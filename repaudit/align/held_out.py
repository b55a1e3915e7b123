"""The distance of a student from a target of samples that it is not taught, at every audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from repaudit.errors import FingerprintError
from repaudit.store.format.layout import ProbeSetLike


class Taught(Protocol):
    """What a student's distance is measured from: an alignment target."""

    def distance(self, features: Any) -> float:
        """Return the distance of features of all samples, in their order."""

    def check(self, probe_set: ProbeSetLike) -> Tensor:
        """Return the rows of a probe set's samples."""

    def __len__(self) -> int: ...


class HeldOut:
    """Measure a layer's distance from a target at every audit; see :meth:`repaudit.AlignmentTarget.metrics`."""

    def __init__(self, target: Taught, layer: str, name: str) -> None:
        self.target, self.layer, self.name = target, layer, name

    def __call__(self, activations: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the distance by its name.

        Raises
        ------
        ValueError
            The audit has no such layer.
        """
        if self.layer not in activations:
            recorded = ", ".join(activations)
            raise ValueError(
                f"expected a recorded layer for {self.name}, found {self.layer!r}; recorded are {recorded}"
            )
        return {self.name: self.target.distance(activations[self.layer])}

    def check_probe_set(self, probe_set: ProbeSetLike) -> None:
        """Refuse a probe set whose samples are not those of the target, in their order.

        Raises
        ------
        FingerprintError
            They are others, or in another order.
        """
        rows = self.target.check(probe_set).tolist()
        if rows != list(range(len(self.target))):
            at = next((i for i, row in enumerate(rows) if row != i), len(rows))
            raise FingerprintError(
                f"{self.name}: expected the {len(self.target)} samples of the target in their order, found "
                f"{len(rows)}, which differ from position {at} on"
            )
