"""The commands on places that cannot be stores: one line that says what is wrong, and no traceback."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import repaudit as ra
from repaudit.cli import app


def refused(*words: object) -> tuple[int, str]:
    run = CliRunner().invoke(app, [str(word) for word in words])
    assert run.exception is None or isinstance(run.exception, SystemExit), run.exception
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1, run.stderr
    return run.exit_code, run.stderr


@pytest.mark.parametrize("command", [["info"], ["verify"], ["verify", "--json"], ["repair"]])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "empty"),
        ("foo://x", "Protocol not known: foo"),
        ("s3://bucket/store.zarr", "cannot be reached (NoCredentialsError"),
        ("nowhere.zarr", "nowhere.zarr"),
    ],
)
def test_a_place_that_cannot_be_a_store_is_one_line_and_exit_code_2(command, place, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    code, line = refused(*command, place)
    assert code == 2
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_one_line_and_exit_code_3(url, probe_set, layers, step_arrays, tmp_path):
    with ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers) as writer:
        writer.append(0, step_arrays(0))
    (tmp_path / "store.zarr/zarr.json").write_text("{")
    for words in (["info", url], ["copy", url, tmp_path / "copy.zarr"]):
        code, line = refused(*words)
        assert code == 3, line
        assert "zarr.json is missing or damaged beyond reading" in line
        assert "repaudit repair" in line
    assert not (tmp_path / "copy.zarr").exists()
    assert CliRunner().invoke(app, ["repair", str(url)]).exit_code == 0
    assert ra.open_store(url).repaudit.steps("m") == [0]
