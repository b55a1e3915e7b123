"""A diffusion operator through landmarks: kept as a thin factor, ``(sample, landmark)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from repaudit.distance.points import row_panels
from repaudit.distance.precision import full_precision
from repaudit.errors import OperatorError
from repaudit.names import SAMPLE
from repaudit.operators.convert import signs
from repaudit.operators.diagnostics import ALONE, row_entropy
from repaudit.operators.labels import DEGREE, Labels
from repaudit.operators.operator import DiffusionOperator

LANDMARK: Final = "landmark"
_PANEL_ENTRIES: Final = {"cpu": 2**20, "cuda": 2**25}
_DENSE: Final = 5000


class LandmarkDiffusionOperator(DiffusionOperator):
    """A :class:`repaudit.DiffusionOperator` made of walks from samples to landmarks and back to samples.

    With ``A_il`` the density-corrected kernel between sample ``i`` and landmark ``l``, ``D_i = Σ_l A_il`` and
    ``Λ_l = Σ_i A_il``, ``P = (D^-1 A) (Λ^-1 A')``: row-stochastic, reversible with degrees ``D``, no eigenvalue
    negative, of rank at most the number of landmarks. One transition is two of the dense operator, which the attr
    ``t = 2`` tells: with every sample a landmark, ``P`` is the square of the dense operator.

    Kept is the ``factor`` ``B = D^-1/2 A Λ^-1/2 (sample, landmark)``: ``B B'`` is the symmetric conjugate. Powers and
    eigenpairs need no more; ``matrix``, ``np.asarray`` and distances are dense, up to 5,000 samples.

    Source: Moon et al., PHATE (2019), methods, for the two half steps; Shen and Wu, Scalability and robustness of
    spectral embedding: landmark diffusion is all you need (2022), for the walk on samples.
    """

    def __init__(
        self,
        factor: Tensor,
        degrees: Tensor,
        landmarks: Tensor,
        *,
        attrs: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
        samples: NDArray[Any] | None = None,
    ) -> None:
        self.factor = factor
        self.landmarks = landmarks
        self.attrs: dict[str, Any] = dict(attrs or {})
        self.samples = samples
        self._known = dict(diagnostics or {})
        self._degrees = degrees

    @staticmethod
    def _wrote(array: xr.DataArray) -> bool:
        return LANDMARK in array.dims

    @classmethod
    def _read(cls, array: xr.DataArray, labels: Labels) -> DiffusionOperator:
        array = array.transpose(SAMPLE, LANDMARK)
        factor = torch.from_numpy(np.array(array.values))
        degrees = torch.from_numpy(np.array(array.coords[DEGREE].values, dtype=np.float64))
        landmarks = torch.from_numpy(np.array(array.coords[LANDMARK].values))
        ids = array.coords[SAMPLE].values if SAMPLE in array.coords else None
        return cls(factor, degrees, landmarks, attrs=labels.attrs, diagnostics=labels.diagnostics, samples=ids)

    @property
    def _form(self) -> str:
        return f"{self.factor.shape[1]:,} landmarks"

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return self.factor.shape[0]

    @property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """The dense matrix, computed each time."""
        if self.n_samples > _DENSE:
            raise OperatorError(
                f"this needs all {self.n_samples}² entries of a landmark operator; it is done up to {_DENSE} samples. "
                "eigenpairs(k), power(t) and entropy(t) need the factor alone"
            )
        return self._rows(slice(0, self.n_samples))

    def _rows(self, place: slice) -> Tensor:
        """Rows of the dense matrix, ``(len(place), sample)``."""
        root = self.degrees.sqrt().to(self.factor.dtype)
        with full_precision(self.factor.device):
            rows = self.factor[place] @ self.factor.mT
        return rows.mul_(root).div_(root[place, None])

    def _panels(self) -> Iterator[slice]:
        entries = _PANEL_ENTRIES.get(self.factor.device.type, _PANEL_ENTRIES["cpu"])
        return row_panels(self.n_samples, max(1, entries // self.n_samples))

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left singular vectors, singular values and right ones of the factor, float64, largest value first."""
        q, r = torch.linalg.qr(self.factor.double())
        left, values, right = torch.linalg.svd(r)
        return q @ left, values, right.mT

    def power(self, t: int) -> DiffusionOperator:
        """``P^t``, again as a factor: ``B (B'B)^((t-1)/2)``."""
        time = self._check_time(t)
        if t == 0:
            eye = torch.eye(self.n_samples, dtype=self.factor.dtype, device=self.factor.device)
            return DiffusionOperator(eye, self._degrees, attrs={**self.attrs, "t": 0}, samples=self.samples)
        left, values, _ = self._decomposed
        raised = (left * values.pow(int(t))).to(self.factor.dtype)
        attrs = {**self.attrs, "t": time}
        return LandmarkDiffusionOperator(raised, self.degrees, self.landmarks, attrs=attrs, samples=self.samples)

    def eigenpairs(self, k: int | None = None) -> tuple[Tensor, Tensor]:
        """Return eigenvalues and right eigenvectors from the factor's singular values."""
        k = self._check_k(k)
        left, values, _ = self._decomposed
        if k > len(values):
            return super().eigenpairs(k)
        vectors = left[:, :k] / self.stationary.sqrt()[:, None]
        return values[:k].square(), vectors * signs(vectors)

    def _conjugate(self) -> Any:
        return None  # its eigenvalues are those of the small factor

    @cached_property
    def _moduli(self) -> Tensor:
        values = self._decomposed[1].square()
        return torch.nn.functional.pad(values, (0, self.n_samples - len(values)))

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """Counts of what makes an operator doubtful, from panels of its rows."""
        entropy = torch.cat([row_entropy(self._rows(place).clamp_(min=0)) for place in self._panels()])
        neighbors = float(entropy.exp().quantile(0.5))
        kept = self.factor.square().sum(1, dtype=torch.float64)
        found = {
            "isolated": int((kept >= 1 - ALONE).sum()) if self.n_samples > 1 else 0,
            "components": _components(self.factor),
            "effective_neighbors": neighbors,
            "uniformity": neighbors / self.n_samples,
        }
        return {**found, **self._known}

    def to_dataarray(self) -> xr.DataArray:
        """Return the factor on ``(sample, landmark)``, ``degree`` and the landmarks' positions as coordinates."""
        coords: dict[str, Any] = {
            DEGREE: (SAMPLE, self.degrees.cpu().numpy()),
            LANDMARK: (LANDMARK, self.landmarks.cpu().numpy()),
        }
        if self.samples is not None:
            coords[SAMPLE] = self.samples
        attrs = {**self._array_attrs(), "long_name": "factor of a landmark diffusion operator"}
        factor = self.factor.detach().cpu().numpy()
        return xr.DataArray(factor, dims=(SAMPLE, LANDMARK), coords=coords, attrs=attrs, name="operator")


def _components(factor: Tensor) -> int:
    """Return the number of components of the samples: two are linked where a landmark leads from one to the other."""
    strongest = factor.amax(0)
    links = (factor * strongest > torch.finfo(factor.dtype).eps).nonzero().cpu().numpy()
    count, size = factor.shape
    graph = coo_array((np.ones(len(links), dtype=bool), (links[:, 0], links[:, 1] + count)), (count + size,) * 2)
    label = connected_components(graph, directed=False)[1]
    return len(np.unique(label[:count]))
