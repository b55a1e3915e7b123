"""What goes to the terminal: names of others are shown, and never obeyed."""

from __future__ import annotations

import numpy as np
import pytest

import repaudit as ra
from repaudit.cli import app
from repaudit.cli.console import PlainConsole, visible
from repaudit.store.read.stored_probe_set import StoredProbeSet

HOSTILE = "s\x1b[2J\x1b]0;owned\x07\rfake\nno problem found\x9b31m\u202e[bold]"
CONTROLS = [*map(chr, range(10)), *map(chr, range(11, 32)), *map(chr, range(0x7F, 0xA0)), "\u202e"]


@pytest.fixture
def hostile(tmp_path):
    """A store in which every name and label holds terminal escapes, under a path that does."""
    probe_set = StoredProbeSet("a" * 64, [f"{HOSTILE}{i}" for i in range(9)], {"x": np.eye(9)}, [f"{HOSTILE}l"] * 9)
    url = tmp_path / "\x1b[31mstore.zarr"
    layers = {HOSTILE: ((9, 3), "float32")}
    with ra.TrajectoryWriter(url, model_name=HOSTILE, probe_set=probe_set, layers=layers, durable=False) as writer:
        for step in range(2):
            writer.append(step, {HOSTILE: np.random.default_rng(step).normal(size=(9, 3)).astype("f4")})
    return url


def output(capsys, *args) -> str:
    with pytest.raises(SystemExit):
        app(list(map(str, args)), prog_name="repaudit")
    said = "".join(capsys.readouterr())
    assert not [char for char in CONTROLS if char in said], repr(said)
    assert "no problem found" not in said.splitlines()
    return said


def test_no_command_prints_what_a_terminal_would_obey(hostile, tmp_path, capsys):
    assert r"s\x1b[2J\x1b]0;owned\x07\rfake\nno" in output(capsys, "info", hostile)
    assert r"\x1b[2J" in output(capsys, "copy", hostile, tmp_path / "copy.zarr")
    bare = ("--frames", 0, "--units", 0, "--no-cache")
    assert r"\x1b[2J" in output(capsys, "analyze", hostile, *bare, "--out", tmp_path / "\x1b[31mout")
    assert r"\x1b[31mout" in output(capsys, "report", tmp_path / "\x1b[31mout")
    assert r"\x1b[31m" in output(capsys, "export", hostile, HOSTILE, HOSTILE, tmp_path / "\x1b[31mx.npy")
    assert r"\x1b[2J" in output(capsys, "info", tmp_path / "\x1b[2Jmissing")
    assert r"\x1b[2J" in output(capsys, "export", hostile, "\x1b[2J", HOSTILE, tmp_path / "x.npy")
    (hostile / "\x1b[2Jforeign").mkdir()
    next((hostile / "models").glob("*/*/c.1.*")).unlink()
    assert r"\x1b[2Jforeign" in output(capsys, "verify", hostile)
    output(capsys, "repair", hostile)


def test_bars_on_a_terminal_show_what_is_reported_and_obey_none_of_it(hostile, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich a terminal
    with pytest.raises(SystemExit):
        app(["copy", str(hostile), str(tmp_path / "copy.zarr")], prog_name="repaudit")
    said = capsys.readouterr().err
    assert r"steps of s\x1b[2J\x1b]0;owned\x07\rfake\nno" in said, "there is a bar"
    assert "[bold]" in said, "no markup"
    assert not [bad for bad in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e", "\x1b[31m") if bad in said], repr(said)


def test_no_name_becomes_a_picture(capsys):
    PlainConsole().print("layer :smile:")
    assert capsys.readouterr().out == "layer :smile:\n"


def test_ordinary_text_of_any_script_stays():
    text = "Größe 模型 عربي e\u0301 [a] \\x1b 👩\u200d🔬"
    assert visible(text) == text
    assert not any(char in visible("".join(map(chr, range(0x300)))) for char in CONTROLS)


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(hostile):
    import os
    import subprocess
    import sys
    from pathlib import Path

    read, write = os.pipe()
    os.close(read)
    command = [str(Path(sys.executable).with_name("repaudit")), "info", str(hostile), "--json"]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")
