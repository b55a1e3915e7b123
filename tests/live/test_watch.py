"""Watching a store that is being written: only what is new is computed, and what is shown is what is there."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from starlette.testclient import TestClient
from typer.testing import CliRunner

import repaudit as ra
from repaudit.cli import app
from repaudit.cli.watch import sparkline, view
from repaudit.live.page import Board, application, of_this_machine
from repaudit.live.runs import Run
from repaudit.live.spreads import MOST_KEPT, LiveCurve, LiveSpreads
from repaudit.live.watcher import Look, Watcher
from repaudit.store.read.reader import open_store

SAMPLES, FEATURES = 40, 8
GAUGE = ra.DiffusionGauge(perplexity=6)
COMMAND = str(Path(sys.executable).with_name("repaudit"))


def values(model: int, step: int, seed: int = 0) -> np.ndarray:
    """Activations of models that come together."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(SAMPLES, FEATURES)), rng.normal(size=(9, SAMPLES, FEATURES))[model]
    together: np.ndarray = shared + own * np.exp(-step / 20)
    return together.astype(np.float32)


def writer(url: Path, model: int, layers: int = 1, name: str = "", **options: Any) -> ra.TrajectoryWriter:
    probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.arange(2 * SAMPLES).reshape(SAMPLES, 2)})
    shapes = {f"layers.{i}": ((SAMPLES, FEATURES), "float32") for i in range(layers)}
    return ra.TrajectoryWriter(
        url, model_name=name or f"seed{model}", probe_set=probe_set, layers=shapes, durable=False, **options
    )


def append(to: ra.TrajectoryWriter, model: int, steps: list[int], layers: int = 1) -> None:
    for step in steps:
        to.append(step, {f"layers.{i}": values(model, step, i) for i in range(layers)})
    to.flush()


