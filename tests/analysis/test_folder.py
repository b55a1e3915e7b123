"""The folder of an analysis: what others put there stays, and a run that dies does not lock out the next one."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import repaudit as ra
from repaudit.analysis import locking
from repaudit.analysis.folder import analysis_folder, default_folder, rewrite_report
from repaudit.analysis.locking import LOCK, locked
from repaudit.analysis.moving import move_in, scratch
from repaudit.analysis.settings import Settings
from repaudit.capture.record.open_records import _key
from repaudit.cli import app
from repaudit.errors import AnalysisError, OperatorError
from repaudit.operators.written import digest_of
from repaudit.plots import save_figures

BARE = {"frames": 0, "units": 0, "similarity": ()}
FIGURES = ("spread.png", "pairs-only.png", "spread-shape.png", "settling.png", "embedding-only.png", "units-old.png")


@pytest.fixture
def url(planted_store):
    return planted_store(models=2, layers=("only",), steps=(0, 1))


@pytest.fixture
def quick(monkeypatch):
    """Write figures and reports of a few bytes, of the names that analyses give them."""

    def figures(_results, folder, **_options):
        folder.mkdir()
        for name in ("spread.png", "pairs-only.png"):
            (folder / name).write_bytes(os.urandom(16))

    monkeypatch.setattr("repaudit.analysis.folder.save_figures", figures)
    monkeypatch.setattr("repaudit.analysis.folder.write_report", lambda _r, _s, path: path.write_bytes(os.urandom(16)))


def test_figures_of_others_stay_beside_those_of_an_analysis(url, tmp_path, caplog):
    theirs = tmp_path / "paper" / "figures"
    theirs.mkdir(parents=True)
    for name in FIGURES:
        (theirs / name).write_text(f"mine: {name}")
    for _ in range(2):
        ra.analyze(url, tmp_path / "paper", **BARE)
        assert {name: (theirs / name).read_text() for name in FIGURES} == {n: f"mine: {n}" for n in FIGURES}
    assert (theirs / "spread.repaudit1.png").read_bytes().startswith(b"\x89PNG")
    assert not (theirs / "spread.repaudit2.png").exists(), "the second run replaces its own"
    assert "spread.png' stays" in caplog.text
    rewrite_report(tmp_path / "paper")
    assert {name: (theirs / name).read_text() for name in FIGURES} == {n: f"mine: {n}" for n in FIGURES}


@pytest.mark.usefixtures("quick")
def test_own_figures_are_replaced_and_obsolete_ones_removed_unless_changed(url, tmp_path, monkeypatch):
    out = tmp_path / "out"
    ra.analyze(url, out, **BARE)
    first = (out / "figures" / "spread.png").read_bytes()
    (out / "figures" / "pairs-only.png").write_bytes(b"retouched")

    def one_figure(_results, folder, **_options):
        folder.mkdir()
        (folder / "approach.png").write_bytes(b"new")

    ra.analyze(url, out, **BARE)
    assert (out / "figures" / "spread.png").read_bytes() != first
    assert (out / "figures" / "pairs-only.png").read_bytes() == b"retouched"
    monkeypatch.setattr("repaudit.analysis.folder.save_figures", one_figure)
    ra.analyze(url, out, **BARE)
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["approach.png", "pairs-only.png"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("piece", ["report.html", "summary.json", "results.zarr", "results.zarr/notes.txt"])
@pytest.mark.thin(2)
def test_pieces_that_were_changed_are_refused_before_anything_is_computed(url, tmp_path, piece):
    out = tmp_path / "out"
    ra.analyze(url, out, **BARE)
    changed = out / piece / "zarr.json" if piece.endswith(".zarr") else out / piece
    with changed.open("a") as stream:
        stream.write(" ")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(AnalysisError, match=f"has {piece.partition('/')[0]}, which no analysis wrote"):
        ra.analyze(url, out, progress=lambda *_: pytest.fail("computed"), **BARE)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["results.zarr", "summary.json", "report.html", "figures", "files.json"])
def test_names_that_are_taken_are_refused(url, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(AnalysisError, match=name.replace(".", r"\.")):
        ra.analyze(url, tmp_path / "out", **BARE)
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_a_store_among_the_results_is_not_replaced(planted_store, tmp_path):
    url = planted_store(models=1, layers=("only",), steps=(0, 1), name="results.zarr")
    with pytest.raises(AnalysisError, match=r"results\.zarr"):
        ra.analyze(url, tmp_path, **BARE)
    assert ra.verify(url, data=True) == []


@pytest.mark.parametrize("name", [".repaudit-notes", ".repaudit-my-own-2-folder-x"])
def test_folders_that_only_look_like_work_in_progress_stay(tmp_path, name):
    (tmp_path / name).mkdir()
    with analysis_folder(tmp_path, []):
        assert (tmp_path / name).is_dir()


def write_pieces(folder, content):
    """Move pieces of a few bytes into a folder as an analysis does."""
    with scratch(folder) as made:
        for name in ("results.zarr/zarr.json", "summary.json", "report.html", "figures/spread.png", content + ".png"):
            path = made / ("figures/" + name if name == content + ".png" else name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        move_in(made, folder, ("results.zarr", "summary.json", "report.html"))


def child_that_dies(calls, work):
    """Run `work` in a process that is killed before its call of this number that changes a folder; return its end."""
    left = [calls]

    def dying(real):
        def call(*args, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **options)

        return call

    def run():
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        work()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    assert child.exitcode in (-signal.SIGKILL, 0)
    return child.exitcode


def start(folder):
    with analysis_folder(folder, []):
        pass


def content_of(folder):
    """Return what the pieces and figures of a folder say."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {name: path.read_text() for path in paths if (name := str(path.relative_to(folder)))[0] != "."}


