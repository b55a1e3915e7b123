"""The folder of an analysis: created, guarded, filled piece by piece, and cleaned of what crashed runs left."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import xarray as xr
from filelock import FileLock

from repaudit.analysis.scales import NEIGHBOURHOODS, SHAPE
from repaudit.errors import AnalysisError
from repaudit.plots import save_figures
from repaudit.report import write_report
from repaudit.results import SUMMARY as SUMMARY_ATTRIBUTE
from repaudit.store.storage.lease import abandoned, mark

RESULTS: Final = "results.zarr"
REPORT: Final = "report.html"
SUMMARY: Final = "summary.json"
FIGURES: Final = "figures"
CACHE: Final = "cache"
_OVER_LAYERS: Final = ("spread", "diagnostics", "comparison", "approach", "groups", "settling", "together")
_PER_LAYER: Final = ("pairs", "trajectories", "embedding", "similarity", "frames", "units")
_SUFFIXES: Final = ("", f"-{NEIGHBOURHOODS}", f"-{SHAPE}", "-perplexity *")
FIGURE_PATTERNS: Final = (
    *(f"{name}{suffix}.png" for name in _OVER_LAYERS for suffix in _SUFFIXES),
    *(f"{name}-*.png" for name in _PER_LAYER),
)
"""Files of every figure that an analysis writes; those of its further scales have the scale's name at the end."""
_SCRATCH: Final = ".repaudit-"


def default_folder(url: str | os.PathLike[str]) -> Path:
    """Return ``store.analysis`` for ``store.zarr``: next to a local store, in the working directory for others."""
    text = os.fspath(url).rstrip("/")
    scheme, separator, rest = text.partition("://")
    path = Path(text if not separator else rest)
    path = path if not separator or scheme in ("file", "local") else Path(path.name)
    path = path if path.name.strip(".") else path.resolve()
    return path.with_name((path.name.removesuffix(".zarr") or path.name) + ".analysis")


@contextmanager
def analysis_folder(folder: Path, stores: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    """Create the folder of an analysis, remove what crashed runs left in it, and remove it again if it stays empty.

    Raises
    ------
    AnalysisError
        The folder is in a store, or has files of the same names that no analysis wrote.
    """
    for store in stores:
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
    """Provide a folder for work in progress; its name has the process, so that a crashed one's can be removed."""
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{mark()}-", dir=folder) as name:
        yield Path(name)


def write_answer(results: xr.DataTree, summary: Mapping[str, Any], folder: Path) -> None:
    """Write the summary and a first report while the pictures are still being made, if there are no earlier results."""
    if (folder / RESULTS).exists():
        return
    with scratch(folder) as fresh:
        _write_summary(summary, fresh / SUMMARY)
        write_report(results, summary, fresh / REPORT)
        with _lock(folder):
            for name in (SUMMARY, REPORT):
                (fresh / name).replace(folder / name)


def _write_summary(summary: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(nulls_for_nan(summary), indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_results(
    results: xr.DataTree,
    summary: Mapping[str, Any],
    folder: Path,
    figures: Literal["main", "all", "none"],
    progress: Callable[[str, int, int], None],
) -> None:
    """Write everything to a scratch folder, then move each piece; earlier results stay readable until then."""
    with scratch(folder) as fresh:
        progress("writing", 0, 2)
        with warnings.catch_warnings():
            # zarr says that other readers may ignore consolidated metadata, which does no harm
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            results.to_zarr(fresh / RESULTS, zarr_format=3, consolidated=True, write_inherited_coords=True)
        _write_summary(summary, fresh / SUMMARY)
        progress("writing", 1, 2)
        save_figures(results, fresh / FIGURES, which=figures, progress=progress)
        write_report(results, summary, fresh / REPORT)
        progress("writing", 2, 2)
        with _lock(folder):
            _put_results(fresh / RESULTS, folder / RESULTS, fresh)
            for name in (SUMMARY, REPORT):
                (fresh / name).replace(folder / name)
            _put_figures(fresh / FIGURES, folder / FIGURES)


def rewrite_report(folder: Path, figures: Literal["main", "all", "none"] = "main") -> Path:
    """Write ``report.html`` and ``figures/`` again from the results in an analysis folder; return the report's path."""
    path = folder / RESULTS
    if not path.is_dir():
        raise AnalysisError(f"expected a folder that `repaudit analyze` wrote, found no {RESULTS} in {folder}")
    try:
        with xr.open_datatree(path, engine="zarr", consolidated=True) as stored:
            results = stored.load()
        summary = json.loads(results.attrs[SUMMARY_ATTRIBUTE])
    except (ValueError, KeyError) as error:
        raise AnalysisError(f"{path} cannot be read ({error}); run `repaudit analyze` again") from error
    save_figures(results, folder / FIGURES, which=figures)
    return write_report(results, summary, folder / REPORT)


def nulls_for_nan(value: Any) -> Any:
    """Replace NaN and infinity by ``null``: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: nulls_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nulls_for_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_store(folder: Path, store: str | os.PathLike[str]) -> None:
    scheme, separator, rest = os.fspath(store).partition("://")
    if separator and scheme not in ("file", "local"):
        return
    inside, root = folder.resolve(), Path(rest if separator else os.fspath(store)).resolve()
    if inside == root or root in inside.parents:
        raise AnalysisError(
            f"out={folder} is in the store {store}, which an analysis never writes to; choose another folder"
        )


def _refuse_foreign(folder: Path) -> None:
    present = [name for name in (RESULTS, SUMMARY, REPORT) if (folder / name).exists()]
    if present and not (folder / RESULTS / "zarr.json").exists() and not _is_partial(folder / SUMMARY):
        raise AnalysisError(
            f"{folder} has {', '.join(present)} that no analysis wrote and this one would replace; choose another out"
        )


def _is_partial(summary: Path) -> bool:
    """Return whether a summary is that of an analysis that ended before its results were written."""
    try:
        document = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("status") == "partial" and "versions" in document


def _sweep(folder: Path) -> None:
    """Remove the scratch folders of processes that have ended; those of another host may still be at work."""
    here = mark().partition("-")[0]
    for left in folder.glob(f"{_SCRATCH}*"):
        name = left.name.removeprefix(_SCRATCH)
        elsewhere = name.count("-") == mark().count("-") + 1 and not name.startswith(f"{here}-")
        if not elsewhere and abandoned(name):
            shutil.rmtree(left)


def _lock(folder: Path) -> FileLock:
    """Return a lock: one process of this host at a time moves its pieces, so that all are of one run."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir(), f"repaudit-{name}.lock"))


def _put_results(made: Path, target: Path, aside: Path) -> None:
    if target.exists():
        target.rename(aside / "earlier")
    made.rename(target)


def _put_figures(made: Path, target: Path) -> None:
    """Replace the figures of an analysis; other files stay."""
    target.mkdir(exist_ok=True)
    for pattern in FIGURE_PATTERNS:
        for old in target.glob(pattern):
            old.unlink()
    for figure in sorted(made.iterdir()):
        figure.replace(target / figure.name)
