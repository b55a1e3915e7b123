"""The diffusion operator: a row-stochastic matrix over samples, its spectrum and its powers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from repaudit.errors import OperatorError
from repaudit.gauge import diagnostics as seen
from repaudit.gauge.cloud import cloud
from repaudit.gauge.distance import squared_distances_
from repaudit.gauge.stationary import stationary_distribution
from repaudit.names import NEIGHBOR, SAMPLE

ROUNDING: Final = {torch.float32: 2e-5, torch.float64: 1e-9}
"""Relative asymmetry of the stationary flow up to which an operator counts as reversible."""

_ROW_SUM: Final = 1e-4
DEGREE: Final = "degree"


class DiffusionOperator:
    """Row-stochastic Markov matrix ``P (sample, neighbor)`` of a representation, with the degrees it was made with.

    Made by :class:`repaudit.DiffusionGauge`, by merging, or by :meth:`from_matrix`; not changed afterwards.

    Examples
    --------
    >>> operator = DiffusionOperator.from_matrix([[0.7, 0.3], [0.1, 0.9]])
    >>> operator.stationary.numpy().round(6).tolist()
    [0.25, 0.75]
    >>> operator.eigenpairs(2)[0].numpy().round(6).tolist()
    [1.0, 0.6]
    """

    def __init__(
        self,
        matrix: Tensor,
        degrees: Tensor | None = None,
        *,
        attrs: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
        samples: NDArray[Any] | None = None,
    ) -> None:
        self.matrix = matrix
        self.attrs: dict[str, Any] = dict(attrs or {})
        self.samples = samples
        self._known = dict(diagnostics or {})
        self._degrees = degrees

    @classmethod
    def from_matrix(cls, matrix: Any, attrs: Mapping[str, Any] | None = None) -> DiffusionOperator:
        """Take a merged or foreign matrix as an operator: array, tensor or DataArray ``(sample, neighbor)``.

        Raises
        ------
        OperatorError
            The matrix is not square, not finite, negative somewhere, or a row does not sum to 1.
        """
        if isinstance(matrix, xr.DataArray):
            return _from_dataarray(matrix, attrs)
        if is_sparse(matrix):
            from repaudit.gauge.sparse import SparseDiffusionOperator, as_sparse

            tensor = as_sparse(matrix)
            check_stochastic(tensor)
            return SparseDiffusionOperator(tensor, attrs=attrs)
        tensor = as_matrix(matrix)
        check_stochastic(tensor)
        return cls(tensor, attrs=attrs)

    @classmethod
    def from_dataarray(cls, array: xr.DataArray) -> DiffusionOperator:
        """Give back the operator that :meth:`to_dataarray` wrote, its parameters, degrees and diagnostics with it."""
        return _from_dataarray(array, None)

    @property
    def n_samples(self) -> int:
        return self.matrix.shape[0]

    @cached_property
    def degrees(self) -> Tensor:
        """Row sums of the density-corrected kernel, ``(sample)``, float64; of a foreign matrix, ``N π``."""
        if self._degrees is not None:
            return self._degrees
        found = stationary_distribution(self.wide.detach().cpu().numpy())
        return torch.from_numpy(found).to(self.matrix.device) * self.n_samples

    @property
    def stationary(self) -> Tensor:
        """Stationary distribution ``π = D / ΣD``, ``(sample)``, float64: ``π P = π``."""
        return self.degrees / self.degrees.sum()

    @cached_property
    def reversible(self) -> bool:
        """Whether ``π_i P_ij = π_j P_ji`` to rounding: the symmetric conjugate is exact and the spectrum real."""
        if self._degrees is not None:
            return True
        flow = self.stationary[:, None] * self.wide.detach()
        return float((flow - flow.mT).norm()) <= ROUNDING[self.matrix.dtype] * float(flow.norm())

    @property
    def symmetric(self) -> Tensor:
        """Symmetric conjugate ``D^1/2 P D^-1/2``, ``(sample, neighbor)``, float64, with the eigenvalues of ``P``.

        Raises
        ------
        OperatorError
            The operator is not reversible, so that no diagonal conjugation makes it symmetric.
        """
        self._needs_reversible()
        # a transient sample has no stationary mass, and in a reversible chain no transitions from others either
        root = self.stationary.sqrt()
        inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
        conjugate = root[:, None] * self.wide * inverse
        return (conjugate + conjugate.mT) / 2

    def _needs_reversible(self) -> None:
        if not self.reversible:
            raise OperatorError(
                "the symmetric conjugate needs a reversible operator, and this one has a circulating flow "
                "(a merged operator often does); use eigenpairs(), or a merge that keeps reversibility"
            )

    @property
    def wide(self) -> Tensor:
        """The dense matrix in float64."""
        return self.matrix.double()

    def power(self, t: int) -> DiffusionOperator:
        """``P^t``: where a walk of ``t`` transitions ends; same degrees.

        Examples
        --------
        >>> DiffusionOperator.from_matrix([[0.7, 0.3], [0.1, 0.9]]).power(2).matrix.numpy().round(6).tolist()
        [[0.52, 0.48], [0.16, 0.84]]
        """
        time = self._check_time(t)
        raised = torch.linalg.matrix_power(self.wide, int(t)).to(self.matrix.dtype)
        return DiffusionOperator(raised, self._degrees, attrs={**self.attrs, "t": time}, samples=self.samples)

    def _check_time(self, t: int) -> int:
        if isinstance(t, bool) or not isinstance(t, int | np.integer) or t < 0:
            raise ValueError(f"the diffusion time t counts transitions: a whole number, 0 or more; found {t!r}")
        return int(self.attrs.get("t", 1)) * int(t)

    def _check_k(self, k: int | None) -> int:
        k = self.n_samples if k is None else k
        if not 1 <= k <= self.n_samples:
            raise ValueError(f"k must be between 1 and the number of samples, {self.n_samples}; found {k}")
        return k

    def eigenpairs(self, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` largest eigenvalues ``(k)`` and right eigenvectors ``(sample, k)``, float64; all for ``k=None``.

        ``P ψ = λ ψ`` by way of the symmetric conjugate, ``ψ = π^-1/2 u``, so that ``Σ_i π_i ψ_i² = 1``. The eigenvalues
        of an operator that is not reversible may be complex: complex128, largest modulus first.
        """
        k = self._check_k(k)
        if not self.reversible:
            return self._complex_eigenpairs(k)
        values, vectors = torch.linalg.eigh(self.symmetric)
        values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
        vectors = vectors / self.stationary.sqrt()[:, None]
        return values, vectors * signs(vectors)

    def _complex_eigenpairs(self, k: int) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eig(self.wide)
        order = values.abs().argsort(descending=True, stable=True)[:k]
        vectors = vectors[:, order]
        return values[order], vectors / (self.stationary[:, None] * vectors.abs().square()).sum(0).sqrt()

    @cached_property
    def _moduli(self) -> Tensor:
        if self.reversible:
            values: Tensor = torch.linalg.eigvalsh(self.symmetric)
        else:
            values = torch.linalg.eigvals(self.wide)
        return values.abs()

    def entropy(self, t: int = 1) -> float:
        """Diffusion spectral entropy in nats: ``-Σ p log p``, ``p = |λ|^t / Σ |λ|^t``, between 0 and ``log N``.

        Source: Liao et al., Assessing neural network representations during training using noise-resilient diffusion
        spectral entropy (2023).
        """
        if not t >= 0:
            raise ValueError(f"the diffusion time t is 0 or more; found {t!r}")
        weight = self._moduli.pow(t)
        p = weight / weight.sum()
        return float(-torch.special.xlogy(p, p).sum())

    def diffusion_distance(self, t: int = 1) -> Tensor:
        """``sqrt(Σ_k (P^t_ik - P^t_jk)² / π_k)``, ``(sample, neighbor)``, float64, zero on the diagonal.

        Source: Coifman and Lafon, Diffusion maps (2006), equation 9.
        """
        self._check_time(t)
        profile = torch.linalg.matrix_power(self.wide.detach(), t)
        reached = profile.amax(0) > 0
        if bool((self.stationary[reached] <= 0).any()):
            raise OperatorError(
                "the diffusion distance divides by the stationary mass, and transient samples have none"
            )
        profile = profile[:, reached] / self.stationary[reached].sqrt()
        out = torch.empty(self.n_samples, self.n_samples, dtype=torch.float64, device=profile.device)
        points = cloud(profile)
        return squared_distances_(out, points).sqrt_().div_(points.unit)

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """Counts of what makes an operator doubtful; see :mod:`repaudit.gauge.diagnostics`."""
        return {**seen.diagnose(self.matrix.detach()), **self._known}

    def to_numpy(self) -> NDArray[Any]:
        found: NDArray[Any] = self.matrix.detach().cpu().numpy()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.to_numpy(), dtype=dtype, copy=True if copy is None else copy)

    def to_dataarray(self) -> xr.DataArray:
        """The matrix on ``(sample, neighbor)``, the degrees as a coordinate, all parameters in the attrs."""
        coords: dict[str, Any] = {DEGREE: (SAMPLE, self.degrees.cpu().numpy())}
        if self.samples is not None:
            coords |= {SAMPLE: self.samples, NEIGHBOR: (NEIGHBOR, self.samples)}
        attrs = self._array_attrs()
        return xr.DataArray(self.to_numpy(), dims=(SAMPLE, NEIGHBOR), coords=coords, attrs=attrs, name="operator")

    def _array_attrs(self) -> dict[str, Any]:
        named = {"long_name": "diffusion operator", "units": "1"}
        return {**named, **self.attrs, "reversible": self.reversible, "diagnostics": self.diagnostics}

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self.attrs.items() if key in {"kernel", "merge", "t"})
        return f"DiffusionOperator({self.n_samples} samples{', ' if shown else ''}{shown})"