def pieces_of(content):
    figures = ("figures/spread.png", f"figures/{content}.png")
    return dict.fromkeys(("results.zarr/zarr.json", "summary.json", "report.html", *figures), content)


def test_a_run_that_dies_while_it_moves_its_pieces_leaves_those_of_one_run(tmp_path):
    """Killed at each of its calls: where there is a summary, all is of one run; the next start makes it so anywhere."""
    ends, summaries = [], set()
    for calls in range(100):
        folder = tmp_path / str(calls)
        folder.mkdir()
        write_pieces(folder, "first")
        if child_that_dies(calls, lambda folder=folder: write_pieces(folder, "second")) == 0:
            break
        found = content_of(folder)
        found.pop("files.json")
        summaries.add(found.get("summary.json"))
        assert "summary.json" not in found or found == pieces_of(found["summary.json"]), calls
        start(folder)
        found = content_of(folder)
        assert found.pop("files.json")
        assert found in (pieces_of("first"), pieces_of("second")), calls
        assert not list(folder.glob(".repaudit*")), calls
        ends.append(found["summary.json"])
    assert summaries == {"first", None, "second"}
    assert ends == sorted(ends), "what was finished is used from some call on"
    assert set(ends) == {"first", "second"}
    write_pieces(folder, "third")
    listed = json.loads((folder / "files.json").read_text())["repaudit_files"]
    assert all(len(hashes) == 1 and hashes[0] for hashes in listed.values())
    assert content_of(folder) == {**pieces_of("third"), "files.json": (folder / "files.json").read_text()}


@pytest.mark.parametrize("first", [12, 14, 16, 18])
@pytest.mark.thin(2)
def test_a_start_that_dies_while_it_finishes_a_move_does_not_end_it(tmp_path, first):
    for calls in range(100):
        folder = tmp_path / str(calls)
        folder.mkdir()
        write_pieces(folder, "first")
        assert child_that_dies(first, lambda folder=folder: write_pieces(folder, "second")) != 0
        assert "summary.json" not in content_of(folder), "it dies halfway"
        if child_that_dies(calls, lambda folder=folder: start(folder)) == 0:
            break
        start(folder)
        assert {**content_of(folder), "files.json": ""} == {**pieces_of("second"), "files.json": ""}, calls
        assert not list(folder.glob(".repaudit*")), calls
    assert calls > 5


def test_an_interrupt_waits_for_the_end_of_a_move(tmp_path, monkeypatch):
    write_pieces(tmp_path, "first")
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (signal.raise_signal(signal.SIGINT), replace(*args)))
    with pytest.raises(KeyboardInterrupt):
        write_pieces(tmp_path, "second")
    assert content_of(tmp_path).items() >= pieces_of("second").items()
    assert not list(tmp_path.glob(".repaudit*"))


