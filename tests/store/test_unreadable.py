"""What cannot be read at the moment may be whole: it is told, and never dropped or deleted for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repaudit as ra
from repaudit.errors import CorruptStoreError, StoreNotFoundError, StoreWarning
from repaudit.store.read.catalog import lost
from repaudit.store.read.stored_probe_set import StoredProbeSet
from repaudit.store.storage.local import LocalStorage

SAMPLES = 4
STEPS = (0, 10, 20)


def values(step: int) -> np.ndarray:
    return np.full((SAMPLES, 2), step, "float32")


def probe_set() -> StoredProbeSet:
    ids = [f"p{i}" for i in range(SAMPLES)]
    return StoredProbeSet("f" * 64, ids, {"x": np.eye(SAMPLES)}, labels=list("aabb"), texts=[f"t{i}" for i in ids])


def write(url: Path, name: str, steps: tuple[int, ...] = STEPS, **options: Any) -> None:
    layers = {"l": ((SAMPLES, 2), "float32"), "m": ((SAMPLES, 2), "float32")}
    with ra.TrajectoryWriter(url, model_name=name, probe_set=probe_set(), layers=layers, **options) as writer:
        for step in steps:
            writer.append(step, {"l": values(step), "m": values(step + 1)}, loss=0.5, epoch=1.0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write(tmp_path / "s.zarr", name)
    return tmp_path / "s.zarr"


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let reads of one key fail, as those of a bad sector, of somebody else's file, or for want of memory."""
    wrong: dict[str, BaseException] = {}
    real = LocalStorage.get

    def get(self: LocalStorage, key: str) -> bytes | None:
        if key in wrong:
            raise wrong[key]
        return real(self, key)

    monkeypatch.setattr(LocalStorage, "get", get)
    return wrong