class Counted:
    """A gauge that counts how often it computes."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, array: Any) -> Any:
        self.calls += 1
        return GAUGE(array)


def test_only_new_steps_are_computed_and_the_curve_is_that_of_an_analysis(tmp_path: Path) -> None:
    url, gauge = tmp_path / "s.zarr", Counted()
    live = LiveSpreads(gauge=gauge)  # type: ignore[arg-type]
    with writer(url, 0) as one, writer(url, 1) as two:
        append(one, 0, [0, 10])
        append(two, 1, [0, 10])
        (curve,) = live.update(open_store(url))
        assert (curve.steps, gauge.calls) == ((0, 10), 4)
        live.update(open_store(url))
        assert gauge.calls == 4
        append(one, 0, [20])
        (curve,) = live.update(open_store(url))
        assert (curve.steps, gauge.calls) == ((0, 10), 4)  # nobody to compare it with yet
        append(two, 1, [20])
        (curve,) = live.update(open_store(url))
        assert (curve.steps, gauge.calls, curve.waiting) == ((0, 10, 20), 6, 0)
    results = ra.analyze(url, gauge=GAUGE, frames=0, units=0, figures="none")
    spread = results["spread"].isel(layer=0, scale=0)
    for name, found in (("spread", curve.value), ("low", curve.low), ("high", curve.high)):
        np.testing.assert_allclose(np.array(found), np.asarray(spread[name]), rtol=1e-12)
    entry = results.repaudit.summary["layers"]["layers.0"]
    assert (curve.verdict, curve.settled) == (entry["verdict"], entry["settled"])


def test_a_model_that_comes_late_is_compared_without_computing_the_others_again(tmp_path: Path) -> None:
    url, gauge = tmp_path / "s.zarr", Counted()
    live = LiveSpreads(gauge=gauge)  # type: ignore[arg-type]
    with writer(url, 0) as one, writer(url, 1) as two, writer(url, 2) as three:
        append(one, 0, [0, 10])
        append(two, 1, [0, 10])
        append(three, 2, [0])
        assert live.update(open_store(url))[0].models == 2  # at the last step
        assert gauge.calls == 5
        append(three, 2, [10])
        (curve,) = live.update(open_store(url))
        assert (curve.models, gauge.calls) == (3, 6)


def test_steps_that_a_truncation_drops_are_forgotten(tmp_path: Path) -> None:
    url, live = tmp_path / "s.zarr", LiveSpreads(gauge=GAUGE)
    for model in (0, 1):
        with writer(url, model) as one:
            append(one, model, [0, 10, 20])
    assert live.update(open_store(url))[0].steps == (0, 10, 20)
    with writer(url, 0, truncate_after=10) as one:
        assert live.update(open_store(url))[0].steps == (0, 10)
        one.append(20, {"layers.0": values(5, 0)})
        one.flush()
        (curve,) = live.update(open_store(url))
    fresh = LiveSpreads(gauge=GAUGE).update(open_store(url))[0]
    assert curve.value == fresh.value


def test_what_failed_at_a_step_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    url, live = tmp_path / "s.zarr", LiveSpreads(gauge=GAUGE)
    for model in (0, 1):
        with writer(url, model) as one:
            append(one, model, [0])
            one.append(10, {"layers.0": np.full((SAMPLES, FEATURES), np.nan, np.float32)})
    live.update(open_store(url))
    assert list(live.failed) == [("layers.0", 10)]
    for model in (0, 1):
        writer(url, model, truncate_after=0).close()
    assert live.update(open_store(url))[0].steps == (0,)
    assert not live.failed


def test_operators_that_no_model_comes_to_are_not_kept(tmp_path: Path) -> None:
    """A model that was audited less often, or has ended, would else keep the operators of all others in memory."""
    url, live = tmp_path / "s.zarr", LiveSpreads(gauge=GAUGE)
    with writer(url, 0) as one, writer(url, 1) as two, writer(url, 2) as seldom:
        append(one, 0, range(0, 100, 10))
        append(two, 1, range(0, 100, 10))
        append(seldom, 2, [0, 50])
        live.update(open_store(url))
        assert {step for _, _, step, _ in live._operators} == {60, 70, 80, 90}
        append(one, 0, range(100, 800, 10))
        append(two, 1, range(100, 800, 10))
        live.update(open_store(url))
        assert len(live._operators) <= MOST_KEPT


def test_a_time_limit_leaves_the_rest_for_the_next_look_and_begins_with_the_last_steps(tmp_path: Path) -> None:
    url, live = tmp_path / "s.zarr", LiveSpreads(gauge=GAUGE)
    for model in (0, 1):
        with writer(url, model) as one:
            append(one, model, [0, 10, 20, 30])
    (curve,) = live.update(open_store(url), seconds=0)
    assert curve.steps[-1] == 30
    assert curve.waiting == 4 - len(curve.steps) > 0
    assert (curve.verdict, curve.settled, curve.judged) == ("computing", None, None)  # of a part it would be another
    while curve.waiting:
        (curve,) = live.update(open_store(url), seconds=0)
    assert curve.steps == (0, 10, 20, 30)


def test_what_cannot_be_computed_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    url = tmp_path / "s.zarr"
    for model in (0, 1):
        with writer(url, model) as one:
            append(one, model, [0])
            one.append(10, {"layers.0": np.full((SAMPLES, FEATURES), np.nan if model else 1, np.float32)})
    look = Watcher(url, gauge=GAUGE).look()
    assert look.curves[0].steps == (0,)
    ((layer, step),) = look.failed
    assert (layer, step) == ("layers.0", 10)
    assert "finite" in look.failed[layer, step]
    assert look.waiting == 0


def test_models_and_layers_of_any_name_are_watched(tmp_path: Path) -> None:
    """The store shortens what is too long for a file system."""
    probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.arange(2 * SAMPLES).reshape(SAMPLES, 2)})
    names, layer = ["学习率为零点零零一的第十二层宽度五百一十二随机种子三号模型", "x" * 400], "l" * 300
    for model, name in enumerate(names):
        layers = {layer: ((SAMPLES, FEATURES), "float32")}
        with ra.TrajectoryWriter(
            tmp_path / "s.zarr", model_name=name, probe_set=probe_set, layers=layers, durable=False
        ) as to:
            to.append(0, {layer: values(model, 0)})
            look = Watcher(tmp_path / "s.zarr", gauge=GAUGE).look()
            assert [run.state for run in look.runs if run.model == name] == ["running"]
    assert sorted(run.model for run in look.runs) == sorted(names)


def test_a_run_is_running_silent_or_ended(tmp_path: Path) -> None:
    url = tmp_path / "s.zarr"
    with writer(url, 0) as one:
        append(one, 0, [0, 10])
        (run,) = Watcher(url).look().runs
        assert (run.state, run.audits, run.step) == ("running", 2, 10)
        assert (run.seconds_since_audit or 0) < 60
        assert (run.seconds_since_heartbeat or 0) < 60
    assert Watcher(url).look().runs[0].state == "ended"
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_watch as t; "
        "w = t.writer(Path(sys.argv[1]), 0); w.flush(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", script, str(url), str(Path(__file__).parent)], check=False, timeout=120)
    assert Watcher(url).look().runs[0].state == "silent"


def test_an_audit_is_a_sign_of_life_of_its_writer(tmp_path: Path) -> None:
    with writer(tmp_path / "s.zarr", 0) as one:
        time.sleep(1.5)
        append(one, 0, [0])
        (run,) = Watcher(tmp_path / "s.zarr").look().runs
    assert run.seconds_since_heartbeat is not None
    assert run.seconds_since_heartbeat <= (run.seconds_since_audit or 0)


def test_layers_that_no_two_models_share_at_a_step_have_no_verdict(tmp_path: Path) -> None:
    url = tmp_path / "s.zarr"
    with writer(url, 0) as one, writer(url, 1) as two:
        append(one, 0, [0, 10])
        alone = Watcher(url, gauge=GAUGE).look()
        append(two, 1, [5])
        apart = Watcher(url, gauge=GAUGE).look()
        append(two, 1, [10])
        shared = Watcher(url, gauge=GAUGE).look()
    assert (alone.curves, apart.curves, [curve.steps for curve in shared.curves]) == ((), (), [(10,)])
    text = "\n".join(shown(apart, 100, 30))
    assert "a spread needs a step that two models share" in text
    assert "verdict" not in text
    assert "verdict" in "\n".join(shown(shared, 100, 30))


def curves(count: int, steps: int = 200) -> tuple[LiveCurve, ...]:
    value = tuple(np.linspace(0.9, 0.1, steps))
    return tuple(
        LiveCurve(f"model.layers.{i}", tuple(range(steps)), value, value, value,
                  "converging" if i < 50 else "unchanged", None, 3, 0)
        for i in range(count)
    )  # fmt: skip


def shown(look: Look, width: int, height: int) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height, force_terminal=True, color_system=None)
    console.print(view(look, width, height))
    return [line for line in stream.getvalue().splitlines() if line.strip()]


def test_sixty_layers_fit_a_small_terminal_and_no_word_is_cut() -> None:
    lines = shown(Look("s.zarr", (), curves(60), {}), 80, 24)
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert "model.layers.0 … 49" in text
    assert "converging" in text
    assert "unchanged" in text
    every = shown(Look("s.zarr", (), curves(60), {}), 120, 90)
    assert sum("model.layers." in line for line in every) == 60


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_word_is_cut_at_any_width(width) -> None:
    runs = tuple(Run(f"seed{k}", "running", 1200, 120_000, 3.0, 1.0, []) for k in (0, 10))
    lines = shown(Look("s.zarr", runs, curves(6), {}), width, 30)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for word in ("seed10", "running", "120000", "heartbeat", "failures", "layer", "verdict", "converging"):
        assert word in text, text
    assert "…" not in text.replace("…layers.", ""), text  # parts of a path, never of a word


def test_names_are_never_instructions_to_the_terminal() -> None:
    (curve,) = curves(1)
    evil = "a\x1b[2Jb"
    look = Look(evil, (), (LiveCurve(evil, *list(vars(curve).values())[1:]),), {(evil, 0): evil})
    assert "\x1b[2J" not in "".join(shown(look, 100, 30))


def test_a_long_curve_is_averaged_to_its_width() -> None:
    assert sparkline([0.0] * 100 + [1.0] * 100, width=4) == "▁▁██"
    assert sparkline([]) == ""
    assert sparkline([1.7, -0.2]) == "█▁"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    url = tmp_path / "s.zarr"
    for model in (0, 1):
        with writer(url, model, 2) as one:
            append(one, model, [0, 10, 20], 2)
    return url


def test_lines_of_json_begin_with_the_store(store: Path, tmp_path: Path) -> None:
    """As the terminal and the page do: before there is a store, and before there is such a layer, it waits."""
    later = tmp_path / "later.zarr"
    given = ["watch", str(later), "--json", "--every", "0.2", "--perplexity", "6"]
    run = subprocess.Popen([COMMAND, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    other = subprocess.Popen([COMMAND, *given, "--layers", "nope"], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(3)
        assert run.poll() is None, run.stderr.read()
        shutil.copytree(store, tmp_path / "copy.zarr").rename(later)  # at once
        found, waits = json.loads(run.stdout.readline()), json.loads(other.stdout.readline())
    finally:
        run.kill()
        other.kill()
        run.communicate()
        other.communicate()
    assert [one["layer"] for one in found["layers"]] == [one.layer for one in Watcher(store, gauge=GAUGE).look().curves]
    assert "layer nope is not in the store" in waits["error"]


def test_once_as_json_says_all_of_it(store: Path) -> None:
    run = subprocess.run(
        [COMMAND, "watch", str(store), "--once", "--json", "--perplexity", "6"],
        capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert [(one["model"], one["state"], one["step"]) for one in found["models"]] == [
        ("seed0", "ended", 20), ("seed1", "ended", 20),
    ]  # fmt: skip
    expected = LiveSpreads(gauge=GAUGE).update(open_store(store))
    assert [one["layer"] for one in found["layers"]] == ["layers.0", "layers.1"]
    assert found["layers"][1]["value"] == list(expected[1].value)


def test_a_terminal_shows_trainings_as_they_go_on(tmp_path: Path) -> None:
    url = tmp_path / "s.zarr"
    outer, inner = pty.openpty()
    command = [COMMAND, "watch", str(url), "--every", "0.2", "--perplexity", "6"]
    environment = {**os.environ, "COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment, close_fds=True)
    text = ""

    def until(wanted: str, seconds: float = 120) -> None:
        nonlocal text
        end = time.monotonic() + seconds
        while not re.search(wanted, text):
            assert time.monotonic() < end, f"no {wanted!r} in {text[-2000:]!r}"
            assert process.poll() is None, text[-2000:]
            if select.select([outer], [], [], 0.5)[0]:
                text += os.read(outer, 65536).decode(errors="replace")

    try:
        until("waiting for")
        with writer(url, 0) as one, writer(url, 1) as two:
            append(one, 0, [0])
            append(two, 1, [0])
            until("seed1.*running")
            until("layers.0.*undecided")
            append(one, 0, [10, 20, 40, 80, 160])
            append(two, 1, [10, 20, 40, 80, 160])
            until("layers.0.*converging")
        until("seed1.*ended")
        until(r"verdicts are\s+so far")  # the end of the last line of the view
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(outer)
        os.close(inner)


def test_the_page_shows_the_store_asks_nobody_else_and_renews_itself(store: Path) -> None:
    board = Board(Watcher(store, gauge=GAUGE), every=0.1)
    client = TestClient(application(board))
    assert client.get("/state.json").json()["models"] == []
    board.start()
    try:
        end = time.monotonic() + 60
        while len(client.get("/state.json").json()["layers"]) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        with writer(store, 2, 2) as three:
            append(three, 2, [0, 10, 20], 2)
        while [one["models"] for one in client.get("/state.json").json()["layers"]] != [3, 3]:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        board.stop()
    page = client.get("/")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)=[\"']?https?:", page.text)


def test_the_page_answers_under_names_of_this_machine_only(store: Path) -> None:
    app = of_this_machine(application(Board(Watcher(store, gauge=GAUGE), every=1)))
    for host, status in (("127.0.0.1:8000", 200), ("localhost", 200), ("evil.example", 400)):
        assert TestClient(app).get("/state.json", headers={"Host": host}).status_code == status


def test_the_page_goes_on_after_a_look_that_failed_in_any_way(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(store, gauge=GAUGE)
    look, errors = watcher.look, iter([AttributeError("no 'get'")])

    def sometimes(seconds: float | None = None) -> Look:
        for error in errors:
            raise error
        return look(seconds)

    monkeypatch.setattr(watcher, "look", sometimes)
    board, seen = Board(watcher, every=0.2), set()
    board.start()
    try:
        end = time.monotonic() + 60
        while not board.state["models"]:
            seen.add(board.state.get("error"))
            assert time.monotonic() < end
            time.sleep(0.005)
    finally:
        board.stop()
    assert "AttributeError: no 'get'" in seen
    assert "error" not in board.state


def test_numbers_that_are_none_are_null(store: Path) -> None:
    curve = replace(Watcher(store, gauge=GAUGE).look().curves[0], low=(math.nan,), value=(math.inf,))
    found = Look("s", (), (curve,), {}).plain()
    assert json.loads(json.dumps(found, allow_nan=False))["layers"][0]["low"] == [None]


def test_why_there_is_no_spread_is_told(store: Path) -> None:
    look = Watcher(store, gauge=ra.DiffusionGauge(perplexity=500)).look()
    assert look.failed
    assert all("uniform or collapsed (as with fewer samples" in why for why in look.failed.values())
    assert "spreads could not be computed" in " ".join(shown(look, 200, 30))


def test_the_scale_of_the_spread_is_named(store: Path) -> None:
    look = Watcher(store, gauge=ra.DiffusionGauge(perplexity=4)).look()
    assert look.plain()["perplexities"] == [4.0]
    assert "at the scale of 4 neighbours" in " ".join(shown(look, 200, 30))


@pytest.mark.parametrize("wrong", ["0", "1", "-1", "nan", "inf"])
def test_a_scale_that_is_none_is_one_line(store: Path, wrong: str) -> None:
    run = subprocess.run(
        [COMMAND, "watch", str(store), "--once", f"--perplexity={wrong}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 2
    assert "expected effective neighbours, more than 1" in " ".join(run.stderr.replace("│", "").split())
    assert "Traceback" not in run.stderr


def test_a_taken_port_is_one_line(store: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [COMMAND, "watch", str(store), "--serve", "--port", str(port)],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert run.returncode == 2
    assert f"port {port}" in run.stderr.strip()
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr


def test_without_a_terminal_or_a_store_it_is_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, says in (([str(store)], "--once"), ([str(tmp_path / "no.zarr"), "--once"], "no.zarr")):
        with pytest.raises(SystemExit) as ended:
            app(["watch", *given], prog_name="repaudit")
        said = capsys.readouterr().err.strip().splitlines()
        assert (ended.value.code, len(said)) == (2, 1)
        assert says in said[0]


@pytest.mark.parametrize("other", ["--once", "--json"])
def test_a_page_until_it_is_stopped_is_no_single_look(
    store: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["watch", str(store), "--serve", other], prog_name="repaudit")
    assert ended.value.code == 2
    assert f"leave out {other}" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_what_now_is_of_is_told(store: Path) -> None:
    """Of which step and how many models the last spreads are: once where all agree, else in columns."""
    look = Watcher(store, gauge=ra.DiffusionGauge(perplexity=4)).look()
    said = " ".join(shown(look, 200, 30))
    assert f"now: step {look.curves[0].steps[-1]} of {look.curves[0].models} models" in said
    assert "at step" not in said
    (first, second) = curves(2)
    behind = replace(second, steps=second.steps[:-9], value=second.value[:-9], models=4)
    for width in (60, 80, 91, 120):
        lines = shown(replace(look, curves=(first, behind)), width, 30)
        assert all(len(line) <= width for line in lines)
        assert "now: step 190 to 199 of 3 to 4 models" in " ".join(" ".join(lines).split())
        if width > 60:
            assert [line.split()[-2:] for line in lines if "layers." in line] == [["3", "199"], ["4", "190"]]


def test_now_is_where_the_models_that_are_trained_are(tmp_path: Path) -> None:
    """What ended at later steps is not what is watched; where none is trained, now is what the verdict is of."""
    url, gauge = tmp_path / "s.zarr", GAUGE
    for model in range(2):
        with writer(url, model) as one:
            append(one, model, range(0, 60, 10))
    with writer(url, 2) as running:
        append(running, 2, [0])
        look = Watcher(url, gauge=gauge).look()
        assert (look.curves[0].now, look.curves[0].judged) == (0, 50), "one step has no verdict"
        assert "verdicts are so far, of the steps that most models share, to 50" in " ".join(
            " ".join(shown(look, 100, 30)).split()
        )
        append(running, 2, [10, 20])
        look = Watcher(url, gauge=gauge).look()
        (curve,) = look.curves
        assert (curve.steps[-1], curve.now, curve.judged, curve.present) == (50, 20, 20, (3, 3, 3, 2, 2, 2))
        said = " ".join(" ".join(shown(look, 100, 30)).split())
        assert "now: step 20 of 3 models" in said
        assert f"{curve.value[2]:.2f} [{curve.low[2]:.2f}, {curve.high[2]:.2f}]" in said
        with writer(url, 3) as ahead:
            append(ahead, 3, range(0, 60, 10))
            (curve,) = Watcher(url, gauge=gauge).look().curves
            assert (curve.now, curve.judged) == (50, 20)
    look = Watcher(url, gauge=gauge).look()
    assert (look.curves[0].now, look.curves[0].judged) == (20, 20)
    assert "of the steps that most models share, to 20" in " ".join(" ".join(shown(look, 100, 30)).split())


def test_a_verdict_stays_while_a_new_step_is_computed(tmp_path: Path) -> None:
    live = LiveSpreads(gauge=GAUGE)
    with writer(tmp_path / "s.zarr", 0) as one, writer(tmp_path / "s.zarr", 1) as two:
        append(one, 0, [0, 10])
        append(two, 1, [0, 10])
        (whole,) = live.update(open_store(tmp_path / "s.zarr"))
        append(one, 0, [20, 30])
        append(two, 1, [20, 30])
        (part,) = live.update(open_store(tmp_path / "s.zarr"), seconds=0)
    assert (part.waiting, part.steps) == (1, (0, 10, 30))
    assert (part.verdict, part.judged) == (whole.verdict, 10)


def test_one_model_without_an_operator_costs_the_others_nothing(tmp_path: Path) -> None:
    """It is left out at its step and named, as in an analysis."""
    url = tmp_path / "s.zarr"
    for model in range(3):
        with writer(url, model) as one:
            append(one, model, [0, 10])
            bad = values(model, 20)
            if model == 2:
                bad[3] = np.nan
            one.append(20, {"layers.0": bad})
    look = Watcher(url, gauge=GAUGE).look()
    (curve,) = look.curves
    results = ra.analyze(url, tmp_path / "out", gauge=GAUGE, figures="none", frames=0, units=0)
    assert curve.steps == (0, 10, 20)
    np.testing.assert_allclose(curve.value, results["spread"]["spread"].values[0, 0], rtol=1e-6)
    assert (curve.models, curve.judged) == (2, 10)
    assert look.failed["layers.0", 20].startswith("without seed2: ")
    assert (list(look.missing), list(look.partial)) == ([], [("layers.0", 20)])
    assert "1 spreads leave out a model; layers.0 at step 20: without seed2" in " ".join(shown(look, 300, 30))
    assert "of the steps that most models share" in " ".join(" ".join(shown(look, 100, 30)).split())


def test_a_store_that_is_gone_is_told(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from repaudit.cli.watch import _looks

    looks = _looks(Watcher(store, gauge=GAUGE), 0.1)
    assert next(looks).curves  # type: ignore[union-attr]
    shutil.rmtree(store)
    assert "gone: " in str(next(looks))


def test_models_of_long_names_are_told_apart() -> None:
    name = "google/a-very-long-name-of-a-model-7b-instruct-v0.3-seed"
    runs = tuple(Run(f"{name}{k}", "running", 1, 1, 1.0, 1.0, ()) for k in range(3))
    for width in (60, 80, 120):
        lines = shown(Look("s.zarr", runs, curves(2), {}), width, 30)
        assert all(len(line) <= width for line in lines)
        text = "\n".join(lines)
        assert text.count("running") == 3
        assert all(f"seed{k} " in text for k in range(3))


def test_only_the_models_that_are_asked_for_are_shown(store: Path) -> None:
    look = Watcher(store, gauge=GAUGE, models=["seed1"]).look()
    assert [run.model for run in look.runs] == ["seed1"]
    assert not look.curves


@pytest.mark.parametrize("wrong", ["inf", "1e9"])
def test_seconds_between_looks_are_less_than_a_day(store: Path, wrong: str) -> None:
    run = CliRunner().invoke(app, ["watch", str(store), "--json", "--every", wrong])
    assert run.exit_code == 2
    assert "expected seconds, less than a day" in " ".join(run.output.split())


def test_wide_names_and_long_failures_cut_no_number(store: Path) -> None:
    """Letters of East Asia take two columns of a terminal; of a failure there is shown what there is room for."""
    (run, *_) = Watcher(store, gauge=ra.DiffusionGauge(perplexity=4)).look().runs
    failed = replace(run, failures=((10, "OSError: [Errno 28] No space left on device"),), audits=1234)
    for name in ("baseline-seed1", "日本語モデル学習率バッチ" * 3):
        look = replace(Watcher(store).look(), runs=(replace(failed, model=name), run))
        for width in (60, 80, 100, 120):
            console = Console(width=width, record=True, file=io.StringIO())
            console.print(view(look, width))
            lines = console.export_text().splitlines()
            assert all(cell_len(line) <= width for line in lines)
            (row,) = (line for line in lines if name[-3:] in line)
            assert run.state in row
            assert ("1234" in row) == (width > 70)
            assert name in row or cell_len(name) > 20
            assert "1, last" in row


def test_a_store_that_cannot_be_read_for_a_moment_is_looked_at_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a repair, or while it is being deleted."""
    from repaudit.cli import watch as command
    from repaudit.errors import CorruptStoreError

    looks: list[Any] = [CorruptStoreError("restore that file"), "a look"]

    class Sometimes:
        waiting = 0

        def look(self, _seconds: float) -> Any:
            found = looks.pop(0)
            if isinstance(found, Exception):
                raise found
            return self

    assert isinstance(next(command._looks(Sometimes(), 0.1)), Sometimes)  # type: ignore[arg-type]
    monkeypatch.setattr(command, "_MAKING", -1)
    looks[:] = [CorruptStoreError("restore that file")]
    with pytest.raises(CorruptStoreError):
        next(command._looks(Sometimes(), 0.1))  # type: ignore[arg-type]