def test_a_move_that_fails_halfway_is_finished_by_the_next_start_of_the_same_process(tmp_path, monkeypatch):
    write_pieces(tmp_path, "first")

    def ill(source, target):
        if Path(source).name == "report.html":
            raise OSError(errno.EIO, "the disk is ill")
        return replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", ill)
    with pytest.raises(OSError, match="ill"):
        write_pieces(tmp_path, "second")
    monkeypatch.setattr(os, "replace", replace)
    assert "summary.json" not in content_of(tmp_path)
    (tmp_path / "report.html").write_text("mine")
    for again in (start, rewrite_report):
        with pytest.raises(AnalysisError, match=r"has report\.html, which no analysis wrote"):
            again(tmp_path)
    (tmp_path / "report.html").unlink()
    start(tmp_path)
    assert content_of(tmp_path).items() >= pieces_of("second").items()


@pytest.mark.parametrize("link", ["", "figures", "earlier"])
def test_no_link_in_a_scratch_folder_leads_a_move_elsewhere(tmp_path, link):
    """A folder of others may hold anything: only what is in it moves, and only into it."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    write_pieces(out, "first")
    for name in ("figures", "earlier"):
        (elsewhere / name).mkdir(parents=True)
    (elsewhere / "figures" / "mine.png").write_text("mine")
    listed = json.loads((out / "files.json").read_text())
    listed["repaudit_files"]["figures/mine.png"] = ["", digest_of(elsewhere / "figures" / "mine.png")]
    (out / "files.json").write_text(json.dumps(listed))
    made = out / f".repaudit-{'0' * 12}-1-1-1-x"
    if link:
        made.mkdir()
        for name in ("figures", "earlier"):
            (made / name).symlink_to(elsewhere / name) if name == link else (made / name).mkdir()
    else:
        made.symlink_to(elsewhere)
    start(out)
    assert (elsewhere / "figures" / "mine.png").read_text() == "mine"
    assert (elsewhere / "earlier").is_dir()
    assert not (out / "figures" / "mine.png").exists()


def test_results_that_were_about_to_move_in_are_told_and_moved_by_report(out):
    results = out / "results.zarr"
    for calls in range(30):
        with scratch(out) as made:
            shutil.copytree(results, made / "results.zarr")
            shutil.copy(out / "summary.json", made)
            (made / "report.html").write_text("new")
            pieces = ("results.zarr", "summary.json", "report.html")
            child_that_dies(calls, lambda made=made, pieces=pieces: move_in(made, out, pieces))
        if not results.exists():
            break
        start(out)
    with pytest.raises(OperatorError, match=r"is not there, though files\.json .* run `repaudit report"):
        ra.DiffusionOperator.from_results(results, "only")
    assert rewrite_report(out, "none").read_text() != "new"
    assert ra.DiffusionOperator.from_results(results, "only").n_samples == 48
    assert (out / "summary.json").exists()


@pytest.mark.usefixtures("quick")
def test_the_home_folder_is_where_it_was_when_the_store_was_written(planted_store, tmp_path, monkeypatch, capsys):
    planted_store(models=2, layers=("only",), steps=(0, 1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder("~/store.zarr") == tmp_path / "store.analysis"
    assert default_folder("file://~/store.zarr/") == tmp_path / "store.analysis"
    with pytest.raises(AnalysisError, match="is in the store"):
        ra.analyze("~/store.zarr", tmp_path / "store.zarr" / "out", **BARE)
    ra.analyze("~/store.zarr", **BARE)
    ra.analyze("~/store.zarr", "~/out", **BARE)
    for words in (
        ("analyze", "~/store.zarr", "--out", "~/of command", "--frames", "0", "--units", "0"),
        ("report", "~/of command"),
        ("export", "~/store.zarr", "seed0", "only", "~/layer.npy"),
        ("copy", "~/store.zarr", "~/copy.zarr"),
        ("watch", "--once", "~/copy.zarr"),
    ):
        with pytest.raises(SystemExit) as ended:
            app(list(words), prog_name="repaudit")
        assert ended.value.code == 0, capsys.readouterr()
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"elsewhere", "store.zarr", "store.analysis", "out", "of command", "layer.npy", "copy.zarr"}
    assert ra.DiffusionOperator.from_results("~/out/results.zarr", "only").n_samples == 48
    save_figures(ra.analyze("~/store.zarr", "~/out", **BARE), "~/out/more", which="none")
    assert (tmp_path / "out" / "more").is_dir()
    assert _key("~/store.zarr", "seed0") == _key(tmp_path / "store.zarr", "seed0")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_empty_out_is_refused(url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnalysisError, match="expected a folder"):
        ra.analyze(url, "", **BARE)
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


def test_the_lock_is_in_the_folder_for_all_and_found_missing_at_the_start(url, tmp_path):
    with locked(tmp_path):
        (lock,) = tmp_path.glob(".*.lock")
        assert lock.stat().st_mode & 0o777 == 0o666
    assert not lock.exists()
    if os.getuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        ra.analyze(url, tmp_path / "out", progress=lambda *_: pytest.fail("computed"), **BARE)


def test_one_process_at_a_time_has_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_often, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "count").read_text() == "200"


def add_often(folder):
    for _ in range(50):
        with locked(folder):
            path = folder / "count"
            path.write_text(str(int(path.read_text() or 0) + 1 if path.exists() else 1))


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder until it is told to end."""
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    command = [sys.executable, "-c", script, tmp_path / LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        yield process
        process.stdin.close()


def test_who_waits_for_the_lock_says_for_whom_and_gives_up(tmp_path, holder, monkeypatch, caplog):
    monkeypatch.setattr(locking, "_QUIET", 0.1)
    with pytest.raises(AnalysisError, match=rf"\.lock was held by process {holder.pid} for 1 s"), locked(tmp_path, 1):
        pytest.fail("holds it too")
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for process {holder.pid}, which holds '{tmp_path / LOCK}'"
    ]
    assert (tmp_path / LOCK).exists(), "it is not ours to remove"
    monkeypatch.setattr(locking.Path, "read_text", lambda *_, **__: "nonsense")
    with pytest.raises(AnalysisError, match="held by another process"), locked(tmp_path, 0):
        pytest.fail("holds it too")


