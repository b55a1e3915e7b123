"""The folder of an analysis: created, guarded, filled piece by piece, and cleaned of what crashed runs left."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import xarray as xr

from repaudit.analysis.locking import locked
from repaudit.analysis.moving import (
    PIECES,
    REPORT,
    SUMMARY,
    finish_moves,
    move_in,
    refuse_foreign,
    scratch,
    sweep,
    unfinished,
)
from repaudit.analysis.results_store import ResultsStore
from repaudit.errors import AnalysisError, NotAStoreError, StoreError
from repaudit.operators.written import FIGURES, RESULTS, changed, local_path
from repaudit.plots import save_figures
from repaudit.report import write_report
from repaudit.results import SUMMARY as SUMMARY_ATTRIBUTE
from repaudit.store.format.root_document import store_attributes
from repaudit.store.storage.local import LocalStorage

CACHE: Final = "cache"


def default_folder(url: str | os.PathLike[str]) -> Path:
    """Return ``store.analysis`` for ``store.zarr``: next to a local store, in the working directory for others."""
    text = os.fspath(url).rstrip("/")
    path = local_path(text) or Path(Path(text.partition("://")[2] or text).name)
    path = path if path.name.strip(".") else path.resolve()
    return path.with_name((path.name.removesuffix(".zarr") or path.name) + ".analysis")


@contextmanager
def analysis_folder(folder: Path, stores: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    """Create the folder of an analysis, remove what crashed runs left in it, and remove it again if it stays empty.

    Raises
    ------
    AnalysisError
        The folder or one in it is a store or in one, or has files of the same names that no analysis wrote.
    """
    for store in stores:
        _refuse_store(folder, store)
    _refuse_any_store(folder)
    if folder.exists() and not folder.is_dir():
        raise AnalysisError(f"out={folder}: expected a folder for the results, found a file")
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnalysisError(f"out={folder}: the folder cannot be created ({error.strerror})") from error
    try:
        with locked(folder):  # also tells at once whether pieces can be moved in later
            finish_moves(folder)
            refuse_foreign(folder, PIECES)
            sweep(folder)
        yield folder
    finally:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def write_answer(results: xr.DataTree, summary: Mapping[str, Any], folder: Path) -> None:
    """Write the summary and a first report while the pictures are still being made, if there are no earlier results."""
    if (folder / RESULTS).exists():
        return
    with scratch(folder) as fresh:
        _write_summary(summary, fresh / SUMMARY)
        write_report(results, summary, fresh / REPORT)
        move_in(fresh, folder, [REPORT, SUMMARY], unless_results=True)


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
        progress("writing", 0, 3)
        with warnings.catch_warnings():
            # zarr says that other readers may ignore consolidated metadata, which does no harm
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            store = ResultsStore(fresh / RESULTS)
            results.to_zarr(store, zarr_format=3, consolidated=True, write_inherited_coords=True)
        _write_summary(summary, fresh / SUMMARY)
        progress("writing", 1, 3)
        save_figures(results, fresh / FIGURES, which=figures, progress=progress)
        progress("writing", 2, 3)
        write_report(results, summary, fresh / REPORT)
        move_in(fresh, folder, PIECES)
        progress("writing", 3, 3)


def rewrite_report(
    folder: Path,
    figures: Literal["main", "all", "none"] = "main",
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write ``report.html`` and ``figures/`` again from the results in an analysis folder; return the report's path."""
    path = folder / RESULTS
    if not path.is_dir() and not unfinished(folder):
        begun = (
            ", whose analysis has not ended: run `repaudit analyze` again"
            if any((folder / it).exists() for it in (SUMMARY, CACHE))
            else ""
        )
        raise AnalysisError(f"expected a folder that `repaudit analyze` wrote, found no {RESULTS} in {folder}{begun}")
    _refuse_any_store(folder)
    with locked(folder):  # nobody replaces the results while they are compared and read
        finish_moves(folder)
        refuse_foreign(folder, [REPORT])
        results, summary = _read(path)
    with scratch(folder) as fresh:
        save_figures(results, fresh / FIGURES, which=figures, progress=progress)
        write_report(results, summary, fresh / REPORT)
        move_in(fresh, folder, [REPORT])
    return folder / REPORT


def _read(path: Path) -> tuple[xr.DataTree, dict[str, Any]]:
    """Return results and their summary, if they are what the list of files beside them says."""
    why = changed(path)
    if why is not None:
        raise AnalysisError(why)
    try:
        with xr.open_datatree(path, engine="zarr", consolidated=True) as stored:
            # DataTree.load() leaves out variables that are called like a group, such as spread
            parts = {node.path: node.to_dataset(inherit=False).load() for node in stored.subtree}
        results = xr.DataTree.from_dict(parts)
        return results, dict(json.loads(results.attrs[SUMMARY_ATTRIBUTE]))
    except Exception as error:  # any part of results without a list may be damaged
        raise AnalysisError(f"{path} cannot be read ({error}); run `repaudit analyze` again") from error


def nulls_for_nan(value: Any) -> Any:
    """Replace NaN and infinity by ``null``: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: nulls_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nulls_for_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_store(folder: Path, store: str | os.PathLike[str]) -> None:
    place = local_path(store)
    if place is None:
        return
    inside, root = folder.resolve(), place.resolve()
    if inside == root or root in inside.parents:
        raise AnalysisError(
            f"out={folder} is in the store {store}, which an analysis never writes to; choose another folder"
        )


def _refuse_any_store(folder: Path) -> None:
    """Refuse a folder of which a part is in a store, whether or not it is one of those analysed."""
    for part in (folder, folder / FIGURES, folder / CACHE):
        place = part.resolve()
        store = next((above for above in (place, *place.parents) if _is_store(above)), None)
        if store is not None:
            raise AnalysisError(
                f"{part} is in the store {store}, which an analysis never writes to; choose another folder"
            )


def _is_store(folder: Path) -> bool:
    """Return whether a folder has a store's root document, or one that cannot be read as something else."""
    try:
        return store_attributes(LocalStorage(folder)) is not None
    except (NotAStoreError, OSError):
        return False
    except StoreError:
        return True
