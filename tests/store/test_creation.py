"""A store is created by one commit: what an attempt that died left behind is never part of it."""

from __future__ import annotations

import errno
import os
import stat

import numpy as np
import pytest

import repaudit as ra
from repaudit.errors import CorruptStoreError, NotAStoreError
from repaudit.names import LABEL, TEXT
from repaudit.store.read.stored_probe_set import StoredProbeSet
from repaudit.store.storage import local
from repaudit.store.write import retrying
from tests.faults.conftest import FailingStorage, StoreDiedError, dying_at

LAYERS = {"l": ((3, 2), "float32")}


def first_set() -> StoredProbeSet:
    return StoredProbeSet("a" * 64, list("abc"), {"x": np.eye(3)}, labels=["dead"] * 3, texts=["dead"] * 3)


def second_set() -> StoredProbeSet:
    return StoredProbeSet("b" * 64, list("def"), {"y": np.ones((3, 4))})


def test_an_attempt_that_died_leaves_nothing_to_the_next(tmp_path):
    whole = FailingStorage(tmp_path / "whole.zarr", lambda write: None)
    ra.TrajectoryWriter(whole, model_name="m", probe_set=first_set(), layers=LAYERS).close()
    tried = 0
    for number in range(1, whole.writes + 1):
        url = tmp_path / f"{number}.zarr"
        with pytest.raises(StoreDiedError):
            ra.TrajectoryWriter(
                FailingStorage(url, dying_at(number)), model_name="m", probe_set=first_set(), layers=LAYERS
            ).close()
        if (url / "zarr.json").exists():
            continue
        tried += 1
        with ra.TrajectoryWriter(url, model_name="m", probe_set=second_set(), layers=LAYERS) as writer:
            writer.append(0, {"l": np.ones((3, 2), "float32")})
        tree = ra.open_store(url)
        assert {LABEL, TEXT}.isdisjoint(tree.variables)
        assert tree.sample.values.tolist() == list("def")
        assert ra.verify(url, data=True) == []
    assert tried > 8, "no attempt died before the store was there: the test tests nothing"


def test_a_store_that_lost_its_root_is_not_taken_for_an_attempt(tmp_path):
    url = tmp_path / "s.zarr"
    with ra.TrajectoryWriter(url, model_name="m", probe_set=first_set(), layers=LAYERS) as writer:
        writer.append(0, {"l": np.ones((3, 2), "float32")})
    (url / "zarr.json").unlink()
    before = sorted(url.rglob("*"))
    with pytest.raises(CorruptStoreError, match="root document is lost"):
        ra.TrajectoryWriter(url, model_name="m", probe_set=second_set(), layers=LAYERS)
    assert [path for path in before if not path.exists()] == []


@pytest.mark.parametrize("failures", [1, 3])
def test_a_directory_that_the_device_refuses_to_keep_is_synchronised_again(failures, tmp_path, monkeypatch):
    """One failure is made up for; a device that goes on failing is an error, although the rename happened."""
    monkeypatch.setattr(retrying, "LONGEST_WAIT", 0.0)
    url, fsync = tmp_path / "s.zarr", os.fsync
    writer = ra.TrajectoryWriter(url, model_name="m", probe_set=first_set(), layers=LAYERS)
    left, after = [0], []
    model = (url / "models/m").stat().st_ino

    def failing(descriptor: int) -> None:
        here = os.fstat(descriptor)
        if stat.S_ISDIR(here.st_mode) and here.st_ino == model:
            if left[0]:
                left[0] -= 1
                raise OSError(errno.EIO, "Input/output error")
            after.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(local.os, "fsync", failing)
    left[0] = failures
    writer.append(0, {"l": np.ones((3, 2), "float32")})
    writer.flush()
    assert left == [0]
    assert after, "the directory was never forced to the device after it had failed"
    left[0] = 1000
    writer.append(1, {"l": np.ones((3, 2), "float32")})
    with pytest.raises(ra.errors.StoreError, match="Input/output error"):
        writer.flush()
    left[0] = 0
    writer.close()


def test_what_a_killed_write_left_is_cleared_by_the_next_writer(tmp_path):
    url = tmp_path / "s.zarr"
    ra.TrajectoryWriter(url, model_name="m", probe_set=first_set(), layers=LAYERS).close()
    for folder in ("probe", "models/m"):
        (url / folder / ".0123456789ab-999999-1-1-feed.partial").write_bytes(b"half")
    found = [problem.location for problem in ra.verify(url) if problem.kind == "leftover"]
    assert len(found) == 2
    ra.TrajectoryWriter(url, model_name="m", probe_set=first_set(), layers=LAYERS).close()
    assert ra.verify(url, data=True) == []
    assert list(url.rglob("*.partial")) == []


@pytest.mark.parametrize(
    "path", ["text", "text/a.txt", "label/b/c.0", "sample/deep/x", "sha256/no", "probe/mine/a.txt"]
)
def test_files_of_others_under_names_of_ours_are_refused_and_stay(tmp_path, path):
    """A data set may well have folders called text and label."""
    theirs = tmp_path / "data" / path
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    with pytest.raises(NotAStoreError, match=f"it holds '{path}'"):
        ra.TrajectoryWriter(tmp_path / "data", model_name="m", probe_set=first_set(), layers=LAYERS)
    assert theirs.read_text() == "precious"
    assert sorted(item.name for item in (tmp_path / "data").rglob("*") if item.is_file()) == [theirs.name]