def test_a_lock_that_is_let_go_is_taken(tmp_path, holder):
    threading.Timer(0.5, holder.stdin.write, ["\n"]).start()
    threading.Timer(0.6, holder.stdin.flush).start()
    with locked(tmp_path, 30):
        assert holder.wait(5) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", ["analyze", "report"])
def test_a_start_waits_for_another_process_no_longer_than_a_minute(url, out, tmp_path, monkeypatch, start):
    monkeypatch.setattr(locking, "PATIENCE", 0.2)
    (out / LOCK).touch()
    with (out / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as good as another process
        with pytest.raises(AnalysisError, match="let go"):
            rewrite_report(out) if start == "report" else ra.analyze(url, out, **BARE)


def test_results_of_before_there_were_lists_are_replaced(planted_store, tmp_path, undrawn):
    url = planted_store()
    ra.analyze(url, tmp_path / "out", frames=0, units=0)
    (tmp_path / "out" / "files.json").unlink()
    ra.analyze(url, tmp_path / "out", frames=0, units=0)
    assert (tmp_path / "out" / "files.json").exists()
    (tmp_path / "out" / "files.json").unlink()
    (tmp_path / "out" / "results.zarr" / "zarr.json").write_text('{"attributes": {"versions": "{}"}}')
    with pytest.raises(AnalysisError, match=r"which no analysis wrote"):
        ra.analyze(url, tmp_path / "out", frames=0, units=0)


@pytest.fixture(scope="module")
def written(plant, tmp_path_factory):
    """The folder of an analysis of a small store, to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repaudit.analysis.folder.save_figures", lambda _results, made, **_options: made.mkdir())
        ra.analyze(plant(folder, models=2, layers=("only",), steps=(0, 1)), folder / "out", **BARE)
    return folder / "out"


@pytest.fixture
def out(written, tmp_path):
    return shutil.copytree(written, tmp_path / "out")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHUNK = "results.zarr/spread/spread/c/0/0/0"
DAMAGE = {"flipped": flip, "lost": Path.unlink, "cut": lambda path: os.truncate(path, 40)}


@pytest.mark.parametrize("damage", DAMAGE)
def test_results_that_changed_since_are_reported_by_nobody(out, damage):
    assert rewrite_report(out, "none").exists()
    DAMAGE[damage](out / CHUNK)
    report = (out / "report.html").read_bytes()
    with pytest.raises(AnalysisError, match=r"changed since an analysis wrote it.* run `repaudit analyze` again"):
        rewrite_report(out, "none")
    assert (out / "report.html").read_bytes() == report


def test_results_that_no_list_names_are_not_those_of_the_analysis(out):
    listed = json.loads((out / "files.json").read_text())
    del listed["repaudit_files"]["results.zarr"]
    (out / "files.json").write_text(json.dumps(listed))
    with pytest.raises(AnalysisError, match="or none did"):
        rewrite_report(out, "none")


def test_damaged_results_without_a_list_are_one_line(out):
    for name in ("files.json", "report.html"):
        (out / name).unlink()
    os.truncate(out / CHUNK, 40)
    with pytest.raises(AnalysisError, match="cannot be read"):
        rewrite_report(out, "none")


@pytest.fixture
def at_once():
    """Fail a test that waits for a pipe."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for a pipe"))
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["files.json", CHUNK, "results.zarr/zarr.json"])
def test_pipes_in_a_folder_are_told_at_once(url, out, name, listed):
    (out / "files.json").rename(out / ("files.json" if listed else "mine.json"))
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name)
    with pytest.raises(AnalysisError, match=r"is not the list|is not a regular file|has report\.html"):
        rewrite_report(out, "none")
    if listed or name != CHUNK:
        with pytest.raises(AnalysisError, match=r"is not the list|has results\.zarr"):
            ra.analyze(url, out, progress=lambda *_: pytest.fail("computed"), **BARE)


