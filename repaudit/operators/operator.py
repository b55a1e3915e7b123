"""The diffusion operator: a row-stochastic matrix over samples, its spectrum and its powers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from repaudit.distance.points import cloud
from repaudit.distance.squared import squared_distances_
from repaudit.errors import OperatorError
from repaudit.names import NEIGHBOR, SAMPLE
from repaudit.operators import diagnostics as seen
from repaudit.operators import shown
from repaudit.operators.convert import as_matrix, check_stochastic, signs
from repaudit.operators.kept import kept_operator
from repaudit.operators.labels import DEGREE, Labels, array_attrs, labels_of, same_order
from repaudit.operators.spectral_entropy import EXACT, SpectralEntropy, estimate_entropy
from repaudit.operators.stationary import stationary_distribution

ROUNDING: Final = {torch.float32: 2e-5, torch.float64: 1e-9}
"""Relative asymmetry of the stationary flow up to which an operator counts as reversible."""


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
        form = next((form for form in _forms() if form._holds(matrix)), DiffusionOperator)
        tensor = form._as_tensor(matrix)
        check_stochastic(tensor)
        return form(tensor, attrs=attrs)

    @classmethod
    def from_dataarray(cls, array: xr.DataArray) -> DiffusionOperator:
        """Give back the operator that :meth:`to_dataarray` wrote, its parameters, degrees and diagnostics with it."""
        return _from_dataarray(array, None)

    @staticmethod
    def from_results(
        results: str | os.PathLike[str] | xr.DataTree,
        layer: str,
        scale: float | str | None = None,
        step: int | None = None,
    ) -> DiffusionOperator:
        """Return the merged operator P* that an analysis kept.

        Parameters
        ----------
        results
            Path of ``results.zarr``, or the tree that :func:`repaudit.analyze` returned.
        layer
            Name of the layer.
        scale
            The perplexity, or its name such as ``"shape"``; the first of the analysis by default.
        step
            A step that was kept; the last one by default. ``repaudit analyze --keep-merged all`` keeps every step that
            the models share.

        Raises
        ------
        OperatorError
            There are no such results, they changed since the analysis wrote them, or there is no such layer, scale or
            step in them; those that there are, are named.

        Examples
        --------
        >>> DiffusionOperator.from_results("store.analysis/results.zarr", "model.norm").n_samples  # doctest: +SKIP
        256
        """
        kept = kept_operator(results, layer, scale, step)
        operator = DiffusionOperator.from_matrix(kept.matrix, kept.attrs)
        operator.samples = kept.samples
        return operator

    @staticmethod
    def _holds(matrix: Any) -> bool:
        """Whether this form of operator is the one for a matrix; the dense form takes what no other does."""
        return False

    @staticmethod
    def _as_tensor(matrix: Any) -> Tensor:
        return as_matrix(matrix)

    @staticmethod
    def _wrote(array: xr.DataArray) -> bool:
        """Whether :meth:`to_dataarray` of this form wrote an array."""
        return array.ndim == 2

    @classmethod
    def _read(cls, array: xr.DataArray, labels: Labels) -> DiffusionOperator:
        """Give back what :meth:`to_dataarray` of this form wrote."""
        if set(array.dims) == {SAMPLE, NEIGHBOR}:
            array = same_order(array.transpose(SAMPLE, NEIGHBOR))
        tensor = as_matrix(array.values)
        check_stochastic(tensor)
        degrees = None
        if labels.exact:
            degrees = torch.as_tensor(np.array(array.coords[DEGREE].values, dtype=np.float64))
        samples = array.coords[SAMPLE].values if SAMPLE in array.coords else None
        return DiffusionOperator(tensor, degrees, attrs=labels.attrs, diagnostics=labels.diagnostics, samples=samples)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
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
        """Whether ``π_i P_ij = π_j P_ji`` to rounding: the symmetric conjugate is exact and the spectrum real.

        An operator with transient samples, which no walk comes back to, is not.
        """
        if self._degrees is not None:
            return True
        if not bool((self.stationary > 0).all()):
            return False
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
        root = self.stationary.sqrt()
        conjugate = root[:, None] * self.wide / root
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
        """Return the ``k`` largest eigenvalues ``(k)`` and right eigenvectors ``(sample, k)``, float64; by default all.

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

        Of more than 1,000 samples it is estimated; :meth:`spectral_entropy` has the error.

        Source: Liao et al., Assessing neural network representations during training using noise-resilient diffusion
        spectral entropy (2023).
        """
        return self.spectral_entropy(t).value

    def spectral_entropy(self, t: int = 1, exact: int = EXACT) -> SpectralEntropy:
        """Return the diffusion spectral entropy with its standard error.

        It is computed from all eigenvalues, with an error of 0, up to `exact` samples, and of an operator that is not
        reversible or has landmarks; else it is estimated.
        """
        if not t >= 0:
            raise ValueError(f"the diffusion time t is 0 or more; found {t!r}")
        conjugate = self._conjugate() if self.n_samples > exact and self.reversible else None
        if conjugate is not None:
            return estimate_entropy(conjugate, self.stationary.cpu().numpy(), t)
        weight = self._moduli.pow(t)
        p = weight / weight.sum()
        return SpectralEntropy(float(-torch.special.xlogy(p, p).sum()), 0.0)

    def _conjugate(self) -> Any:
        """Return the symmetric conjugate for products with vectors; None where all eigenvalues are cheaper."""
        return self.symmetric.detach().cpu().numpy()

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
        return squared_distances_(out, points).sqrt_().div_(points.scaling)

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """Counts of what makes an operator doubtful; see :mod:`repaudit.operators.diagnostics`."""
        return {**seen.diagnose(self.matrix.detach()), **self._known}

    def to_numpy(self) -> NDArray[Any]:
        """Return the dense matrix."""
        found: NDArray[Any] = self.matrix.detach().cpu().numpy()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.to_numpy(), dtype=dtype, copy=True if copy is None else copy)

    def to_dataarray(self) -> xr.DataArray:
        """Return the matrix on ``(sample, neighbor)``, the degrees as a coordinate, all parameters in the attrs."""
        coords: dict[str, Any] = {DEGREE: (SAMPLE, self.degrees.cpu().numpy())}
        if self.samples is not None:
            coords |= {SAMPLE: self.samples, NEIGHBOR: (NEIGHBOR, self.samples)}
        attrs = self._array_attrs()
        return xr.DataArray(self.to_numpy(), dims=(SAMPLE, NEIGHBOR), coords=coords, attrs=attrs, name="operator")

    def _array_attrs(self) -> dict[str, Any]:
        return array_attrs(self.attrs, self.reversible, self.diagnostics)

    @property
    def _form(self) -> str:
        """How the matrix is kept, in words."""
        return "dense"

    def __repr__(self) -> str:
        return shown.text_of(self.n_samples, self._form, self.attrs)

    def _repr_html_(self) -> str:
        return shown.html_of(self.n_samples, self._form, self.attrs, self._known)


def _forms() -> list[type[DiffusionOperator]]:
    """All forms of operators that are imported, the dense one last."""
    return [*DiffusionOperator.__subclasses__(), DiffusionOperator]


def _from_dataarray(array: xr.DataArray, attrs: Mapping[str, Any] | None) -> DiffusionOperator:
    form = next((form for form in _forms() if form._wrote(array)), None)
    if form is None:
        raise OperatorError(f"expected one operator on (sample, neighbor), found dims {array.dims}; select one first")
    return form._read(array, labels_of(array, attrs))
