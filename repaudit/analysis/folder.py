"""The folder of an analysis: made, guarded, filled in whole pieces, and swept of what crashed runs left."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import xarray as xr
from filelock import FileLock

from repaudit.errors import AnalysisError
from repaudit.plots import save_figures
from repaudit.report import write_report
from repaudit.results import SUMMARY as SUMMARY_ATTRIBUTE

RESULTS: Final = "results.zarr"
REPORT: Final = "report.html"
SUMMARY: Final = "summary.json"
FIGURES: Final = "figures"
CACHE: Final = "cache"
FIGURE_PATTERNS: Final = (
    *(f"{name}.png" for name in ("spread", "diagnostics", "comparison", "approach", "groups", "settling", "together")),
    *(f"{name}-*.png" for name in ("trajectories", "embedding", "similarity", "frames", "units")),
)
_SCRATCH: Final = f".repaudit-{socket.gethostname()}-"


def default_folder(url: str | os.PathLike[str]) -> Path:
    """``store.zarr`` -> ``store.analysis``, beside a local store and in the working directory for a remote one."""
    text = os.fspath(url).rstrip("/")
    scheme, separator, rest = text.partition("://")
    path = Path(text if not separator else rest)
    path = path if not separator or scheme in ("file", "local") else Path(path.name)
    path = path if path.name.strip(".") else path.resolve()
    return path.with_name((path.name.removesuffix(".zarr") or path.name) + ".analysis")


@contextmanager
def analysis_folder(folder: Path, store: str | os.PathLike[str]) -> Iterator[Path]:
    """Make the folder of an analysis, sweep what crashed runs left there, and take it away again if it stays empty.

    Raises
    ------
    AnalysisError
        When the folder lies in the store, or holds files of the same names that no analysis wrote.
    """
    _refuse_store(folder, store)
    _refuse_foreign(folder)
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    try:
        yield folder
    finally:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for work in progress whose name tells the process, so that a crashed one's can be swept."""
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-", dir=folder) as made:
        yield Path(made)


def write_results(results: xr.DataTree, summary: Mapping[str, Any], folder: Path) -> None:
    """Write everything aside, then put each piece in place whole: earlier results stay readable until then."""
    with scratch(folder) as fresh:
        with warnings.catch_warnings():
            # zarr says that other readers may pass over consolidated metadata, which does no harm
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            results.to_zarr(fresh / RESULTS, zarr_format=3, consolidated=True)
        text = json.dumps(nulls_for_nan(summary), indent=2, allow_nan=False)
        (fresh / SUMMARY).write_text(text + "\n", encoding="utf-8")
        save_figures(results, fresh / FIGURES)
        write_report(results, summary, fresh / REPORT)
        with _alone(folder):
            _put_results(fresh / RESULTS, folder / RESULTS, fresh)
            for name in (SUMMARY, REPORT):
                (fresh / name).replace(folder / name)
            _put_figures(fresh / FIGURES, folder / FIGURES)


def rewrite_report(folder: Path) -> Path:
    """Write ``report.html`` and ``figures/`` again from the results in an analysis folder; give the report's path."""
    place = folder / RESULTS
    if not place.is_dir():
        raise AnalysisError(f"{folder} holds no {RESULTS}: expected a folder that `repaudit analyze` wrote")
    try:
        with xr.open_datatree(place, engine="zarr", consolidated=True) as stored:
            results = stored.load()
        summary = json.loads(results.attrs[SUMMARY_ATTRIBUTE])
    except (ValueError, KeyError) as error:
        raise AnalysisError(f"{place} cannot be read ({error}); run `repaudit analyze` again") from error
    save_figures(results, folder / FIGURES)
    return write_report(results, summary, folder / REPORT)


def nulls_for_nan(value: Any) -> Any:
    """NaN and infinity as ``null``: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: nulls_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nulls_for_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_store(folder: Path, store: str | os.PathLike[str]) -> None:
    scheme, separator, rest = os.fspath(store).partition("://")
    if separator and scheme not in ("file", "local"):
        return
    inside, place = folder.resolve(), Path(rest if separator else os.fspath(store)).resolve()
    if inside == place or place in inside.parents:
        raise AnalysisError(f"out={folder} lies in the store {store}, which is never written to; choose another")


def _refuse_foreign(folder: Path) -> None:
    there = [name for name in (RESULTS, SUMMARY, REPORT) if (folder / name).exists()]
    if there and not (folder / RESULTS / "zarr.json").exists():
        raise AnalysisError(
            f"{folder} holds {', '.join(there)} that no analysis wrote and this one would replace; choose another out"
        )


def _sweep(folder: Path) -> None:
    """Remove the scratch folders of processes of this host that are gone."""
    for left in folder.glob(f"{_SCRATCH}*"):
        process = left.name.removeprefix(_SCRATCH).split("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left)


def _alone(folder: Path) -> FileLock:
    """One process of this host at a time puts its pieces in place, so that they are of one run."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir(), f"repaudit-{name}.lock"))


def _put_results(made: Path, place: Path, aside: Path) -> None:
    if place.exists():
        place.rename(aside / "earlier")
    made.rename(place)


def _put_figures(made: Path, place: Path) -> None:
    """Replace an analysis's own figures; whatever else lies there stays."""
    place.mkdir(exist_ok=True)
    for pattern in FIGURE_PATTERNS:
        for old in place.glob(pattern):
            old.unlink()
    for figure in sorted(made.iterdir()):
        figure.replace(place / figure.name)