@pytest.mark.parametrize("inside", ["", "models", "models/new/analysis"])
def test_a_folder_in_another_store_is_refused(url, planted_store, inside):
    other = planted_store(models=1, layers=("only",), steps=(0,), name="other.zarr")
    before = sorted(other.rglob("*"))
    with pytest.raises(AnalysisError, match=r"in the store .*other\.zarr"):
        ra.analyze(url, other / inside, progress=lambda *_: pytest.fail("computed"), **BARE)
    assert sorted(other.rglob("*")) == before


@pytest.mark.parametrize("part", ["figures", "cache"])
def test_a_store_in_the_place_of_a_part_of_the_folder_is_refused(url, planted_store, tmp_path, part):
    other = planted_store(models=1, layers=("only",), steps=(0,), name="other.zarr")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / part).symlink_to(other)
    with pytest.raises(AnalysisError, match=r"in the store .*other\.zarr"):
        ra.analyze(url, tmp_path / "out", progress=lambda *_: pytest.fail("computed"), **BARE)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "name", ["figures/../../victim", "../victim", "{}/victim", "figures/{}/victim", "figures/link/victim", "figures/\0"]
)
def test_a_list_that_names_files_elsewhere_is_refused(url, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "link").symlink_to(tmp_path)
    listed = {name.format(tmp_path): [digest_of(victim)]}
    (tmp_path / "out" / "files.json").write_text(json.dumps({"repaudit_files": listed}))
    with pytest.raises(AnalysisError, match=r"files\.json is not the list of files"):
        ra.analyze(url, tmp_path / "out", progress=lambda *_: pytest.fail("computed"), **BARE)
    assert victim.read_text() == "mine"


@pytest.mark.usefixtures("quick")
def test_a_folder_of_others_among_the_figures_stays_whatever_the_list_says(url, tmp_path):
    theirs = tmp_path / "out" / "figures" / "mine"
    theirs.mkdir(parents=True)
    (theirs / "notes.txt").write_text("mine")
    listed = {"repaudit_files": {"figures/mine": [digest_of(theirs)]}}
    (tmp_path / "out" / "files.json").write_text(json.dumps(listed))
    ra.analyze(url, tmp_path / "out", **BARE)
    assert (theirs / "notes.txt").read_text() == "mine"


def test_results_of_other_layers_that_are_replaced_are_named(tmp_path):
    probe_set = ra.ProbeSet.from_tensors({"input_ids": np.arange(60).reshape(30, 2)})
    rng = np.random.default_rng(0)
    for model in ("a", "b", "c"):
        layers = dict.fromkeys(("low", "top"), ((30, 4), "float32"))
        with ra.TrajectoryWriter(tmp_path / "s.zarr", model_name=model, probe_set=probe_set, layers=layers) as writer:
            writer.append(0, {name: rng.standard_normal((30, 4), dtype=np.float32) for name in layers})
    given = ["analyze", str(tmp_path / "s.zarr"), "--no-figures", "--frames", "0", "--units", "0"]
    said = [
        CliRunner().invoke(app, [*given, *more]).stderr for more in ((), (), ("--layers", "top", "--models", "a,b"))
    ]
    assert [text.count("replaced the earlier results in") for text in said] == [0, 0, 1]
    assert "which had layer low and model c; --out keeps both" in said[2]


