"""A disk that is really full: the writer says so, and every committed step stays as it was."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

import repaudit as ra
from repaudit.errors import StoreError, StoreWarning
from repaudit.store.copying import copy_store
from repaudit.store.read import catalog
from repaudit.store.write import retrying as failures

LAYERS = {"wide": ((4, 20_000), "float32")}


def arrays(step: int) -> dict[str, np.ndarray]:
    return {"wide": np.random.default_rng(step).normal(size=(4, 20_000)).astype("float32")}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(failures, "LONGEST_WAIT", 0.0)


def assert_whole(url: Path, steps: list[int]) -> None:
    tree = ra.open_store(url)
    assert catalog.steps(tree, "m") == steps
    for index, step in enumerate(steps):
        np.testing.assert_array_equal(catalog.activations(tree, "m", "wide")[index].values, arrays(step)["wide"])


def fill(writer: ra.TrajectoryWriter) -> None:
    for step in range(20):
        writer.append(step, arrays(step))


def test_a_full_disk_raises_and_the_record_goes_on_once_there_is_room(small_disk, probe_set):
    url, ballast = small_disk / "store.zarr", small_disk / "ballast"
    keywords = {"model_name": "m", "probe_set": probe_set, "layers": LAYERS}
    ballast.write_bytes(bytes(2**20))
    writer = ra.TrajectoryWriter(url, **keywords)
    with pytest.raises(StoreError, match=r"'m', step \d+.*No space left"):
        fill(writer)
    with contextlib.suppress(StoreError):  # finalising may need room that is not there either
        writer.close()
    committed = writer.committed
    assert 2 < len(committed) < 12
    assert_whole(url, committed)
    ballast.unlink()
    with ra.TrajectoryWriter(url, **keywords) as writer:
        assert writer.steps == committed
        writer.append(committed[-1] + 1, arrays(committed[-1] + 1))
    assert_whole(url, [*committed, committed[-1] + 1])
    assert ra.verify(url, data=True) == []


def test_a_disk_that_is_full_for_a_while_leaves_noted_gaps(small_disk, probe_set):
    url, ballast = small_disk / "store.zarr", small_disk / "ballast"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", StoreWarning)
        with ra.TrajectoryWriter(
            url, model_name="m", probe_set=probe_set, layers=LAYERS, on_store_error="warn"
        ) as writer:
            ballast.write_bytes(bytes(2 * 2**20))
            for step in range(6):
                writer.append(step, arrays(step))
            writer.flush()
            ballast.unlink()
            writer.append(6, arrays(6))
    gaps = [gap["step"] for gap in writer.gaps]
    assert gaps
    assert 6 in writer.committed
    assert sorted([*writer.committed, *gaps]) == list(range(7))
    assert [str(warning.message).split()[1] for warning in told] == [str(step) for step in gaps]
    assert_whole(url, writer.committed)
    assert [gap["step"] for gap in catalog.gaps(ra.open_store(url), "m")] == gaps
    assert ra.verify(url, data=True) == []


def test_files_that_may_not_grow_leave_what_is_committed(tmp_path, probe_set):
    """Where a disk cannot be filled, a file may be refused its size: the write fails in the middle."""
    url = tmp_path / "store.zarr"
    writer = ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=LAYERS, on_store_error="warn")
    writer.append(0, arrays(0))
    writer.flush()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        writer.append(1, arrays(1))
        with pytest.warns(StoreWarning, match="step 1 .*File too large"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    writer.append(2, arrays(2))
    writer.close()
    assert [gap["step"] for gap in writer.gaps] == [1]
    assert_whole(url, [0, 2])
    assert ra.verify(url, data=True) == []


def test_a_store_that_may_only_be_read_is_read_and_a_writer_is_told(small_disk, probe_set):
    url = small_disk / "store.zarr"
    keywords = {"model_name": "m", "probe_set": probe_set, "layers": LAYERS}
    with ra.TrajectoryWriter(url, **keywords) as writer:
        writer.append(0, arrays(0))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert_whole(url, [0])
    assert ra.verify(url, data=True) == []
    with pytest.raises(OSError, match="Read-only file system"):
        ra.TrajectoryWriter(url, **keywords)
    assert_whole(url, [0])
    assert copy_store(url, small_disk.parent / "copy.zarr") == {"m": [0]}


def test_an_analysis_that_finds_its_disk_full_says_where(small_disk, planted_store):
    out = small_disk / "out"
    url = planted_store(models=2, layers=("only",), steps=(0, 1))
    with pytest.raises(OSError, match=rf"No space left on device: '{out}"):  # its page is larger than this disk
        ra.analyze(url, out, frames=0, units=0, figures="none")