ERRORS = [OSError(5, "Input/output error"), PermissionError(13, "Permission denied"), MemoryError("no room")]
PLACES = [
    "models/b/l/c.1.0.0", "models/b/checksum/c.0.0", "models/b/loss/c.0", "models/b/layer/c.0", "models/b/zarr.json",
    "models/b/l/zarr.json",
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.thin(3)
def test_repair_drops_nothing_that_it_cannot_read_and_mends_the_others(store, refusing, place, error):
    (store / "models/a/l/c.1.0.0").write_bytes(b"")  # damage that it mends, in another model
    refusing[place] = error
    with pytest.raises(CorruptStoreError, match=r"models/b.*nothing of it was dropped: repair again when all of it"):
        ra.repair(store)
    refusing.clear()
    assert ra.verify(store, data=True) == []
    assert ra.open_store(store)["models/b"]["step"].values.tolist() == list(STEPS)
    assert ra.open_store(store)["models/a"]["step"].values.tolist() == [0, 20]
    for step in STEPS:
        assert (ra.open_store(store)["models/b"]["l"].sel(step=step).values == step).all()


@pytest.mark.parametrize("place", ["label/c.0", "text/c.0", "models/b/loss/c.0", "models/b/epoch/c.0"])
def test_what_is_dispensable_and_cannot_be_read_is_read_as_missing_and_told(store, refusing, place):
    refusing[place] = ERRORS[0]
    name = place.split("/")[-2]
    tree = ra.open_store(store)
    assert any(name in one for one in lost(tree)), lost(tree)
    assert tree["models/b"]["l"].sel(step=10).values.tolist() == values(10).tolist()
    assert [problem.location for problem in ra.verify(store, data=True)] == [place]
    with pytest.raises(CorruptStoreError, match="cannot be read now"):
        ra.repair(store)
    refusing.clear()
    assert ra.verify(store, data=True) == []


def test_a_model_whose_document_cannot_be_read_is_left_out_and_told(store, refusing):
    refusing["models/b/zarr.json"] = ERRORS[1]
    with pytest.warns(StoreWarning, match="model 'b' is left out.*cannot be read now"):
        tree = ra.open_store(store)
    assert list(tree["models"].children) == ["a"]
    assert "models/b" in {problem.location for problem in ra.verify(store)}


def test_steps_that_do_not_fit_into_memory_are_not_dropped(tmp_path):
    url, wide = tmp_path / "s.zarr", 4_000_000
    layers = {"l": ((SAMPLES, wide), "float32")}
    with ra.TrajectoryWriter(url, model_name="a", probe_set=probe_set(), layers=layers, durable=False) as writer:
        writer.append(0, {"l": np.ones((SAMPLES, wide), "float32")})
    code = f"""
import resource, repaudit as ra
from repaudit.store.check.repair import repair
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
try:
    repair({str(url)!r})
except ra.errors.CorruptStoreError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "nothing of it was dropped" in found.stdout, found.stderr[-2000:]
    assert ra.open_store(url)["models/a"]["step"].values.tolist() == [0]


FOREIGN = [
    "probe/notes/paper.txt", "probe/mine/my-zarr.json",
    "probe/readme.txt", "probe/data.partial", "models/a/thesis.partial",
    "models/a/photos.partial/one.jpg", "models/a/l/c.9.backup.tar", "models/a/l/c.1.0.0.bak",
]  # fmt: skip


def test_files_of_others_stay_and_are_told(store):
    for name in FOREIGN:
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    (store / "probe/.abc.partial").write_bytes(b"half")
    assert "probe/notes" in {problem.location for problem in ra.verify(store) if problem.kind == "foreign"}
    done = ra.repair(store)
    assert [problem.location for problem in done] == ["probe/.abc.partial"]
    write(store, "a", (30,))
    assert [name for name in FOREIGN if not (store / name).exists()] == []
    assert {problem.kind for problem in ra.verify(store, data=True)} == {"foreign"}


@pytest.mark.parametrize("name", ["models/a/own/c.1 important.txt", "models/a/l/c.1.0.0.bak", "models/a/l/c.x"])
def test_a_model_with_files_of_others_is_not_replaced(store, name):
    (store / name).parent.mkdir(exist_ok=True)
    (store / name).write_bytes(b"mine")
    with pytest.raises(ra.errors.NotAStoreError, match="which no writer made"):
        write(store, "a", (0,), if_exists="replace")
    assert (store / name).read_bytes() == b"mine"


def truncate(url: Path) -> None:
    layers = {"l": ((SAMPLES, 2), "float32"), "m": ((SAMPLES, 2), "float32")}
    with ra.TrajectoryWriter(url, model_name="a", probe_set=probe_set(), layers=layers) as writer:
        writer.truncate(after_step=0)
        writer.append(10, {"l": values(-10), "m": values(-11)})


def replace(url: Path) -> None:
    layers = {"l": ((SAMPLES, 2), "float32"), "m": ((SAMPLES, 2), "float32")}
    with ra.TrajectoryWriter(url, model_name="a", probe_set=probe_set(), layers=layers, if_exists="replace") as writer:
        for step in (0, 10):
            writer.append(step, {"l": values(step if step == 0 else -10), "m": values(step + 1)})


@pytest.mark.parametrize("codec", ["raw", "compact"])
@pytest.mark.parametrize("change", [truncate, replace])
def test_a_step_through_a_tree_from_before_is_the_old_one_or_an_error(tmp_path, change, codec):
    url = tmp_path / "s.zarr"
    write(url, "a", codec=codec)
    tree = ra.open_store(url)
    held = tree["models/a"]["l"].sel(step=10)
    change(url) if codec == "raw" else _with(change, url, codec)
    for step in (10, 20):
        for read in (tree["models/a"]["l"].sel(step=step), tree.repaudit.activations("a", "l").sel(step=step), held):
            with pytest.raises(ra.errors.StoreError, match="of the time when this tree was opened"):
                read.compute()
    assert (tree["models/a"]["l"].sel(step=0).values == 0).all(), "this one is the same"
    assert (ra.open_store(url)["models/a"]["l"].sel(step=10).values == -10).all()


def _with(change: Any, url: Path, codec: str) -> None:
    """Make the same change with a writer of another codec."""
    real = ra.TrajectoryWriter.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, codec=codec, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ra.TrajectoryWriter, "__init__", init)
        change(url)


def test_a_writer_that_goes_on_leaves_trees_from_before_readable(tmp_path):
    write(tmp_path / "s.zarr", "a", codec="compact")
    tree = ra.open_store(tmp_path / "s.zarr")
    write(tmp_path / "s.zarr", "a", (30,), codec="compact")
    assert (tree["models/a"]["l"].sel(step=20).values == 20).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wall_time": 1.8e12}, "wall_time=.*expected seconds"),
        ({"wall_time": -1e12}, "wall_time=.*expected seconds"),
        ({"trigger": "\ud800"}, "trigger=.*UTF-8"),
        ({"loss": 10**400}, "loss=.*expected a number"),
    ],
)
def test_what_no_reader_could_read_is_refused_when_it_is_given(tmp_path, given, said):
    layers = {"l": ((SAMPLES, 2), "float32")}
    with ra.TrajectoryWriter(tmp_path / "s.zarr", model_name="a", probe_set=probe_set(), layers=layers) as writer:
        with pytest.raises((ValueError, OverflowError), match=said):
            writer.append(0, {"l": values(0)}, **given)
        with pytest.raises(ValueError, match=r"step=.*64 bits"):
            writer.append(2**63, {"l": values(0)})
        writer.append(0, {"l": values(0)})
    assert ra.open_store(tmp_path / "s.zarr")["models/a"]["step"].values.tolist() == [0]


def test_a_time_that_cannot_be_represented_costs_itself_only(store):
    from repaudit.store.format.encoding import COORDINATE_CHUNK, encode_column

    times = np.array([0, 10**18, 5], dtype="<i8")
    (store / "models/b/wall_time/c.0").write_bytes(b"".join(encode_column(times, COORDINATE_CHUNK, 0)))
    tree = ra.open_store(store)
    assert any("wall_time" in one for one in lost(tree))
    assert tree["models/a"]["wall_time"].notnull().all()
    assert [problem.location for problem in ra.verify(store)] == ["models/b/wall_time/c.0"]
    ra.repair(store)
    assert ra.verify(store, data=True) == []
    assert ra.open_store(store)["models/b"]["step"].values.tolist() == list(STEPS)


LONG = [
    "label/c.0", "models/b/loss/c.0", "models/b/checksum/c.0.0", "models/b/layer/c.0", "models/b/l/c.1.0.0",
    "models/b/.lease", "probe/.lease",
]  # fmt: skip


@pytest.mark.parametrize("place", LONG)
@pytest.mark.thin(3)
def test_a_file_of_absurd_length_is_never_read(store, monkeypatch, place):
    os.truncate(store / place, 10**11) if (store / place).exists() else _sparse(store / place)
    real = LocalStorage.get

    def get(self: LocalStorage, key: str) -> bytes | None:
        assert (self.size(key) or 0) < 10**9, f"{key} is read"
        return real(self, key)

    monkeypatch.setattr(LocalStorage, "get", get)
    ra.open_store(store)
    assert place in {problem.location for problem in ra.verify(store, data=True)}
    ra.repair(store)
    assert ra.verify(store, data=True) == []


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**11)


@pytest.mark.parametrize("place", ["models/a/loss/c.0", "models/a/l/c.1.0.0", "text/c.0"])
def test_a_member_of_an_archive_that_inflates_is_refused_before(store, tmp_path, monkeypatch, place):
    import shutil

    from repaudit.store.storage.remote import RemoteStorage

    with (store / place).open("wb") as file:
        file.truncate(2**28 + 1)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", store)
    real = RemoteStorage.get
    monkeypatch.setattr(
        RemoteStorage, "get", lambda self, key: pytest.fail(f"{key} is read") if key == place else real(self, key)
    )
    tree = ra.open_store(f"zip://::{archive}")
    assert place in {problem.location for problem in ra.verify(f"zip://::{archive}", data=True)}
    with pytest.raises((OSError, ValueError)) if place.startswith("models/a/l/") else _nothing():
        tree["models/a"]["l"].sel(step=10).compute()


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.parametrize("url", ["zip://::{}", "tar://::{}", "dir://x", "reference://", "blockcache::zip://::{}"])
def test_an_address_of_no_store_is_one_error(tmp_path, url):
    (tmp_path / "plain").write_bytes(b"no archive")
    with pytest.raises(StoreNotFoundError, match="cannot be opened: "):
        ra.open_store(url.format(tmp_path / "plain"))


def test_whoever_may_write_into_a_model_may_hold_its_lock(store):
    before = os.umask(0o077)
    try:
        write(store, "c")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in store.rglob(".lock") if path.parent.name == "c"] == [0o666]


def test_verify_of_a_record_that_goes_back_reports_no_damage(store, monkeypatch):
    from repaudit.store.check import verify as checking

    real, turns = checking._model, []

    def model(inspected: Any, data: bool) -> Any:
        if inspected.name == "a" and not turns:
            turns.append(1)
            truncate(store)  # while it is looked at
        return real(inspected, data)

    monkeypatch.setattr(checking, "_model", model)
    assert ra.verify(store, data=True) == []
    assert turns


@pytest.mark.parametrize("codec", ["raw", "compact"])
def test_a_tree_of_a_store_that_was_deleted_and_recorded_anew_is_refused(tmp_path, codec):
    import shutil

    url = tmp_path / "s.zarr"
    write(url, "a", codec=codec)
    tree = ra.open_store(url)
    shutil.rmtree(url)
    with ra.TrajectoryWriter(
        url, model_name="a", probe_set=probe_set(), codec=codec, layers=dict.fromkeys("lm", ((SAMPLES, 2), "float32"))
    ) as writer:
        for step in STEPS:
            writer.append(step, {"l": values(step + 500), "m": values(step)})
    with pytest.raises(ra.errors.StoreError, match="of the time when this tree was opened"):
        tree["models/a"]["l"].sel(step=10).compute()


def test_a_lost_chunk_is_an_error_also_for_lazy_arrays(store):
    (store / "models/a/l/c.1.0.0").unlink()
    tree = ra.open_store(store)
    with pytest.raises(ra.errors.StoreError, match="or this chunk is damaged"):
        tree["models/a"]["l"].compute()
    assert (tree["models/a"]["l"].sel(step=20).values == 20).all()


def test_labels_that_do_not_fit_into_memory_stay(store, monkeypatch):
    from repaudit.store.check import root_inspection

    real = root_inspection.decode_column

    def decode(data: bytes, dtype: Any) -> Any:
        if b"a" in data and len(data) < 40:
            raise MemoryError("no room")
        return real(data, dtype)

    monkeypatch.setattr(root_inspection, "decode_column", decode)
    with pytest.raises(CorruptStoreError, match="nothing of it was dropped"):
        ra.repair(store)
    monkeypatch.undo()
    assert ra.open_store(store)["label"].values.tolist() == list("aabb")


def test_without_a_thread_to_decode_them_data_are_not_called_damaged(store, monkeypatch):
    import zarr

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(zarr, "open_array", refuse)
    with pytest.raises(ra.errors.StoreError, match=r"ulimit -u"):
        ra.repair(store)
    monkeypatch.undo()
    assert ra.verify(store, data=True) == []


def test_a_file_system_without_rights_can_be_locked(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    write(tmp_path / "s.zarr", "a")
    assert ra.open_store(tmp_path / "s.zarr")["models/a"]["step"].values.tolist() == list(STEPS)
