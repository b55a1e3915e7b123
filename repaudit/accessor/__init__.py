"""``.repaudit`` on xarray objects: models, layers and steps by name, operators, the figures of an analysis.

``import repaudit`` registers the accessors, also for trees opened with plain xarray. torch is imported with the first
operator, matplotlib with the first figure.
"""

from repaudit.accessor.array import ArrayAccessor
from repaudit.accessor.tree import TreeAccessor

__all__ = ["ArrayAccessor", "TreeAccessor"]