def test_many_models_leave_room_for_layers(store: Path) -> None:
    (run, *_) = Watcher(store, gauge=ra.DiffusionGauge(perplexity=4)).look().runs
    many = [replace(run, model=f"seed{i}", seconds_since_audit=100.0 - i) for i in range(40)]
    many[7] = replace(many[7], state="running")
    look = replace(Watcher(store).look(), runs=tuple(many), curves=curves(30))
    lines = shown(look, 100, 24)
    assert len(lines) <= 24
    assert any("layers." in line for line in lines)
    names = [line.split()[0] for line in lines if line.startswith("seed")]
    assert names == ["seed7", *(f"seed{i}" for i in range(40 - len(names) + 1, 40))], "running, and last heard of"
    assert f"and {40 - len(names)} more {run.state}" in lines
    assert sum(line.startswith("seed") for line in shown(look, 100, 200)) == 40


@pytest.mark.parametrize(
    ("steps", "said"),
    [((200, 30, 1000), "30/1000"), ((None, 30, 1000), "-/1000"), ((7, 7, 7), "7"), ((None,) * 3, "-")],
)
def test_layers_of_one_row_have_settled_between_two_steps(steps: tuple[int | None, ...], said: str) -> None:
    from repaudit.cli.watch import _settled

    assert _settled([replace(curve, settled=step) for curve, step in zip(curves(3), steps, strict=True)]) == said
