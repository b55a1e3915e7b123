"""Whether a probe set holds the samples that are taught, and where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repaudit.errors import FingerprintError
from repaudit.store.format.layout import ProbeSetLike
from repaudit.store.format.sample_set import SampleSet


def rows_of(samples: Sequence[str], hashes: Sequence[str], probe_set: ProbeSetLike) -> Tensor:
    """Return the row of each of a probe set's samples among those taught, ``(len(probe_set))``; -1 for others.

    Parameters
    ----------
    samples : sequence of str
        Ids.
    hashes : sequence of str
        SHA-256 of each sample's text; none where they are not known.

    Raises
    ------
    FingerprintError
        A sample is not in the probe set, or holds another text there.
    """
    found = SampleSet.of(probe_set)
    there = dict(zip(found.ids, found.hashes, strict=True))
    for index, name in enumerate(samples):
        if name not in there:
            raise FingerprintError(
                f"expected a probe set with the {len(samples)} samples that are taught, found none with the id "
                f"{name!r} (row {index}) among its {len(there)}"
            )
        if hashes and found.raw == "text" and there[name] != hashes[index]:
            raise FingerprintError(f"expected the texts that are taught, found another one for the sample {name!r}")
    places = {name: index for index, name in enumerate(samples)}
    return torch.tensor([places.get(name, -1) for name in found.ids], dtype=torch.int64)
