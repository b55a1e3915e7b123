"""When and with what a record was made."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final

_PACKAGES: Final = ("repaudit", "zarr", "numpy", "numcodecs", "xarray", "torch", "transformers", "lightning")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that shape a record, without importing them."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def now() -> str:
    """Return the present time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
