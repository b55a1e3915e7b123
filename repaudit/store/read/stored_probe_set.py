"""A probe set as a store holds it, without the tokenizer or the tensors it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredProbeSet:
    """Inputs, ids, labels and texts of the samples of a store, with the fingerprint they were recorded under.

    ``text_hashes`` and ``encoding`` are those of :class:`repaudit.store.format.layout.ProbeSetLike`. ``lost_inputs``
    names inputs of which values were lost to damage; the samples are then known by ``input_hashes``, their hashes from
    before.

    Examples
    --------
    >>> import numpy as np
    >>> len(StoredProbeSet("abc", ["a", "b"], {"x": np.zeros((2, 3))}))
    2
    """

    fingerprint: str
    ids: Sequence[str]
    inputs: Mapping[str, NDArray[Any]]
    labels: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    text_hashes: Sequence[str] | None = None
    encoding: Mapping[str, Any] = field(default_factory=dict)
    lost_inputs: frozenset[str] = frozenset()
    input_hashes: Sequence[str] | None = None

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the inputs by name, samples along the first dim."""
        return self.inputs

    def __len__(self) -> int:
        return len(self.ids)