def test_earlier_results_without_frames_and_maps_lose_none(url, tmp_path):
    given = ["analyze", str(url), "--out", str(tmp_path / "out"), "--no-figures", "--units", "0"]
    assert CliRunner().invoke(app, [*given, "--frames", "0", "--similarity", "none"]).exit_code == 0
    run = CliRunner().invoke(app, [*given, "--frames", "1", "--seed", "1"])
    assert "which had seed=0; --out keeps both" in " ".join(run.stderr.split())
    for asked, had in (("cka", "cka_debiased,mutual_knn"), ("rsa,cka", None), ("rsa", "rsa,cka")):
        run = CliRunner().invoke(app, [*given, "--frames", "1", "--similarity", asked])
        assert f"had similarity={had}" in " ".join(run.stderr.split()) if had else "had similarity" not in run.stderr


def test_no_maps_are_drawn_where_none_are_asked_for(url, tmp_path):
    given = ["analyze", str(url), "--out", str(tmp_path / "out"), "--no-figures", "--frames", "0", "--units", "0"]
    assert Settings.of({"similarity": "none"}).similarity == ()
    for asked, code, there in (("none", 0, False), ("cka,none", 2, False), ("cka", 0, True)):
        run = CliRunner().invoke(app, [*given, "--similarity", asked])
        assert (run.exit_code, (tmp_path / "out/results.zarr/similarity").exists()) == (code, there), run.stderr


def test_what_is_replaced_is_told_while_it_can_be_kept(url, planted_store, tmp_path, monkeypatch):
    given = ["analyze", "--out", str(tmp_path / "out"), "--no-figures", "--frames", "0", "--units", "0"]
    assert CliRunner().invoke(app, [*given, str(url)]).exit_code == 0
    before = digest_of(tmp_path / "out" / "results.zarr")
    monkeypatch.setattr("repaudit.analysis.pipeline._operators", lambda *_: signal.raise_signal(signal.SIGINT))
    other = planted_store(models=2, layers=("only",), steps=(0, 1), name="other.zarr")
    asked = ["--scales", "6", "--merge", "weighted", "--gauge", "metric=cosine", "--steps", "1"]
    run = CliRunner().invoke(app, [*given, str(other), *asked])
    said = " ".join(run.stderr.split())
    had = f"had step 0, store {url}, scale neighbourhoods, metric=euclidean and merge=frobenius; --out keeps both"
    assert f"replaces the results in {tmp_path / 'out'} at its end, which {had}" in said
    assert f"the same command goes on from here; {tmp_path / 'out'} has the earlier results" in said
    assert (run.exit_code, digest_of(tmp_path / "out" / "results.zarr")) == (130, before)
    monkeypatch.undo()
    after = CliRunner().invoke(app, [*given, str(other), *asked]).stderr.split()
    assert f"replaced the earlier results in {tmp_path / 'out'}, which {had}" in " ".join(after)


def test_results_go_to_a_folder_of_this_machine(url, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, said in (("s3://bucket/out", "folder of this machine"), (str(tmp_path / "file"), "found a file")):
        with pytest.raises(AnalysisError, match=said):
            ra.analyze(url, out, **BARE)


def test_a_report_before_there_is_an_answer_says_that_the_analysis_has_not_ended(tmp_path):
    (tmp_path / "out" / "cache").mkdir(parents=True)
    with pytest.raises(AnalysisError, match="whose analysis has not ended: run `repaudit analyze` again"):
        rewrite_report(tmp_path / "out")


@pytest.mark.usefixtures("quick")
def test_activations_damaged_beside_a_cache_cost_what_needs_them(planted_store, tmp_path):
    """Their operators are kept: the spread is that of before, and the similarity lacks what it cannot read."""
    url = planted_store(models=3, layers=("only",), steps=(0, 1))
    given = {"out": tmp_path / "out", "frames": 0, "scales": [6]}
    before = ra.analyze(url, similarity=["mutual_knn"], **given)
    chunk = next((url / "models" / "seed1").glob("*/c.1.0.0"), None)
    flip(chunk)
    found = ra.analyze(url, similarity=["cka"], units=4, **given)
    (line,) = [one for one in found.repaudit.summary["left_out"] if "as far as they need its activations" in one]
    assert line.startswith("layer only, seed1 at step 1: similarity, units and halves of features")
    np.testing.assert_array_equal(found["spread"]["spread"], before["spread"]["spread"])
    known = found["similarity"]["similarity"].notnull().squeeze().values
    assert known.tolist() == [[True, False, True], [False, False, False], [True, False, True]]
    assert np.isfinite(found["comparison"]["feature_halves"]).all()
