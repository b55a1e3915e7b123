"""The command line as a user meets it: exit codes, one clear line, and each command once as a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr
from rich.console import Console

from repaudit.cli import app
from repaudit.cli.answer import print_answer

COMMAND = str(Path(sys.executable).with_name("repaudit"))
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def repaudit(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def within(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run what the command runs in this process, which has imported torch already."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(map(str, args)), prog_name="repaudit")
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_info_names_models_layers_and_steps(planted_store):
    url = planted_store(models=2)
    shown = repaudit("info", url)
    assert shown.returncode == 0
    assert "seed0" in shown.stdout
    assert "first (12), second (12)" in shown.stdout
    found = json.loads(repaudit("info", url, "--json").stdout)
    assert found["samples"] == 48
    assert found["models"][1]["name"] == "seed1"
    assert found["models"][1]["steps"] == [0, 1, 2, 4, 8, 16]
    assert [layer["name"] for layer in found["models"][0]["layers"]] == ["first", "second"]


def test_info_does_not_import_torch(planted_store):
    script = (
        "import sys; from typer.testing import CliRunner; from repaudit.cli import app; "
        "run = CliRunner().invoke(app, ['info', sys.argv[1]]); assert run.exit_code == 0, run.output; "
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(planted_store(models=1))], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_analyze_prints_the_answer_and_the_report(planted_store, tmp_path):
    run = repaudit("analyze", planted_store(layers=("only",)), "--steps", "0:4,16", "--models", "seed0,seed2")
    assert run.returncode == 0, run.stderr
    assert "converg" in run.stdout
    report = tmp_path / "store.analysis" / "report.html"
    assert str(report) in run.stdout
    assert report.exists()
    summary = json.loads((tmp_path / "store.analysis" / "summary.json").read_text())
    assert summary["steps"] == [0, 1, 2, 4, 16]


def test_analyze_takes_a_config_that_flags_override(planted_store, tmp_path):
    config = tmp_path / "analysis.yaml"
    config.write_text("layers: [second]\nseed: 7\nmerge: reversible\nframes: 0\nunits: 0\ngauge: {knn: 10}\n")
    groups = ("--groups", "a=seed0,seed1", "--groups", "b=seed2")
    run = repaudit(
        "analyze",
        planted_store(steps=(0, 1, 2)),
        "--config",
        config,
        "--merge",
        "weighted",
        *groups,
        "--workers",
        "1",
        "--json",
    )
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    assert list(summary["layers"]) == ["second"]
    assert (summary["parameters"]["seed"], summary["parameters"]["merge"]) == (7, "weighted")
    assert summary["parameters"]["gauge"]["knn"] == 10
    assert set(summary["layers"]["second"]["groups"]) == {"a", "a | b"}


def test_analyze_json_is_all_there_is_on_stdout(planted_store, tmp_path, within):
    url = planted_store(models=1, layers=("only",), steps=(0, 1))
    run = within("analyze", url, "--json", "--out", tmp_path / "elsewhere")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["layers"]["only"]["verdict"] == "undecided"
    assert (tmp_path / "elsewhere" / "report.html").exists()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "foreign.zarr", zarr_format=3, consolidated=False)
    return tmp_path / "foreign.zarr"


@pytest.mark.parametrize("command", ["info", "analyze"])
def test_bad_places_get_one_line(command, foreign, tmp_path, within):
    missing = tmp_path / "missing.zarr"
    for how, place, code in (
        (repaudit, missing, 2),
        (within, missing, 2),
        (within, foreign, 3),
        (within, Path(__file__), 3),
    ):
        run = how(command, place)
        assert run.returncode == code, (place, run.stderr)
        assert run.stdout == ""
        assert run.stderr.startswith("error: ")
        assert run.stderr.count("\n") == 1, run.stderr
        assert place.name in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--layers", "third"], "third"),
        (["--models", "x,y"], "x, y"),
        (["--steps", "abc"], "abc"),
        (["--memory", "lots"], "lots"),
        (["--merge", "sum"], "sum"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--groups", "seed0"], "seed0"),
        (["--groups", "a=seed9"], "seed0 in none"),
        (["--similarity", "cosine"], "cosine"),
    ],
)
def test_wrong_usage_exits_with_2(planted_store, flags, said, within):
    run = within("analyze", planted_store(models=1), *flags)
    assert run.returncode == 2, run.stderr
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_verify_and_repair_find_and_drop_a_lost_step(planted_store, within):
    url = planted_store(models=1, layers=("only",))
    assert within("verify", url, "--data").returncode == 0
    chunk = next(path for path in sorted((url / "models" / "seed0" / "only").iterdir()) if path.name.startswith("c.3."))
    chunk.unlink()
    found = repaudit("verify", url, "--json")
    assert found.returncode == 1
    assert [problem["kind"] for problem in json.loads(found.stdout)] == ["missing_chunk"]
    assert "only" in json.loads(found.stdout)[0]["location"]
    assert repaudit("repair", url).returncode == 0
    assert within("verify", url, "--data").returncode == 0
    assert json.loads(within("info", url, "--json").stdout)["models"][0]["steps"] == [0, 1, 2, 8, 16]


def test_report_is_written_again_from_its_results(planted_store, tmp_path, within):
    url = planted_store(models=1, layers=("only",), steps=(0, 1))
    assert within("analyze", url, "--frames", "0", "--units", "0").returncode == 0
    report = tmp_path / "store.analysis" / "report.html"
    report.unlink()
    assert repaudit("report", tmp_path / "store.analysis").returncode == 0
    assert report.stat().st_size > 10_000
    assert within("report", tmp_path).returncode == 2


def test_record_takes_a_saved_model(tmp_path, within):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    texts = [f"text number {i} of {i % 3} kinds" for i in range(12)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=280, special_tokens=["<pad>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>")
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=300, n_positions=64))
    tokenizer.save_pretrained(tmp_path / "tiny")
    model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "probe.txt").write_text("\n".join(texts))
    store = tmp_path / "store.zarr"
    place = ("--probe", tmp_path / "probe.txt", "--store", store)
    run = repaudit("record", tmp_path / "tiny", "--layers", "transformer.h[*]", *place, "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"tiny": [0]}
    layers = json.loads(within("info", store, "--json").stdout)["models"][0]["layers"]
    assert [layer["name"] for layer in layers] == ["transformer.h.0", "transformer.h.1"]
    wrong = within("record", tmp_path / "tiny", "--layers", "transformer.block[*]", *place)
    assert wrong.returncode == 2
    assert "block" in wrong.stderr


def test_the_gauge_frames_and_units_are_flags(planted_store, tmp_path, within):
    config = tmp_path / "analysis.yaml"
    config.write_text("gauge: {knn: 10, alpha: 0.5}\nframes: 3\n")
    flags = ("--gauge", "knn=7", "--gauge", "metric=cosine", "--frames", "0", "--units", "0")
    run = within("analyze", planted_store(layers=("only",), steps=(0, 1)), "--config", config, *flags, "--json")
    parameters = json.loads(run.stdout)["parameters"]
    assert {name: parameters["gauge"][name] for name in ("knn", "alpha", "metric")} == {
        "knn": 7,
        "alpha": 0.5,
        "metric": "cosine",
    }
    assert (parameters["frames"], parameters["units"]) == (0, 0)


def test_a_config_whose_gauge_is_a_word_is_told_beside_a_flag(planted_store, tmp_path, within):
    config = tmp_path / "analysis.yaml"
    config.write_text("gauge: cosine\n")
    run = within("analyze", planted_store(layers=("only",)), "--config", config, "--gauge", "knn=5")
    assert run.returncode == 2, run.stderr
    assert "found 'cosine'" in run.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["knn"], "found 'knn'"),
        (["knn=5", "knn=6"], "found 'knn=6'"),
        (["kmn=5"], "expected one of kernel, knn"),
        (["knn=a"], "knn"),
        (["knn=[1"], "for knn, found '[1'"),
    ],
)
def test_parameters_of_the_gauge_that_cannot_be_are_told(planted_store, given, told, within):
    flags = [word for text in given for word in ("--gauge", text)]
    run = within("analyze", planted_store(layers=("only",)), *flags)
    assert run.returncode == 2
    assert told in run.stderr


def test_the_answer_on_a_terminal_is_a_table():
    entry = {"verdict": "converging", "start": 0.7, "end": 0.2, "low": 0.15, "high": 0.25, "settled": 40}
    layers = {
        f"model.layers.{i}": {
            "sentence": "",
            "scales": {"neighbourhoods": entry, "shape": entry | {"verdict": verdict}},
        }
        for i, verdict in enumerate(["unchanged"] * 20 + ["diverging"] * 10)
    }
    scales = [{"name": "neighbourhoods", "scale": 15}, {"name": "shape", "scale": 64}]
    summary = {
        "headline": "All [converge].",
        "models": ["a", "b"],
        "steps": [0, 40],
        "layers": layers,
        "scales": scales,
    }
    console = Console(record=True, force_terminal=True, width=90, file=io.StringIO(), soft_wrap=True)
    print_answer(summary, console)
    text = console.export_text()
    assert "All [converge]." in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("model.")]
    assert [row[3:6] for row in rows] == [
        ["(30)", "neighbourhoods", "converging"], ["(20)", "shape", "unchanged"], ["(10)", "shape", "diverging"],
    ]  # fmt: skip
    few = summary | {"layers": dict(list(layers.items())[:2])}
    print_answer(few, console)
    rows = [line.split() for line in console.export_text().splitlines() if line.strip().startswith("model.")]
    assert rows[-1] == ["model.layers.1", "shape", "unchanged", "0.70", "0.20", "[0.15,", "0.25]", "40"]


def test_progress_without_a_terminal_is_lines(planted_store, tmp_path, within):
    flags = ("--json", "--no-figures", "--frames", "0", "--units", "0")
    run = repaudit("analyze", planted_store(), "--out", tmp_path / "out", *flags)
    assert json.loads(run.stdout)["status"] == "complete", run.stderr
    said = [line.partition("] ")[2].split() for line in run.stderr.splitlines()]
    stages = [what for what, *_ in said if what != "reading"]  # which is said only where that takes a second
    assert list(dict.fromkeys(stages)) == ["operators", "results", "writing"]
    counts = {what: more[0].split("/") for what, *more in said if what != "reading"}
    assert all(done == total for done, total in counts.values()), counts
    assert not list((tmp_path / "out" / "figures").iterdir())
