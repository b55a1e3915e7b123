"""What ``--help`` says: an example that runs for each command, all choices; and what a shell completes."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from typer.testing import CliRunner

import repaudit as ra
from repaudit.analysis.layer_names import Match
from repaudit.analysis.settings import Settings, StoreStrategy
from repaudit.cli import app
from repaudit.cli.completion import _completed
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.similarity import Measure
from repaudit.store.format.encoding import CodecName
from repaudit.store.read.stored_probe_set import StoredProbeSet

COMMAND = str(Path(sys.executable).with_name("repaudit"))
COMMANDS = ("record", "info", "watch", "analyze", "report", "verify", "repair", "copy", "export")


def run(*words):
    return CliRunner().invoke(app, list(words), prog_name="repaudit", env={"COLUMNS": "100"})


def example(command):
    """Return the example at the end of a command's help."""
    shown = run(command, "--help").output
    head, found, text = shown.rpartition("\n  Example:\n")
    assert found, shown
    assert "--help" in head, "there is something between the options and the end"
    return shlex.split(" ".join(text.split("\n")))


@pytest.fixture
def texts_and_model(tmp_path):
    """The folder my-model, a Llama with its tokenizer, and texts."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [f"text number {i} of {i % 3} kinds" for i in range(12)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=280, special_tokens=["<pad>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=2, hidden_size=16, intermediate_size=16, vocab_size=300, **heads)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    (tmp_path / "texts.txt").write_text("\n".join(texts))


def test_every_command_ends_its_help_with_an_example_that_runs(planted_store, texts_and_model, tmp_path, monkeypatch):
    assert {command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)
    planted_store(name="runs.zarr", layers=("model.layers.0", "model.layers.1"), steps=(0, 1, 2))
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        name, *words = example(command)
        assert (name, words[0]) == ("repaudit", command)
        done = run(*words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    made = {"pretrained.zarr", "runs.analysis", "fewer.zarr", "activations.npy"}
    assert made <= {path.name for path in tmp_path.iterdir()}
    recorded = run("info", "pretrained.zarr").output
    assert "model.layers.0 (16), model.layers.1 (16), model.norm (16)" in recorded


def test_the_choices_of_every_option_are_listed():
    shown = {command: run(command, "--help").output for command in ("analyze", "copy")}
    asked = get_type_hints(Settings)
    for option, kind in (
        ("--match", Match),
        ("--merge", StoreStrategy),
        ("--keep-merged", asked["keep_merged"]),
        ("--figures", asked["figures"]),
    ):
        line = next(line for line in shown["analyze"].splitlines() if line.strip().startswith(option))
        assert set(line.partition("<")[2].partition(">")[0].split("|")) == set(get_args(kind)), line
    assert f"<{'|'.join(get_args(CodecName))}>" in shown["copy"]
    words = " ".join(shown["analyze"].split())
    assert all(f" {measure}" in words for measure in get_args(Measure))
    gauge = words.partition("--gauge")[2].partition("--scales")[0]
    assert all(field.name in gauge for field in fields(DiffusionGauge))
    for kind in (get_type_hints(DiffusionGauge)["kernel"], get_type_hints(DiffusionGauge)["metric"]):
        assert "|".join(get_args(kind)) in gauge


def completed(shell_words):
    at = {"COMP_WORDS": shell_words, "COMP_CWORD": str(shell_words.count(" "))}
    environment = os.environ | {"_REPAUDIT_COMPLETE": "complete_bash"} | at
    done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == "", done.stderr
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_names_of_the_store(planted_store, tmp_path):
    url = planted_store(layers=("model.embed", "model.norm"), steps=(0,))
    assert completed("repaudit an") == ["analyze"]
    assert completed("repaudit analyze --keep-m") == ["--keep-merged"]
    assert completed("repaudit analyze --merge fro") == ["frobenius"]
    models = completed(f"repaudit analyze {url} --models seed0,")
    assert models == ["seed0,seed1", "seed0,seed2"]
    assert completed(f"repaudit export {url} seed1 model.n") == ["model.norm"]
    assert completed(f"repaudit copy {tmp_path / 'no'} x --layers m") == []


PLAIN = ("seed0", "größe-1.b", "模型_2", "a/b:c@d+e=f%g,h", "हिन्दी")
HOSTILE = (
    "", "$(touch${IFS}x)", "`touch`", "a;touch", "a&b", "a|b", "a b", "a\nb", "a\x1b[2J", "a'b", 'a"b', "a\\b", "$HOME",
    "a*", "a?", "a[0]", "{a,b}", "~root", "=ls", "-rf", "--force", "!!", "#a", "a(b)", "a<b", "a>b", "a^b", "%1",
    "\u202ea", "a\u2028b",
)  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_only_names_that_a_shell_takes_as_they_are_are_offered(shell):
    assert _completed("", [*PLAIN, *HOSTILE]) == list(PLAIN)
    assert _completed("m,", ["-b", "$a", *PLAIN]) == ["m,-b", *(f"m,{name}" for name in PLAIN)]
    assert _completed("$(touch x),", PLAIN) == [], "what is typed in quotes would lose them"
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    for word in _completed("", PLAIN):
        told = subprocess.run([shell, "-c", f"printf '<%s>' {word}"], capture_output=True, text=True, check=True)
        assert told.stdout == f"<{word}>"


def said_until(answer, terminal):
    """Read a terminal until it says something, for a minute and a half at most."""
    said, end = "", time.monotonic() + 90
    while not re.search(answer, said) and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            said += os.read(terminal, 65536).decode(errors="replace")
    return said


@pytest.mark.slow
def test_tab_in_a_shell_never_puts_a_command_of_a_store_onto_the_line(tmp_path):
    """A real bash at a terminal: Tab, then Enter."""
    url, flag = tmp_path / "store.zarr", tmp_path / "flag"
    probe_set = StoredProbeSet("a" * 64, ["s0", "s1"], {"x": np.eye(2)})
    layers = {"l0": ((2, 3), "float32")}
    name = f"$(touch${{IFS}}{flag})"
    with ra.TrajectoryWriter(url, model_name=name, probe_set=probe_set, layers=layers, durable=False) as writer:
        writer.append(0, {"l0": np.ones((2, 3), "f4")})
    at = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "TERM": "dumb", "PS1": "> "}
    at["PATH"] = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    script = subprocess.run([COMMAND, "--show-completion", "bash"], env=at, capture_output=True, text=True, check=True)
    (tmp_path / "complete.sh").write_text(script.stdout)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file.npy").touch()  # what bash completes where the command offers nothing
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path / "here")
        os.execvpe("bash", ["bash", "--norc", "-i"], at)
    said = ""
    for typed, answer in (
        (f"source {tmp_path}/complete.sh; echo rea''dy\n", "ready"),
        (f"repaudit export {url} \t", r"file\.npy|flag"),
        (" l0 x.npy; echo do''ne\n", "done"),
    ):
        os.write(terminal, typed.encode())
        said += (heard := said_until(answer, terminal))
        assert re.search(answer, heard), said
    os.close(terminal)
    os.waitpid(child, 0)
    assert not flag.exists(), said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_completion_is_installed(shell, tmp_path):
    home = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [COMMAND, "--install-completion", shell], env=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = "\n".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "_REPAUDIT_COMPLETE" in written