def _from_dataarray(array: xr.DataArray, attrs: Mapping[str, Any] | None) -> DiffusionOperator:
    given = dict(array.attrs if attrs is None else attrs)
    exact = given.pop("reversible", False) and DEGREE in array.coords
    known = given.pop("diagnostics", {})
    for key in ("long_name", "units"):
        given.pop(key, None)
    if array.ndim == 1 and "n_samples" in given:
        from repaudit.gauge.sparse import sparse_from_dataarray

        return sparse_from_dataarray(array, given, exact, known)
    if "landmark" in array.dims:
        from repaudit.gauge.landmarks import landmark_from_dataarray

        return landmark_from_dataarray(array, given, known)
    if array.ndim != 2:
        raise OperatorError(f"expected one operator on (sample, neighbor), found dims {array.dims}; select one first")
    if set(array.dims) == {SAMPLE, NEIGHBOR}:
        array = _same_order(array.transpose(SAMPLE, NEIGHBOR))
    tensor = as_matrix(array.values)
    check_stochastic(tensor)
    degrees = torch.as_tensor(np.array(array.coords[DEGREE].values, dtype=np.float64)) if exact else None
    samples = array.coords[SAMPLE].values if SAMPLE in array.coords else None
    return DiffusionOperator(tensor, degrees, attrs=given, diagnostics=known, samples=samples)


