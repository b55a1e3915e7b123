"""``scripts/environment``, with a Python that notes what pip is asked for in the place of the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = next(
    line.removeprefix("torch==")
    for line in (ROOT / "scripts/constraints.txt").read_text().splitlines()
    if line.startswith("torch==")
)


def executable(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


@pytest.fixture
def prepare(tmp_path):
    """Run ``prepare`` with or without a GPU and a CPU build in the index; what pip was asked for, and what was said."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/environment", "scripts/constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)

    def run(*, gpu, cpu_build):
        asked = tmp_path / "asked"
        asked.write_text("")
        executable(tmp_path / "bin/nvidia-smi", f"exit {0 if gpu else 9}")
        no_build = f'case "$*" in *+cpu*) exit {0 if cpu_build else 1};; esac'
        executable(tmp_path / ".venv/bin/python", f'echo "$@" >> {asked}', no_build)
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable}
        command = ["bash", "-c", "source scripts/environment && prepare"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return [line.split()[-1] for line in asked.read_text().splitlines() if "torch==" in line], done.stderr

    return run


@pytest.mark.parametrize(
    ("gpu", "cpu_build", "asked", "told"),
    [
        (True, True, ["torch=={}"], False),
        (False, True, ["torch=={}+cpu"], False),
        (False, False, ["torch=={}+cpu", "torch=={}"], True),
    ],
)
def test_torch_is_the_build_for_the_machine(prepare, gpu, cpu_build, asked, told):
    found, said = prepare(gpu=gpu, cpu_build=cpu_build)
    assert found == [one.format(TORCH) for one in asked]
    assert ("PIP_EXTRA_INDEX_URL" in said) == told


def test_a_second_run_asks_for_nothing(prepare):
    prepare(gpu=False, cpu_build=True)
    assert prepare(gpu=False, cpu_build=True) == ([], "")


def test_every_extra_that_a_message_names_is_one(tmp_path):
    from repaudit.extras import EXTRAS

    parts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for library, extra in EXTRAS.items():
        brought = [one for one in parts[extra] if one.startswith(library)]
        assert brought, f"repaudit[{extra}] does not bring {library}"
    tests = parts["test"][0].partition("[")[2].rstrip("]").split(",")
    assert {*parts} - {*tests} == {"test", "audio"}, "the tests read WAV without soundfile"
