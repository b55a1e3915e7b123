"""Files that appear whole."""

import os
import stat

import pytest

from repaudit.store.storage.replacing import replacing


@pytest.fixture
def umask():
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path, umask, mask, mode):
    umask(mask)
    with replacing(tmp_path / "folder" / "file") as stream:
        stream.write(b"whole")
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == mode


def test_a_block_that_raises_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"before")

    def fail():
        with replacing(target) as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["数" * 80 + ".npy", "é" * 125 + ".npy", "x" * 255, "\udcff" * 200], ids=ascii)
def test_names_as_long_as_a_file_system_takes(tmp_path, name):
    with replacing(tmp_path / name) as stream:
        stream.write(b"whole")
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 - as it is


def test_nothing_is_seen_before_the_block_ends(tmp_path):
    with replacing(tmp_path / "file") as stream:
        stream.write(b"half")
        stream.flush()
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"half"
