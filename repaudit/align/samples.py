"""Whether a probe set holds the samples that are taught, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from repaudit.errors import FingerprintError, OperatorError
from repaudit.store.format.layout import ProbeSetLike
from repaudit.store.format.sample_set import Raw, SampleSet, why_other_inputs

_DIFFERS: Final[Mapping[Raw, str]] = {
    "text": "expected the texts that are taught, found another one for the sample {name!r}",
    "inputs": (
        "expected the inputs that the teachers were recorded on (values, names, shapes and types), found others for "
        "the sample {name!r}{why}: pass the probe set as recorded; where the same samples are encoded in another way, "
        "ids alone are compared by AlignmentTarget.from_operator(target.operator, target.samples, target.gauge), or "
        "by FeatureMatch(features, ids)"
    ),
}


def unique_ids(given: Iterable[Any], count: int) -> tuple[str, ...]:
    """Return ids of samples as texts.

    Raises
    ------
    OperatorError
        They are not `count`, one is missing (None, NaN), or one occurs twice.

    Examples
    --------
    >>> unique_ids([0, "b"], 2)
    ('0', 'b')
    """
    found = list(given)
    missing = [row for row, one in enumerate(found) if one is None or one != one]  # noqa: PLR0124 - NaN alone is not
    if missing:
        raise OperatorError(f"samples: expected an id per row, found {found[missing[0]]!r} in row {missing[0]}")
    ids = tuple(str(one) for one in found)
    if len(ids) != count or len(set(ids)) != count:
        raise OperatorError(
            f"samples: expected {count} unique ids, one per row, found {len(ids)}, {len(set(ids))} of them different"
        )
    return ids


def check_hashes(hashes: Sequence[str], raw: str, count: int) -> None:
    """Refuse hashes of fewer or more than `count` samples, if there are any, or of neither texts nor inputs."""
    if (hashes and len(hashes) != count) or raw not in _DIFFERS:
        raise OperatorError(
            f"expected a hash for each of {count} samples or none, of text or inputs, found {len(hashes)} of {raw!r}"
        )


def rows_of(samples: Sequence[str], hashes: Sequence[str], raw: Raw, probe_set: ProbeSetLike) -> Tensor:
    """Return the row of each of a probe set's samples among those taught, ``(len(probe_set))``; -1 for others.

    Parameters
    ----------
    samples : sequence of str
        Ids.
    hashes : sequence of str
        SHA-256 of what each sample is; none where it is not known.
    raw : {"text", "inputs"}
        What they are of. Where the probe set knows its samples by their texts and the target by inputs, or the other
        way round, only their ids are compared.

    Raises
    ------
    FingerprintError
        A sample is not in the probe set, or holds another text or other inputs there.
    """
    found = SampleSet.of(probe_set)
    there = dict(zip(found.ids, found.hashes, strict=True))
    for index, name in enumerate(samples):
        if name not in there:
            raise FingerprintError(
                f"expected a probe set with the {len(samples)} samples that are taught, found none with the id "
                f"{name!r} (row {index}) among its {len(there)}"
            )
        if hashes and found.raw == raw and there[name] != hashes[index]:
            why = why_other_inputs(SampleSet(samples, hashes, raw), probe_set)
            raise FingerprintError(_DIFFERS[raw].format(name=name, why=f"; {why}" if why else ""))
    places = {name: index for index, name in enumerate(samples)}
    return torch.tensor([places.get(name, -1) for name in found.ids], dtype=torch.int64)
