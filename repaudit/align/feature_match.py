"""The match of a student's features with those of its teachers, one head for each: the baseline of the field."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from repaudit.align.features import through, usable
from repaudit.align.samples import rows_of, unique_ids
from repaudit.errors import ActivationError, OperatorError
from repaudit.names import ATTRS, RAW, SAMPLE, SHA256, STEP
from repaudit.store.format.layout import ProbeSetLike
from repaudit.store.format.sample_set import Raw
from repaudit.store.read import catalog
from repaudit.store.read.reader import open_store


class FeatureMatch(nn.Module):
    """One minus the cosine between what a head makes of a student's features and a teacher's, averaged over teachers.

    ``loss = mean over teachers m and samples i of 1 - cos(head_m(f_i), y_mi)`` with the teachers' features centred: 0
    for the same directions, 1 for unrelated ones. Students learn more of the task from it than from an operator, and
    take on less of the geometry.

    Parameters
    ----------
    teachers : mapping of str to (sample, feature)
        Features of each teacher, all on the same samples.
    samples : sequence, optional
        Ids of the samples; their positions by default.
    heads : mapping of str to Module, optional
        By default linear maps, which take the width of the first batch that they see.

    Raises
    ------
    ActivationError
        There are no teachers, or their features are not finite or not of the same samples.

    See Also
    --------
    repaudit.OperatorMatch : Matches what the teachers agree on.

    References
    ----------
    Romero et al., FitNets (2015); Yu et al., Representation alignment for generation (REPA, 2025).

    Examples
    --------
    >>> points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> match = FeatureMatch({"teacher": points}, heads={"teacher": nn.Identity()})
    >>> round(match(points - points.mean(0), torch.arange(40)).item(), 6)
    0.0
    """

    def __init__(
        self,
        teachers: Mapping[str, Any],
        samples: Sequence[Any] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        features = {str(name): _features(str(name), value) for name, value in teachers.items()}
        sizes = {name: len(value) for name, value in features.items()}
        if len(set(sizes.values())) != 1:
            raise ActivationError(f"expected teachers on the same samples, found {sizes or 'no teachers'}")
        self._hashes: tuple[str, ...] = ()
        self._raw: Raw = "text"
        self._count = next(iter(sizes.values()))
        try:
            self.samples = unique_ids(range(self._count) if samples is None else samples, self._count)
        except OperatorError as error:
            raise ActivationError(str(error)) from None
        self.names = list(features)
        given = heads or {name: nn.LazyLinear(value.shape[1]) for name, value in features.items()}
        if set(given) != set(self.names):
            raise ActivationError(f"heads: expected one per teacher, {self.names}, found {list(given)}")
        self.heads = nn.ModuleList([given[name] for name in self.names])
        for index, value in enumerate(features.values()):
            self.register_buffer(f"teacher_{index}", value - value.mean(0), persistent=False)

    @classmethod
    def from_store(cls, url: str | os.PathLike[str], layer: str, models: Sequence[str] | None = None) -> FeatureMatch:
        """Take the last recorded features of a store's models, all of them by default.

        Raises
        ------
        NotInStoreError
            A model or its layer is not in the store.
        ActivationError
            A model has no step yet.
        """
        tree = open_store(url)
        chosen = catalog.models(tree) if models is None else [models] if isinstance(models, str) else list(models)
        empty = [name for name in chosen if not catalog.steps(tree, name)]
        if empty:
            raise ActivationError(f"expected teachers with a recorded step in {url}, found none of {', '.join(empty)}")
        last = {name: catalog.activations(tree, name, layer).isel({STEP: -1}).values for name in chosen}
        root = tree.to_dataset()
        made = cls(last, [str(name) for name in root[SAMPLE].values])
        made._raw = root.attrs[ATTRS].get(RAW, "inputs")
        made._hashes = tuple(root[SHA256].values.tolist()) if SHA256 in root.coords else ()
        return made

    def __len__(self) -> int:
        return self._count

    def check(self, probe_set: ProbeSetLike) -> Tensor:
        """Return the rows of a probe set's samples, -1 for those that the teachers did not see.

        Raises
        ------
        FingerprintError
            A sample of the teachers is not in the probe set, or, of teachers from a store, holds another text or other
            inputs there.
        """
        return rows_of(self.samples, self._hashes, self._raw, probe_set)

    def forward(self, features: Tensor, sample_index: Tensor) -> Tensor:
        """Return the loss of a batch's features, a scalar in float32 or wider.

        Parameters
        ----------
        features : (batch, feature)
        sample_index : (batch), int64
            The row of each among the samples; -1 for what is not, which is ignored, as are repeated samples.
        """
        with torch.autocast(features.device.type, enabled=False):
            rows, places = usable(features, sample_index, self._count)
            losses = []
            for index, head in enumerate(self.heads):
                found = through(head, rows)
                wanted = self.get_buffer(f"teacher_{index}")[places].to(found.dtype)
                losses.append((1 - cosine_similarity(found, wanted, dim=1)).mean() if len(places) else found.sum() * 0)
            return torch.stack(losses).mean()


def _features(name: str, value: Any) -> Tensor:
    array = value.detach().cpu().float() if isinstance(value, Tensor) else torch.from_numpy(np.array(value)).float()
    if array.ndim != 2 or not bool(torch.isfinite(array).all()):
        raise ActivationError(
            f"teacher {name!r}: expected finite features (sample, feature), found {tuple(array.shape)}"
        )
    return array