def _same_order(array: xr.DataArray) -> xr.DataArray:
    """The neighbours in the order of the samples, where both are labelled."""
    if not {SAMPLE, NEIGHBOR} <= set(array.coords):
        return array
    samples, neighbors = array.coords[SAMPLE].values, array.coords[NEIGHBOR].values
    if np.array_equal(samples, neighbors):
        return array
    if len(set(samples)) < len(samples) or sorted(samples) != sorted(neighbors):
        raise OperatorError("expected transitions among the same samples, found other ids on neighbor than on sample")
    return array.sel({NEIGHBOR: samples})


def is_sparse(matrix: Any) -> bool:
    """Whether this is a sparse tensor or a scipy sparse matrix."""
    return matrix.layout != torch.strided if isinstance(matrix, Tensor) else hasattr(matrix, "tocoo")


def as_matrix(matrix: Any) -> Tensor:
    """Any array-like as a dense float32 or float64 tensor; a view where the dtype allows."""
    if isinstance(matrix, DiffusionOperator):
        return matrix.matrix
    if isinstance(matrix, Tensor):
        tensor = matrix
    else:
        array = np.asarray(matrix)
        tensor = torch.from_numpy(array if array.flags.writeable and array.flags.owndata else array.copy())
    if tensor.dtype in {torch.float32, torch.float64}:
        return tensor
    return tensor.to(torch.float32 if tensor.dtype in {torch.float16, torch.bfloat16} else torch.float64)


def check_stochastic(matrix: Tensor) -> None:
    """Refuse what is no row-stochastic matrix, and say where."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise OperatorError(f"expected a square matrix (sample, neighbor), found shape {tuple(matrix.shape)}")
    found = matrix.detach()
    sums = row_sums(found)
    if found.layout != torch.strided:
        index, values = found.coalesce().indices()[0], found.coalesce().values()
        lowest = torch.zeros_like(sums).scatter_reduce(0, index, values.double(), "amin")
    else:
        lowest = found.amin(1)
    if not bool(torch.isfinite(sums).all()):
        row = int((~torch.isfinite(sums)).nonzero()[0])
        raise OperatorError(f"expected finite transition probabilities, found NaN or infinity in row {row}")
    if float(lowest.amin()) < 0:
        raise OperatorError(f"expected probabilities, found {float(lowest.amin()):.3g} in row {int(lowest.argmin())}")
    worst = int((sums - 1).abs().argmax())
    if abs(float(sums[worst]) - 1) > _ROW_SUM:
        raise OperatorError(
            f"expected rows that sum to 1, found {float(sums[worst]):.6g} in row {worst}; divide each row by its sum"
        )


def row_sums(matrix: Tensor) -> Tensor:
    """Sum of each row of a dense or sparse matrix, ``(sample)``, float64."""
    if matrix.layout == torch.strided:
        return matrix.sum(1, dtype=torch.float64)
    entries = matrix.coalesce()
    zero = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    return zero.index_add(0, entries.indices()[0], entries.values().double())


def signs(vectors: Tensor) -> Tensor:
    """Make the largest entry of each eigenvector positive, so that equal operators give equal vectors."""
    largest = vectors.abs().argmax(0)
    return vectors.gather(0, largest[None]).sign()
