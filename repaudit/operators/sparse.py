"""A diffusion operator that keeps only some entries of each row."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigs, eigsh
from torch import Tensor

from repaudit.errors import OperatorError
from repaudit.names import NEIGHBOR, SAMPLE
from repaudit.operators.convert import as_sparse, is_sparse, signs
from repaudit.operators.diagnostics import ALONE
from repaudit.operators.labels import DEGREE, Labels
from repaudit.operators.operator import ROUNDING, DiffusionOperator
from repaudit.operators.stationary import stationary_distribution

ENTRY: Final = "entry"
_DENSE: Final = 5000
_FEW: Final = 500


class SparseDiffusionOperator(DiffusionOperator):
    """A :class:`repaudit.DiffusionOperator` whose ``matrix`` is a coalesced sparse COO tensor ``(sample, neighbor)``.

    ``np.asarray`` and what needs every eigenvalue or every distance make it dense; powers fill up as ``t`` grows.
    """

    @staticmethod
    def _holds(matrix: Any) -> bool:
        return is_sparse(matrix)

    @staticmethod
    def _as_tensor(matrix: Any) -> Tensor:
        return as_sparse(matrix)

    @staticmethod
    def _wrote(array: xr.DataArray) -> bool:
        return array.ndim == 1 and "n_samples" in array.attrs

    @classmethod
    def _read(cls, array: xr.DataArray, labels: Labels) -> DiffusionOperator:
        attrs = dict(labels.attrs)
        count = int(attrs.pop("n_samples"))
        rows, columns = array.coords["row"].values, array.coords["column"].values
        matrix = as_sparse(csr_array((array.values, (rows, columns)), shape=(count, count)))
        degrees = ids = None
        if labels.exact:
            degrees = torch.zeros(count, dtype=torch.float64)
            of_rows = torch.as_tensor(np.array(array.coords[DEGREE].values, dtype=np.float64))
            degrees[torch.from_numpy(rows.copy())] = of_rows
        if SAMPLE in array.coords:
            ids = np.empty(count, dtype=array.coords[SAMPLE].dtype)
            ids[rows] = array.coords[SAMPLE].values
        return cls(matrix, degrees, attrs=attrs, diagnostics=labels.diagnostics, samples=ids)

    @property
    def _form(self) -> str:
        return f"sparse, {self.matrix.coalesce().values().numel() / self.n_samples:.0f} entries a row"

    @cached_property
    def csr(self) -> csr_array:
        """The matrix as a scipy array, float64."""
        coo = self.matrix.detach().double().cpu().coalesce()
        rows, columns = coo.indices().numpy()
        return csr_array((coo.values().numpy(), (rows, columns)), shape=tuple(coo.shape))

    @property
    def wide(self) -> Tensor:
        """The dense matrix in float64, up to 5,000 samples."""
        if self.n_samples > _DENSE:
            raise OperatorError(
                f"this needs all {self.n_samples}² entries of a sparse operator; it is done up to {_DENSE} samples. "
                "eigenpairs(k) and power(t) stay sparse"
            )
        return self.matrix.double().to_dense()

    @cached_property
    def degrees(self) -> Tensor:
        """Row sums of the density-corrected kernel, ``(sample)``, float64; of a foreign matrix, ``N π``."""
        if self._degrees is not None:
            return self._degrees
        return torch.from_numpy(stationary_distribution(self.csr)).to(self.matrix.device) * self.n_samples

    @cached_property
    def reversible(self) -> bool:
        """Whether ``π_i P_ij = π_j P_ji`` to rounding."""
        if self._degrees is not None:
            return True
        if not bool((self.stationary > 0).all()):
            return False
        flow = diags_array(self.stationary.cpu().numpy()) @ self.csr
        difference = flow - flow.T
        norm = [float(np.sqrt(part.multiply(part).sum())) for part in (difference, flow)]
        return norm[0] <= ROUNDING[self.matrix.dtype] * norm[1]

    @property
    def symmetric(self) -> Tensor:
        """Symmetric conjugate ``D^1/2 P D^-1/2``, sparse, float64."""
        self._needs_reversible()
        return as_sparse(self._conjugate()).to(self.matrix.device)

    def _conjugate(self) -> csr_array:
        root = np.sqrt(self.stationary.cpu().numpy())
        conjugate = diags_array(root) @ self.csr @ diags_array(1 / root)
        return csr_array((conjugate + conjugate.T) / 2)

    def power(self, t: int) -> DiffusionOperator:
        """Return ``P^t``, which fills up as ``t`` grows."""
        time = self._check_time(t)
        raised, square = diags_array(np.ones(self.n_samples), format="csr"), self.csr
        while t:
            raised, square, t = (raised @ square if t & 1 else raised), (square @ square if t > 1 else square), t >> 1
        tensor = as_sparse(raised).to(self.matrix.dtype).to(self.matrix.device)
        return SparseDiffusionOperator(tensor, self._degrees, attrs={**self.attrs, "t": time}, samples=self.samples)

    def eigenpairs(self, k: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the ``k`` largest eigenvalues and right eigenvectors; few of many by Lanczos iteration."""
        k = self._check_k(k)
        if self.n_samples <= _FEW or 4 * k > self.n_samples:
            return DiffusionOperator(self.wide, self._degrees).eigenpairs(k)
        start = np.random.default_rng(0).standard_normal(self.n_samples)
        if not self.reversible:
            values, vectors = eigs(self.csr, k=k, which="LM", v0=start)
            order = np.argsort(-np.abs(values), kind="stable")
            values, vectors = torch.from_numpy(values[order]), torch.from_numpy(vectors[:, order])
            return values, vectors / (self.stationary.cpu()[:, None] * vectors.abs().square()).sum(0).sqrt()
        values, vectors = self._reversible_eigenpairs(k, start)
        found = torch.from_numpy(vectors) / self.stationary.cpu().sqrt()[:, None]
        device = self.matrix.device
        return torch.from_numpy(values).to(device), (found * signs(found)).to(device)

    def _reversible_eigenpairs(self, k: int, start: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Lanczos, with the unit eigenvectors, one a component, known beforehand: it may miss repeated eigenvalues."""
        conjugate = self._conjugate()
        count, label = connected_components(conjugate, directed=False)
        known = np.zeros((self.n_samples, count))
        known[np.arange(self.n_samples), label] = np.sqrt(self.stationary.cpu().numpy())
        known /= np.linalg.norm(known, axis=0)
        if k <= count:
            return np.ones(k), known[:, :k]

        # shifted to [0, 2], so that the known ones, taken to 0, are last
        def deflated(x: NDArray[Any]) -> NDArray[Any]:
            x = x.reshape(-1)
            x = x - known @ (known.T @ x)
            moved = conjugate @ x + x
            moved -= known @ (known.T @ moved)
            return np.asarray(moved)

        shape = (self.n_samples, self.n_samples)
        values, vectors = eigsh(LinearOperator(shape, matvec=deflated, dtype=float), k=k - count, which="LA", v0=start)
        order = np.argsort(-values, kind="stable")
        return np.concatenate([np.ones(count), values[order] - 1]), np.concatenate([known, vectors[:, order]], axis=1)

    @cached_property
    def _moduli(self) -> Tensor:
        return DiffusionOperator(self.wide, self._degrees)._moduli

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """Counts of what makes an operator doubtful."""
        matrix = self.csr
        logs = matrix.copy()
        logs.data = -matrix.data * np.log(np.where(matrix.data > 0, matrix.data, 1))
        neighbors = float(np.median(np.exp(np.asarray(logs.sum(axis=1)).ravel())))
        weakest = torch.finfo(self.matrix.dtype).eps
        both = matrix.copy()
        both.data = np.sqrt(both.data)
        links = both.multiply(both.T) > weakest
        found = {
            "isolated": int((matrix.diagonal() >= 1 - ALONE).sum()) if self.n_samples > 1 else 0,
            "components": int(connected_components(links, directed=False)[0]),
            "effective_neighbors": neighbors,
            "uniformity": neighbors / self.n_samples,
        }
        return {**found, **self._known}

    def to_numpy(self) -> NDArray[Any]:
        """Return the dense matrix."""
        found: NDArray[Any] = self.matrix.detach().cpu().to_dense().numpy()
        return found

    def to_dataarray(self) -> xr.DataArray:
        """Return the entries on dim ``entry``, with coordinates ``row``, ``column`` and the row's ``degree``."""
        coo = self.matrix.detach().cpu()
        rows, columns = coo.indices().numpy()
        coords = {"row": (ENTRY, rows), "column": (ENTRY, columns), DEGREE: (ENTRY, self.degrees.cpu().numpy()[rows])}
        if self.samples is not None:
            coords |= {SAMPLE: (ENTRY, self.samples[rows]), NEIGHBOR: (ENTRY, self.samples[columns])}
        attrs = {**self._array_attrs(), "n_samples": self.n_samples}
        return xr.DataArray(coo.values().numpy(), dims=(ENTRY,), coords=coords, attrs=attrs, name="operator")
