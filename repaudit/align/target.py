"""What a student is taught: a merged operator on known samples, and the gauge that it is seen by."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from repaudit.align.held_out import HeldOut
from repaudit.align.samples import check_hashes, rows_of, unique_ids
from repaudit.embed.phate import phate_embedding
from repaudit.embed.potential import diffusion_time
from repaudit.errors import OperatorError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.gauge.perplexity import neighbors_within
from repaudit.measure.spread import spread_of_pairs
from repaudit.measure.tally import as_float64
from repaudit.operators.kept import kept_operator
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.stationary import reversible_part
from repaudit.store.format.layout import ProbeSetLike
from repaudit.store.format.sample_set import Raw

Coordinates = Literal["diffusion", "phate"]


@dataclass(frozen=True)
class AlignmentTarget:
    """A row-stochastic operator P* on named samples, as the target of a student.

    Make one with :meth:`from_results` or :meth:`from_operator`.

    Attributes
    ----------
    matrix : (sample, neighbor)
        scipy sparse, float64.
    samples : tuple of str
        Ids of the samples, in the order of the rows.
    gauge : DiffusionGauge
        Turns a student's features into the operator that is compared with P*.
    hashes : tuple of str
        SHA-256 of what each sample is, where the results keep them.
    attrs : dict
        Where the operator is from.
    raw : {"text", "inputs"}
        What the hashes are of: texts, or the inputs themselves where the models were recorded on inputs without texts.

    Examples
    --------
    >>> points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> gauge = DiffusionGauge(perplexity=5)
    >>> target = AlignmentTarget.from_operator(gauge(points), samples=range(40), gauge=gauge)
    >>> len(target), target.index_of(["3", "x"]).tolist(), round(target.information, 2)
    (40, [3, -1], 1.88)

    See Also
    --------
    repaudit.OperatorMatch : Compares a student's features with it.
    """

    matrix: csr_array
    samples: tuple[str, ...]
    gauge: DiffusionGauge
    hashes: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    raw: Raw = "text"

    @classmethod
    def from_results(
        cls,
        results: str | os.PathLike[str] | xr.DataTree,
        layer: str,
        step: int | None = None,
        scale: float | str | None = None,
    ) -> AlignmentTarget:
        """Take the merged operator P* that an analysis kept.

        Parameters
        ----------
        results
            Path of ``results.zarr``, or the tree that :func:`repaudit.analyze` returned.
        layer, step, scale
            As for :meth:`repaudit.DiffusionOperator.from_results`.

        Raises
        ------
        OperatorError
            There are no such results, layer, scale or step, the results changed since the analysis wrote them, or the
            rows of the operator are tokens.
        """
        kept = kept_operator(results, layer, scale, step)
        if kept.gauge is None:
            raise OperatorError(
                f"expected results whose operators are of whole samples and tell their gauge, found {layer!r} without "
                "one: run `repaudit analyze` again, without --tokens"
            )
        gauge = gauge_of(kept.gauge, len(kept.samples))
        if gauge is None:
            raise OperatorError(f"expected the parameters of a gauge, found {sorted(kept.gauge)}")
        raw: Raw = "inputs" if kept.raw == "inputs" else "text"
        return cls.from_operator(
            kept.matrix, samples=kept.samples, gauge=gauge, hashes=kept.hashes, raw=raw, attrs=kept.attrs
        )

    @classmethod
    def from_operator(
        cls,
        P: Any,
        samples: Sequence[Hashable] | NDArray[Any] | range | None = None,
        gauge: DiffusionGauge | None = None,
        *,
        hashes: Sequence[str] = (),
        raw: Raw = "text",
        attrs: Mapping[str, Any] | None = None,
    ) -> AlignmentTarget:
        """Take an operator, or an array with rows that sum to 1.

        Parameters
        ----------
        P : (sample, neighbor)
        samples
            Ids of the samples; by default those of the operator, or their positions.
        gauge
            The gauge whose operators P is compared with; by default the one that made the operator.
        hashes
            SHA-256 of each sample's text, or of its inputs with ``raw="inputs"``, to be compared with those of a probe
            set; by ids alone without.
        attrs
            Where the operator is from.

        Raises
        ------
        OperatorError
            P is no operator, its samples are not one per row and unique, or no gauge is known.
        """
        operator = P if isinstance(P, DiffusionOperator) else DiffusionOperator.from_matrix(P)
        chosen = gauge or gauge_of(operator.attrs, operator.n_samples)
        if chosen is None:
            raise OperatorError("gauge: expected the gauge that a student is seen by, found none with the operator")
        known = operator.samples if samples is None else samples
        ids = unique_ids(range(operator.n_samples) if known is None else known, operator.n_samples)
        check_hashes(hashes, raw, len(ids))
        matrix, about = _stochastic(csr_array(as_float64(operator))), {**operator.attrs, **(attrs or {})}
        return cls(matrix, ids, chosen, tuple(hashes), about, raw)

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        about = "".join(
            f", {name} {self.attrs[name]!r}" for name in ("layer", "scale", "step", "merge") if name in self.attrs
        )
        return f"AlignmentTarget({len(self)} samples{about})"

    @cached_property
    def operator(self) -> DiffusionOperator:
        """P* as an operator."""
        made = DiffusionOperator.from_matrix(self.matrix, self.attrs)
        made.samples = np.array(self.samples, dtype=object)
        return made

    @cached_property
    def information(self) -> float:
        """Mean over rows of ``KL(P*_i || 1/N)``, in nats: the loss of a student that tells no samples apart."""
        entries = self.matrix.data[self.matrix.data > 0]
        return float((entries * np.log(entries * len(self))).sum() / len(self))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the samples and the operator, in hexadecimal."""
        parts = (json.dumps(self.samples).encode(), *(x.tobytes() for x in (self.matrix.data, self.matrix.indices)))
        found = hashlib.sha256()
        for part in parts:
            found.update(part)
        return found.hexdigest()

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.samples)}

    def index_of(self, ids: Sequence[Hashable]) -> Tensor:
        """Return the rows of samples, ``(len(ids))``, int64; -1 for those that the target does not have."""
        return torch.tensor([self._places.get(str(name), -1) for name in ids], dtype=torch.int64)

    def restrict(self, ids: Sequence[Hashable]) -> AlignmentTarget:
        """Return the target on some of the samples, in this order; rows are normalised anew.

        The perplexity, or the number of neighbours, is reduced in proportion. Merge the operators of these samples
        anew where you can: that is exact, this is not.

        Raises
        ------
        OperatorError
            A sample is unknown or given twice, or has no neighbour among the others.
        """
        places = self.index_of(ids).numpy()
        for name, place in zip(ids, places, strict=True):
            if place < 0:
                raise OperatorError(f"expected samples of the target, found {str(name)!r}, which it does not have")
        names = tuple(str(name) for name in ids)
        if len(names) < 2:
            raise OperatorError(f"expected two samples or more, found {len(names)}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise OperatorError(f"expected every sample once, found {twice!r} several times")
        part = csr_array(self.matrix[places][:, places])
        lonely = np.flatnonzero(part.sum(axis=1) <= 0)
        if len(lonely):
            raise OperatorError(
                f"expected neighbours of every sample among the {len(names)}, found none of {len(lonely)}, the first "
                f"of which is {names[lonely[0]]!r}: take more samples, or merge operators of these anew"
            )
        share = len(names) / len(self)
        gauge = self.gauge
        if gauge.perplexity is not None:
            gauge = replace(gauge, perplexity=max(gauge.perplexity * share, 1.5), neighbors=None)
        elif gauge.knn is not None:
            gauge = replace(gauge, knn=max(1, round(gauge.knn * share)))
        hashes = tuple(self.hashes[place] for place in places) if self.hashes else ()
        return AlignmentTarget(_stochastic(part), names, gauge, hashes, self.attrs, self.raw)

    def permuted(self, seed: int, within: Sequence[Hashable] | None = None) -> AlignmentTarget:
        """Return the operator with its samples relabelled at random: a control that has its spectrum and no meaning.

        Parameters
        ----------
        seed : int
        within : sequence, optional
            Labels, one per sample: samples trade places only with others of their label.

        Raises
        ------
        ValueError
            The labels are not one per sample.
        """
        rng, order = np.random.default_rng(seed), np.arange(len(self))
        labels = np.array([str(one) for one in within], dtype=object) if within is not None else np.full(len(self), "")
        if len(labels) != len(self):
            raise ValueError(f"within: expected {len(self)} labels, one per sample, found {len(labels)}")
        for label in dict.fromkeys(labels.tolist()):
            places = np.flatnonzero(labels == label)
            order[places] = rng.permutation(places)
        attrs = {**self.attrs, "permuted": seed}
        return replace(self, matrix=csr_array(self.matrix[order][:, order]), attrs=attrs)

    def coordinates(self, k: int = 16, t: int | str = "auto", method: Coordinates = "diffusion") -> NDArray[np.float64]:
        """Return coordinates of the samples in P*, ``(sample, k)``.

        ``"diffusion"``: ``λ_j^t ψ_j`` of the k largest eigenvalues after the first; of an operator that is not
        reversible, as a merged one often is, those of the mean of it and its time reversal. ``"phate"``: PHATE in k
        dimensions.

        Parameters
        ----------
        k : int
        t : int or "auto"
            Diffusion time; "auto" takes the knee of the von Neumann entropy.
        method : {"diffusion", "phate"}

        Source: Coifman and Lafon, Diffusion maps (2006); Fill, Eigenvalue bounds (1991), for the reversible part.
        """
        if method == "phate":
            return np.asarray(phate_embedding(self.operator, n_components=k, t=t).values)
        if method != "diffusion":
            raise ValueError(f"method: expected 'diffusion' or 'phate', found {method!r}")
        if not 1 <= k < len(self):
            raise ValueError(f"k: expected 1 to {len(self) - 1} coordinates of {len(self)} samples, found {k}")
        time = diffusion_time(self.operator, t)
        chain = self.operator
        if not chain.reversible:
            chain = DiffusionOperator.from_matrix(reversible_part(chain.wide.numpy()))
        values, vectors = chain.eigenpairs(k + 1)
        return np.asarray((values[1:].double() ** time * vectors[:, 1:]).numpy())

    def distance(self, features: Any) -> float:
        """Return the squared calibrated distance of a student's operator from P*: 0 the same, 1 unrelated.

        Parameters
        ----------
        features : (sample, feature)
            Of all samples, in their order.
        """
        return spread_of_pairs([("student", self.gauge(features)), ("target", self.operator)], [(0, 1)], 2, 0).value

    def metrics(
        self, layer: str, name: str = "held_out_distance"
    ) -> Callable[[Mapping[str, Tensor]], dict[str, float]]:
        """Return a function for an audit callback's ``metrics``: the distance of a layer at every audit, by a name.

        The callback's probe set must hold the target's samples in their order; another is refused when it is given.

        Examples
        --------
        >>> points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> target = AlignmentTarget.from_operator(DiffusionGauge(perplexity=5)(points))
        >>> round(target.metrics("top")({"top": points})["held_out_distance"], 6)
        0.0
        """
        return HeldOut(self, layer, name)

    def check(self, probe_set: ProbeSetLike) -> Tensor:
        """Return the rows of a probe set's samples, ``(len(probe_set))``, -1 for those that are not in the target.

        Raises
        ------
        FingerprintError
            A sample of the target is not in the probe set, or holds another text or other inputs there.
        """
        return rows_of(self.samples, self.hashes, self.raw, probe_set)


def check_target(target: Any) -> None:
    """Refuse what is no target, such as the path of one, with a TypeError."""
    if not isinstance(target, AlignmentTarget):
        raise TypeError(f"target: expected an AlignmentTarget (from_results), found {type(target).__name__}")


def gauge_of(attrs: Mapping[str, Any], count: int) -> DiffusionGauge | None:
    """Return the gauge whose parameters stand among the attributes of an operator of so many samples, if they do."""
    names = [one.name for one in fields(DiffusionGauge)]
    if any(name not in attrs for name in names):
        return None
    given = {name: attrs[name] for name in names}
    if given["perplexity"] is not None:  # an operator tells how many neighbours that came to
        usual = neighbors_within(given["perplexity"], count)
        given |= {"self_loops": None, "neighbors": None if given["neighbors"] == usual else given["neighbors"]}
    elif given["self_loops"]:
        given["self_loops"] = None  # as by default
    return DiffusionGauge(**given)


def _stochastic(matrix: csr_array) -> csr_array:
    """Return float64 rows that sum to 1 exactly enough, of a matrix whose rows do so in its own precision."""
    wide = csr_array(matrix, dtype=np.float64)
    wide.eliminate_zeros()
    sums = np.asarray(wide.sum(axis=1)).ravel()
    wide.data /= np.repeat(sums, np.diff(wide.indptr))
    wide.sort_indices()
    return wide
