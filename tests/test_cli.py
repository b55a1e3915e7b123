"""The command line as a user meets it: exit codes, one clear line, and each command once as a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

import repaudit as ra
from repaudit.cli import app, progress
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


@pytest.mark.parametrize("workers", [(), pytest.param(("--workers", "1"), marks=pytest.mark.slow)])
def test_analyze_takes_a_config_that_flags_override(planted_store, tmp_path, within, workers):
    config = tmp_path / "analysis.yaml"
    config.write_text("layers: [second]\nseed: 7\nmerge: reversible\nframes: 0\nunits: 0\ngauge: {knn: 10}\n")
    groups = ("--groups", "a=seed0,seed1", "--groups", "b=seed2")
    given = ("--config", config, "--merge", "weighted", *groups, *workers, "--json")
    run = within("analyze", planted_store(steps=(0, 1, 2)), *given)
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
        said = [line for line in run.stderr.splitlines() if "] reading " not in line]  # where that takes long
        assert len(said) == 1, run.stderr
        assert said[0].startswith("error: ")
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


@pytest.fixture
def uneven(plant, tmp_path: Path) -> Path:
    """A store of two models, one of which was audited more often."""
    plant(tmp_path, models=1, steps=(0, 10, 20, 30), layers=("top",), name="often.zarr")
    ra.copy_store(tmp_path / "often.zarr", tmp_path / "uneven.zarr")
    plant(tmp_path, models=2, steps=(0, 20, 40), layers=("top",), name="other.zarr")
    ra.copy_store(tmp_path / "other.zarr", tmp_path / "uneven.zarr", models=["seed1"])
    return tmp_path / "uneven.zarr"


@pytest.mark.parametrize(
    ("models", "found"), [("seed1", [0, 20]), ("*", [0, 10, 20, 30]), ("seed?,seed1", [0, 10, 20, 30])]
)
def test_a_range_of_steps_is_of_the_models_that_are_asked_for(uneven, tmp_path, within, models, found):
    out, bare = (
        tmp_path / "copy.zarr",
        ("--frames", 0, "--units", 0, "--figures", "none", "--json", "--out", tmp_path / "answer"),
    )
    run = within("copy", uneven, out, "--models", models, "--steps", "0:30")
    assert run.returncode == 0, run.stderr
    copied = ra.open_store(out)
    assert sorted({step for name in copied.repaudit.models for step in copied.repaudit.steps(name)}) == found
    run = within("analyze", uneven, "--models", models, "--steps", "0:30", *bare)
    assert json.loads(run.stdout)["steps"] == found, run.stderr
    config = tmp_path / "a.yaml"
    config.write_text(json.dumps({"models": models.split(",")}))
    run = within("analyze", uneven, "--config", config, "--steps", ":30", *bare)
    assert json.loads(run.stdout)["steps"] == found, run.stderr
    config.write_text(json.dumps({"models": 3}))
    run = within("analyze", uneven, "--config", config, "--steps", ":30", *bare)
    assert (run.returncode, run.stdout) == (2, "")
    assert "error: models" in run.stderr


def test_a_range_for_export_is_of_its_model(uneven, tmp_path, within):
    run = within("export", uneven, "seed1", "top", tmp_path / "a.npy", "--steps", "0:30")
    assert run.returncode == 0, run.stderr
    assert len(np.load(tmp_path / "a.npy")) == 2
    run = within("export", uneven, "seed7", "top", tmp_path / "a.npy", "--steps", "0:30")
    assert "seed7" in run.stderr


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


def answer(verdicts, name, width):
    """Return the lines of the answer about layers of these verdicts on a terminal."""
    entry = {"start": 0.7, "end": 0.2, "low": 0.15, "high": 0.25, "settled": 40}
    layers = {
        name.format(i): {
            "sentence": "",
            "scales": {"neighbourhoods": entry | {"verdict": "converging"}, "shape": entry | {"verdict": verdict}},
        }
        for i, verdict in enumerate(verdicts)
    }
    summary = {
        "headline": "All [converge], and the reason for that is told at such a length that it needs a second line.",
        "models": ["a", "b"],
        "steps": [0, 40],
        "layers": layers,
        "scales": [{"name": "neighbourhoods", "scale": 15}, {"name": "shape", "scale": 64}],
    }
    console = Console(record=True, force_terminal=True, width=width, file=io.StringIO(), soft_wrap=True)
    print_answer(summary, console)
    return console.export_text().splitlines()


def test_the_answer_on_a_terminal_is_a_table():
    lines = answer(["unchanged"] * 20 + ["diverging"] * 10, "model.layers.{}", 90)
    assert lines[1].startswith("All [converge]")
    rows = [line.split() for line in lines if line.strip().startswith("model.")]
    assert [(row[0], *row[2:5]) for row in rows] == [
        ("model.layers.0", "29", "(30)", "converging"),
        ("model.layers.0", "19", "(20)", "unchanged"),
        ("model.layers.20", "29", "(10)", "diverging"),
    ]
    few = answer(["unchanged"] * 2, "model.layers.{}", 90)
    rows = [line.split() for line in few if line.strip().startswith("model.")]
    assert rows[-1] == ["model.layers.1", "unchanged", "0.70", "0.20", "[0.15,", "0.25]", "40"]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("count", [6, 60])
def test_no_width_breaks_a_word_of_the_answer(width, count):
    long = "base_model.model.model.layers.{}.self_attn.q_proj"
    third = count // 3
    lines = answer([verdict for verdict in ("unchanged", "converging", "diverging") for _ in range(third)], long, width)
    assert max(map(len, lines)) <= width
    said = " ".join(" ".join(lines).split())
    assert "told at such a length that it needs a second line." in said
    assert said.count("layer verdict start end settled") == 2
    tails = [f"layers.{i}.self_attn.q_proj" for i in (range(count) if count < 24 else (0, third, 2 * third))]
    for tail in tails:
        assert any(word.endswith(tail) for word in said.split()), tail
    if count > 24:
        assert f"{third - 1}.self_attn.q_proj ({third})" in said
        assert said.count("(60)") == 1


def test_progress_without_a_terminal_is_lines(planted_store, tmp_path, within):
    flags = ("--json", "--no-figures", "--frames", "0", "--units", "0")
    run = repaudit("analyze", planted_store(), "--out", tmp_path / "out", *flags)
    assert json.loads(run.stdout)["status"] == "complete", run.stderr
    (needed,) = [line for line in run.stderr.splitlines() if not line.startswith("[")]
    assert re.fullmatch(r"needs about [\d,]+0 MB of memory", needed)
    said = [line.partition("] ")[2].split() for line in run.stderr.splitlines() if line != needed]
    stages = [what for what, *_ in said if what != "reading"]  # which is said only where that takes a second
    assert list(dict.fromkeys(stages)) == ["operators", "results", "writing"]
    counts = {what: more[0].split("/") for what, *more in said if what != "reading"}
    assert all(done == total for done, total in counts.values()), counts
    assert not list((tmp_path / "out" / "figures").iterdir())


def test_the_command_says_something_before_it_imports_what_takes_long():
    """A first line comes half a second after the command has begun, and what it imports until then is little."""
    heavy = ("xarray", "pandas", "numpy", "zarr", "dask", "torch", "transformers", "lightning", "matplotlib")
    script = f"import sys; import repaudit.cli; print(*[name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_long_work_gives_signs_of_life_in_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_SIGN", 0.05)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.3)
    with progress.shown_progress("reading runs.zarr") as report:
        time.sleep(1)
        report("operators", 0, 9)
        time.sleep(1)  # as long as one of them takes
        report("operators", 1, 9)
        report("operators", 9, 9)
    said = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert list(dict.fromkeys(said)) in (
        ["reading runs.zarr", "operators 0/9", "operators 9/9"],
        ["reading runs.zarr", "operators 0/9", "operators 1/9", "operators 9/9"],
    )
    assert said.count("reading runs.zarr") >= 2
    assert said.count("operators 0/9") >= 2


def test_bars_leave_the_terminal_to_what_is_written_between_them(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich a terminal
    with progress.shown_progress("reading runs.zarr") as report:
        report("operators", 9, 9)
        report("results", 3, 9)
        with report.aside():
            before = capsys.readouterr().err
            time.sleep(0.5)  # in which bars would be drawn several times
            assert capsys.readouterr().err == ""
        report("results", 4, 9)
    after = capsys.readouterr().err
    assert ("operators" in before, "results" in before.rpartition("operators")[2]) == (True, False), "what goes on"
    assert ("operators" in after, "4/9" in after) == (False, True), "those of before stay above"


def test_quick_work_says_nothing(capsys):
    with progress.shown_progress("reading runs.zarr"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags", [[], ["--no-cache"]])
@pytest.mark.thin(2)
def test_an_interrupted_analysis_says_whether_it_goes_on_and_does(planted_store, tmp_path, flags):
    command = [COMMAND, "analyze", str(planted_store()), "--json", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "results 0/" in line:
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
        assert process.wait(timeout=100) == 130
        assert process.stdout.read() == ""
    assert said.splitlines()[-1] == "error: interrupted" + ("" if flags else "; the same command goes on from here")
    if not flags:
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cache/operators/*/*")}
        assert len(kept) == 2 * 3 * 2 * 6
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cache/operators/*/*")} == kept


def test_lists_may_be_given_in_several_options(planted_store, tmp_path, within):
    """The last one of an option that is given twice must not take the place of the first."""
    url = planted_store(models=4, steps=(0, 1, 2, 4))
    run = within(
        "analyze", url, "--models", "seed0,seed1", "--models", "seed3", "--layers", "first", "--layers", "second",
        "--steps", "0", "--steps", "2:4", "--scales", "15", "--scales", "9", "--similarity", "cka", "--similarity",
        "rsa", "--json", "--no-figures", "--frames", 0,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    assert summary["models"] == ["seed0", "seed1", "seed3"]
    assert list(summary["layers"]) == ["first", "second"]
    assert summary["steps"] == [0, 2, 4]
    assert sorted(scale["scale"] for scale in summary["scales"]) == [9, 15]
    assert summary["parameters"]["similarity"] == ["cka", "rsa"]
    copied = within(
        "copy", url, tmp_path / "part.zarr", "--models", "seed0", "--models", "seed2", "--steps", "0", "--steps", "4"
    )
    assert copied.returncode == 0, copied.stderr
    held = json.loads(within("info", tmp_path / "part.zarr", "--json").stdout)
    assert [(model["name"], model["steps"]) for model in held["models"]] == [("seed0", [0, 4]), ("seed2", [0, 4])]


def test_a_folder_of_ones_own_is_filled_with_a_word(planted_store, tmp_path, within):
    url = planted_store(models=2, steps=(0, 1))
    own = tmp_path / "own"
    own.mkdir()
    for name in ("b.txt", "a.txt", "d.txt", "c.txt", ".hidden"):
        (own / name).write_text("mine", encoding="utf-8")
    options = ("--out", own, "--no-figures", "--frames", 0)
    said = "holds a.txt, b.txt, c.txt and 1 more: the results go beside, and replace none of it"
    assert said in " ".join(within("analyze", url, *options).stderr.split())
    assert "the results go beside" not in within("analyze", url, *options).stderr  # it is an analysis' folder now
    assert (own / "a.txt").read_text(encoding="utf-8") == "mine"


def test_a_name_with_a_comma_is_in_quotes_and_no_name_is_refused(planted_store, tmp_path, within):
    url = planted_store(models=2, layers=("a,b", "c"), steps=(0, 1))
    run = within("copy", url, tmp_path / "part.zarr", "--layers", '"a,b"')
    assert run.returncode == 0, run.stderr
    held = json.loads(within("info", tmp_path / "part.zarr", "--json").stdout)
    assert [layer["name"] for layer in held["models"][0]["layers"]] == ["a,b"]
    for empty in ("", "c,,c"):
        run = within("copy", url, tmp_path / "p.zarr", "--layers", empty)
        assert "expected names separated by commas" in " ".join(run.stderr.split())
    run = within("copy", url, tmp_path / "p.zarr", "--steps", "99999999999999999999:")
    assert (run.returncode, "expected recorded steps" in " ".join(run.stderr.split())) == (2, True)


def test_a_pipe_without_these_letters_gets_what_it_has(planted_store):
    url = planted_store(models=2, layers=("größe",), steps=(0, 1))
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command, env in (("info", {"PYTHONIOENCODING": "ascii"}), ("watch --once", poor)):
        name, *options = command.split()
        run = subprocess.run(
            [COMMAND, name, str(url), *options], capture_output=True, check=False, timeout=200,
            env={**os.environ, **env},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert b"gr\\xf6" in run.stdout


def test_a_run_says_what_it_does_not_take_over_or_find(planted_store, tmp_path, within):
    """Steps of earlier results that it replaces, a range without steps, figures that are wanted and not, a budget."""
    url, bare = planted_store(layers=("only",)), ("--frames", "0", "--units", "0", "--no-figures")
    assert within("analyze", url, *bare, "--steps", "0:4").returncode == 0
    run = within("analyze", url, *bare, "--steps", "0,16", "--memory", "2MB")
    said = " ".join(run.stderr.split())
    assert "which had steps 1, 2, 4; --out keeps both" in said
    assert "memory=2MB bounds the operators that are held at once" in said
    assert "17 of 48 samples are different ones" in run.stdout
    assert "17 of 48 samples" in (tmp_path / "store.analysis/report.html").read_text(encoding="utf-8")
    run = within("analyze", url, *bare, "--steps", "0,3:3,100:200")
    found = "expected recorded steps within 3:3, 100:200, found 0, 1, 2" in " ".join(run.stderr.split())
    assert (run.returncode, found) == (2, True)
    run = within("analyze", url, *bare, "--figures", "all")
    assert (run.returncode, "give one of them" in " ".join(run.stderr.split())) == (2, True)


@pytest.mark.slow
def test_the_memory_that_is_told_is_that_of_the_process(planted_store, tmp_path):
    """The first process of a test may have more: this one is measured as a user sees it."""
    script = (
        "import sys; from repaudit.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    flags = ("--frames", "0", "--units", "0", "--no-figures", "--out", str(tmp_path / "out"))
    command = [sys.executable, "-c", script, "analyze", str(planted_store(layers=("only",))), *flags]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    told = 1e6 * int(re.search(r"needs about ([\d,]+) MB", run.stderr)[1].replace(",", ""))
    seen = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", run.stdout)[1])
    assert 0.7 * told < seen < 1.1 * told


def test_the_command_is_a_module_too():
    run = subprocess.run([sys.executable, "-m", "repaudit", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: repaudit" in run.stdout
