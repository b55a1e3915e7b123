"""The report in a real Chromium, headless, opened from a file: what it draws, says and asks for."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import xarray as xr

from repaudit.report import write_report

HOSTILE = '</script><script>window.broken=1</script><img src=x onerror="window.broken=1">'
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-device-scale-factor=1", "--remote-debugging-pipe",
)  # fmt: skip


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of one browser with a profile of its own; ``events`` are all that it reported so far."""

    def __init__(self, program: str, *, patience: float = 60.0) -> None:
        self.patience = patience
        self.events: list[dict[str, Any]] = []
        self._program, self._last, self._rest, self._session = program, 0, b"", None

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (inward, self._write), (self._read, outward) = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4, each message ended by a zero byte.
        script = f'exec 3<&{inward} 4>&{outward}; exec "$0" "$@"'
        command = [self._program, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, *command],
            pass_fds=(inward, outward),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inward)
        os.close(outward)
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        self._process.terminate()
        self._process.wait(timeout=self.patience)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        found: list[dict[str, Any]] = []
        self.wait(lambda: bool(found) or self._take(found, self._last), f"an answer to {method}")
        if "error" in found[0]:
            raise RuntimeError(f"{method}: {found[0]['error']}")
        return found[0]["result"]

    def _take(self, found: list[dict[str, Any]], number: int) -> bool:
        ready, _, _ = select.select([self._read], [], [], 0.1)
        if ready:
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser is gone")
            *whole, self._rest = (self._rest + chunk).split(b"\0")
            for message in map(json.loads, whole):
                (found if message.get("id") == number else self.events).append(message)
        return bool(found)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so; fail when patience ends."""
        end = time.monotonic() + self.patience
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {self.patience:.0f} s for {what}")

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        self.wait(lambda: self.evaluate(f"Boolean({expression})"), expression)

    def view(self, width: int, height: int, *, scheme: str = "light") -> None:
        """Set the size of the window and the theme that the reader prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, page: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.until(f"document.readyState === 'complete' && location.href.startsWith({page.resolve().as_uri()!r})")

    def hover(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        data = self.call(
            "Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": self._page()} if whole else {})
        )
        file.write_bytes(base64.b64decode(data["data"]))

    def _page(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, refusals by the security policy."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
                found.append(json.dumps(params["args"]))
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
                found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Every address that the page asked for, itself included; data in the page itself is none."""
        sent = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]


@pytest.fixture(scope="module")
def chromium():
    program = find()
    if program is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(NAMES)} is on the path")
    with Browser(program) as browser:
        yield browser


@pytest.fixture(scope="module")
def reports():
    """Reports already written, by the options of their results."""
    return {}


@pytest.fixture
def show(chromium, reports, make_results, tmp_path):
    """Write the report of some results, open it, and wait until everything in an open layer is drawn."""

    def make(*, width: int = 1150, scheme: str = "light", change: Any = None, **options: Any) -> Browser:
        key = repr((options, change))
        if key not in reports:
            results, summary = make_results(**options)
            if change is not None:
                change(results)
            reports[key] = write_report(results, summary, tmp_path / "report.html")
        chromium.call("Page.navigate", url="about:blank")
        chromium.events.clear()
        chromium.view(width, 900, scheme=scheme)
        chromium.open(reports[key])
        chromium.until(DRAWN)
        return chromium

    return make


SHOWN = "[...document.querySelectorAll('.plot')].filter(place => place.offsetParent)"
DRAWN = f"{SHOWN}.length > 0 && {SHOWN}.every(place => place.querySelector('svg.main-svg'))"


def quiet(browser: Browser) -> None:
    assert browser.complaints() == []
    assert len(browser.requests()) == 1
    assert browser.requests()[0].startswith("file://")


def test_everything_is_drawn_without_a_word_or_a_request(show):
    page = show()
    drawn = page.evaluate(
        f"{SHOWN}.map(p => [p.dataset.layer, p.dataset.figure, p.querySelectorAll('.scatterlayer path.point').length])"
    )
    counts = {(layer, figure): points for layer, figure, points in drawn}
    assert len(counts) == 3 * 5
    for layer in ("layer-0", "layer-1", "layer-2"):
        assert counts[layer, "spread"] == 11
        assert counts[layer, "embedding"] == 120
        assert counts[layer, "effective_neighbors"] == 33
    assert (counts["layer-0", "trajectory"], counts["layer-2", "trajectory"]) == (33, 32)
    assert page.evaluate("document.querySelectorAll('.answer .spark polyline').length") == 3
    quiet(page)


def test_step_zero_and_the_null_line_are_in_sight(show):
    page = show()
    plot = "document.querySelector('[data-layer=layer-0][data-figure=spread]')"
    ticks = page.evaluate(f"[...{plot}.querySelectorAll('.xtick text')].map(t => t.textContent)")
    assert ticks[0] == "0"
    assert ticks[-1] == "512"
    low, high = page.evaluate(f"{plot}._fullLayout.yaxis.range")
    assert low <= 0
    assert high > 1
    assert page.evaluate(f"{plot}.querySelectorAll('.shapelayer path').length") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(show, scheme):
    page = show(width=390, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    widths = page.evaluate(f"{SHOWN}.map(place => place.querySelector('svg.main-svg').clientWidth)")
    assert max(widths) <= 390
    quiet(page)


def test_the_theme_is_followed_while_the_page_is_open(show):
    page = show()
    ink = "document.querySelector('[data-figure=spread] .lines path.js-line:last-child').style.stroke"
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ink), page.evaluate(paper)
    page.view(1150, 900, scheme="dark")
    page.until(f"{paper} !== {before[1]!r}")
    plot = "document.querySelector('[data-figure=spread]')"
    page.until(f"{plot}._fullLayout.font.color === '#9aa2aa'")
    assert page.evaluate(f"{plot}.data.filter(t => t.meta && t.meta.ink)[0].line.color") == "#e4e6e8"
    quiet(page)


def hovered(page: Browser, place: str) -> str:
    """Return what is said where the mouse is over the first point of a plot."""
    page.evaluate(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y = page.evaluate(
        f"(() => {{ const r = {place}.querySelector('path.point').getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    page.hover(x - 40, y - 40)
    page.hover(x, y)
    page.until(f"{place}.querySelector('.hovertext')")
    said: str = page.evaluate(f"{place}.querySelector('.hovertext').textContent")
    return said


def test_a_hovered_point_tells_its_sample(show):
    page = show(labels=(HOSTILE, "json", "<b>bold</b>"))
    place = "document.querySelector('[data-layer=layer-0][data-figure=embedding]')"
    said = hovered(page, place)
    assert re.search(r"def\sparse_\d+\(source\):", said)
    assert HOSTILE[:20] in said
    assert page.evaluate("window.broken") is None
    quiet(page)


def test_a_hovered_point_of_a_line_tells_its_model(show):
    page = show(models=("first", "second"))
    drawn = f"{SHOWN}.map(place => [place.dataset.layer, place.dataset.figure])"
    figures = [figure for layer, figure in page.evaluate(drawn) if layer == "layer-0"]
    told = []
    for figure in figures:
        place = f"document.querySelector('[data-layer=layer-0][data-figure=\"{figure}\"]')"
        if not page.evaluate(f"{place}.data.some(t => Array.isArray(t.hovertext) && t.hovertext[0] === 'first')"):
            continue
        said = hovered(page, place)
        assert "first" in said or "second" in said, (figure, said)
        told.append(figure)
    assert len(told) > 1, figures
    quiet(page)


EMBEDDINGS = "[...document.querySelectorAll('[data-figure=embedding]')].filter(p => p.offsetParent && p._fullLayout)"
PICKED = f"{EMBEDDINGS}.map(p => p.data.map(t => t.selectedpoints?.length ?? -1))"


def test_a_sample_is_found_by_its_text_in_every_picture(show):
    page = show(more=True)
    page.evaluate(
        "void (window.find = document.querySelector('[name=find]')); find.value = 'PARSE_7(';"
        "find.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    page.until(f"{PICKED}.every(counts => counts.reduce((a, b) => a + b) === 1)")
    assert len(page.evaluate(PICKED)) == 3
    said = page.evaluate("document.querySelector('.finder output').textContent")
    assert said == "1 of 120 samples"
    trace = f"{EMBEDDINGS}[2].data.find(t => t.selectedpoints.length)"
    assert "parse_7(" in page.evaluate(f"{trace}.hovertext[{trace}.selectedpoints[0]]")
    choose(page, "document.querySelector('#layer-0 [data-figure=embedding]')", "frame", 0)
    page.until(f"{PICKED}.every(counts => counts.reduce((a, b) => a + b) === 1)")
    page.evaluate("find.value = ''; find.dispatchEvent(new Event('input', {bubbles: true}))")
    page.until(f"{PICKED}.flat().every(count => count === -1)")
    assert page.evaluate("document.querySelector('.finder output').textContent") == ""
    quiet(page)


def test_a_label_chosen_in_one_picture_is_seen_in_the_others(show):
    page = show(more=True)
    place = "document.querySelector('#layer-1 [data-figure=embedding]')"
    page.evaluate(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    page.until(f"{place}.querySelector('.legendtoggle')")
    x, y = page.evaluate(
        f"(() => {{ const r = {place}.querySelectorAll('.legendtoggle')[1].getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    page.until(f"{PICKED}.every(counts => counts.join() === '0,30,0,0')")
    chosen = "document.querySelector('.finder [name=label]').selectedOptions[0].textContent"
    assert page.evaluate(chosen) == page.evaluate(f"{place}.data[1].name")
    page.evaluate(
        "void (s => { s.value = ''; s.dispatchEvent(new Event('input', {bubbles: true})); })"
        "(document.querySelector('.finder [name=label]'))"
    )
    page.until(f"{PICKED}.flat().every(count => count === -1)")
    quiet(page)


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_every_figure_can_be_saved_as_a_file(show, tmp_path, kind, start):
    page = show(more=True)
    drawn = page.evaluate(f"{SHOWN}.length")
    assert page.evaluate("document.querySelectorAll('.files').length") == drawn
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
    figure = "document.querySelector('[data-figure=spread]').closest('figure')"
    page.evaluate(f"{figure}.querySelector('[aria-label*={kind.upper()}]').click()")
    file = tmp_path / "saved" / f"layer-0-spread.{kind}"
    page.wait(lambda: file.exists() and file.stat().st_size > 0, f"{file} to be written")
    assert file.read_bytes().startswith(start)
    quiet(page)


def test_the_slider_says_its_step(show):
    page = show(more=True)
    said = "document.querySelector('#layer-0 [name=frame]').getAttribute('aria-valuetext')"
    assert page.evaluate(said) == "step 512, 6 of 6"
    choose(page, "document.querySelector('#layer-0 [data-figure=embedding]')", "frame", 0)
    assert page.evaluate(said) == "step 16, 1 of 6"


def test_the_numbers_are_there_when_they_are_asked_for(show, make_results):
    page = show(scales=True)
    assert page.evaluate("document.querySelectorAll('table').length") == 0
    page.evaluate("document.querySelector('#layer-1 details.table').open = true")
    page.until("document.querySelector('#layer-1 table')")
    table = "document.querySelector('#layer-1 table')"
    head = page.evaluate(f"[...{table}.querySelectorAll('th')].map(c => c.textContent)")
    row = page.evaluate(f"[...{table}.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent))")[4]
    spread = make_results(scales=True)[0]["spread"].to_dataset().isel(layer=1, scale=0, step=4)
    found = dict(zip(head, row, strict=True))
    assert found["step"] == "8"
    assert float(found["spread"]) == pytest.approx(float(spread["spread"]), rel=1e-3)
    assert float(found["band_low"]) == pytest.approx(float(spread["band_low"]), rel=1e-3)
    quiet(page)


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1150, "light"),
        (390, "dark"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1150, "dark"), (390, "light"))),
    ],
)
def test_nothing_stands_in_the_way_of_assistive_software(show, width, scheme):
    page = show(more=True, scales=True, width=width, scheme=scheme)
    places = find_spec("axe_playwright_python").submodule_search_locations
    page.evaluate(Path(places[0], "axe.min.js").read_text(encoding="utf-8") + ";0")
    found = page.evaluate(
        "axe.run().then(r => r.violations.map(v => [v.id, v.impact, v.nodes.slice(0, 3).map(n => n.html)]))"
    )
    assert found == []


FILLED = """[...document.querySelectorAll('.plot')].filter(p => p.offsetParent && p._fullLayout).flatMap(p => {
  const filled = (axis) => {
    const [low, high] = p._fullLayout[`${axis}axis`].range.map(Number).sort((a, b) => a - b);
    const inside = (n) => n !== null && Number.isFinite(n) && n >= low && n <= high;
    const lines = axis === 'y' ? (p._fullLayout.shapes || []).flatMap(s => [s.y0, s.y1]) : [];
    const shown = [...p.data.flatMap(t => Array.from(t[axis] || [])), ...lines].filter(inside);
    return (Math.max(...shown) - Math.min(...shown)) / (high - low);
  };
  return p.data.some(t => t.type === 'heatmap') ? [] : [[p.dataset.layer, p.dataset.figure, filled('x'), filled('y')]];
})"""


@pytest.mark.parametrize("width", [1150, 390])
def test_what_is_shown_fills_half_of_its_axes(show, width):
    page = show(more=True, width=width)
    found = page.evaluate(FILLED)
    assert len(found) > 20
    assert [where for where in found if min(where[2:]) < 0.5] == []


@pytest.mark.parametrize("width", [1150, 390])
def test_names_beside_a_map_do_not_lie_on_each_other(show, width):
    page = show(more=True, scales=True, models=tuple(f"seed{k}" for k in range(20)), width=width)
    for figure, axis in product(("similarity", "pairs"), "xy"):
        tick = f"[...document.querySelector('[data-figure={figure}]').querySelectorAll('.{axis}tick text')]"
        boxes = page.evaluate(f"{tick}.map(t => (b => [b.x, b.y, b.width, b.height])(t.getBoundingClientRect()))")
        assert len(boxes) > 5
        side = 0 if axis == "x" else 1
        starts = sorted(box[side] for box in boxes)
        assert all(box[side + 2] < 17 for box in boxes)
        assert min(later - former for former, later in pairwise(starts)) >= 12


def test_long_names_of_rows_on_a_phone_do_not_lie_on_each_other(show):
    layers = ("transformer.wte", "transformer.h.0", "transformer.h.1", "transformer.ln_f")
    page = show(more=True, layers=layers, models=("seed0", "seed1", "seed2"), width=390)
    tick = "[...document.querySelector('[data-figure=similarity]').querySelectorAll('.ytick text')]"
    starts = sorted(page.evaluate(f"{tick}.map(t => t.getBoundingClientRect().y)"))
    assert len(starts) > 3
    assert min(later - former for former, later in pairwise(starts)) >= 12


@pytest.mark.parametrize(
    ("count", "most", "tags"), [(6, 5.4e6, 5_000), pytest.param(60, 10e6, 40_000, marks=pytest.mark.slow)]
)
def test_many_layers_of_two_hundred_steps_stay_small(make_results, tmp_path, count, most, tags):
    layers = tuple(f"base_model.model.model.layers.{k}.self_attn.o_proj" for k in range(count))
    options = {"models": ("seed0", "seed1"), "steps": tuple(range(0, 2000, 10)), "n": 256}
    page = write_report(*make_results(layers=layers, more=True, scales=True, **options), tmp_path / "report.html")
    assert page.stat().st_size < most
    assert page.read_text(encoding="utf-8").count("</") < tags


def test_a_hovered_sample_that_is_an_image_is_shown(show):
    def with_pictures(results):
        merged = results["merged"].to_dataset()
        pictures = np.array([f"{k:04d}" for k in range(merged.sizes["sample"])], dtype=object)
        results["merged"] = xr.DataTree(merged.assign_coords(thumbnail=("sample", pictures)))

    page = show(change=with_pictures)
    place = "document.querySelector('[data-layer=layer-0][data-figure=embedding]')"
    said = hovered(page, place)
    figure = f"{place}.closest('figure')"
    page.until(f"{figure}.querySelector('img.thumbnail')")
    number = re.search(r"parse_(\d+)", said)
    source = page.evaluate(f"{figure}.querySelector('img.thumbnail').src")
    assert source == f"data:image/png;base64,{int(number.group(1)):04d}"
    page.hover(1, 1)
    page.until(f"!{figure}.querySelector('img.thumbnail')")


def test_hostile_names_are_shown_and_not_run(show):
    page = show(layers=(HOSTILE, "norm"), models=(HOSTILE, "b\u2028c"), labels=(HOSTILE, "<b>bold</b>"))
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.querySelector('h2').textContent") == HOSTILE
    legend = page.evaluate(
        "[...document.querySelectorAll('#layer-0 [data-figure=embedding] .legendtext')].map(t => t.textContent)"
    )
    assert "<b>bold</b>" in legend
    quiet(page)


def test_hostile_names_in_every_group_are_shown_and_not_run(show):
    page = show(
        layers=(HOSTILE, "a,b", "层" * 60), models=(HOSTILE, "x,y", "m" * 90), labels=(HOSTILE, "json"), more=True
    )
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    names = page.evaluate("[...document.querySelectorAll('#layer-0 [name=source] option')].map(o => o.textContent)")
    assert names[1].startswith(HOSTILE[:15])
    quiet(page)


def test_the_policy_of_the_page_refuses_any_other_script(show):
    page = show()
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.broken = 1'}))"
    )
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 1\">')")
    page.evaluate("fetch('https://example.org').catch(() => 0)")
    assert page.evaluate("window.broken") is None
    assert len(page.complaints()) >= 3


def test_many_layers_open_with_a_map_and_one_layer_and_a_click_opens_another(show):
    page = show(layers=tuple(f"model.layers.{k}" for k in range(12)))
    assert page.evaluate("document.querySelectorAll('.map .heatmaplayer image').length") == 1
    assert page.evaluate("document.querySelectorAll('details.layer[open]').length") == 1
    assert page.evaluate("document.querySelectorAll('.answer li').length") == 12
    page.evaluate("document.querySelectorAll('.answer li a')[9].click()")
    page.until("document.querySelector('#layer-9').open")
    page.until(DRAWN)
    assert page.evaluate("document.querySelectorAll('#layer-9 svg.main-svg').length") > 4
    quiet(page)


CHOOSE = "(select, value) => { select.value = value; select.dispatchEvent(new Event('input', {bubbles: true})); }"


def choose(page: Browser, plot: str, name: str, value: object) -> None:
    """Choose in a control beside a figure, as a reader would."""
    control = f"{plot}.closest('figure').querySelector('[name={name}]')"
    page.evaluate(f"({CHOOSE})({control}, {json.dumps(value)})")


def test_classical_scaling_takes_the_place_of_phate_and_gives_it_back(show):
    page = show()
    place = "document.querySelector('#layer-0 [data-figure=trajectory]')"
    page.evaluate(f"void (window.place = {place})")
    phate = page.evaluate("Array.from(place._fullData[0].x)")
    choose(page, "place", "view", "mds")
    page.until("place.dataset.figure === 'mds'")
    assert page.evaluate("Array.from(place._fullData[0].x)") != phate
    choose(page, "place", "view", "trajectory")
    assert page.evaluate("Array.from(place._fullData[0].x)") == phate
    quiet(page)


def test_the_slider_moves_the_samples_and_the_axes_stay(show):
    page = show(more=True)
    page.evaluate("void (window.place = document.querySelector('#layer-0 [data-figure=embedding]'))")
    ranges = "[place._fullLayout.xaxis.range, place._fullLayout.yaxis.range].flat()"
    before = page.evaluate(ranges)
    late = page.evaluate("Array.from(place.data[0].x)")
    assert page.evaluate("place.querySelectorAll('.scatterlayer path.point').length") == 120
    choose(page, "place", "frame", 0)
    page.until(f"Math.abs(place.data[0].x[0] - {0.2 * late[0]}) < 1e-3")
    assert page.evaluate("Array.from(place.data[0].x)") == pytest.approx([0.2 * x for x in late], abs=1e-3)
    assert page.evaluate("place.closest('figure').querySelector('output').textContent") == "step 16"
    assert page.evaluate(ranges) == pytest.approx(before)
    choose(page, "place", "source", 2)  # it lies elsewhere, and has a frame of its own
    page.until(f"Math.abs(place.data[0].x[0] - {0.2 * late[0] + 0.6}) < 1e-3")
    assert page.evaluate(ranges) == pytest.approx([bound + 0.6 for bound in before], abs=1e-3)
    page.evaluate("place.closest('figure').querySelector('.play').click()")
    page.until("place.closest('figure').querySelector('output').textContent === 'step 512'")
    page.until("place.closest('figure').querySelector('.play').textContent === 'Play'")
    quiet(page)


def test_one_sample_far_away_leaves_the_others_their_room(show):
    def far(results):
        frames = results["frames"].to_dataset()
        frames["models"][{"model": 0, "sample": 3}] = 1e4
        results["frames"] = xr.DataTree(frames)

    page = show(more=True, change=far)
    page.evaluate("void (window.place = document.querySelector('#layer-0 [data-figure=embedding]'))")
    choose(page, "place", "source", 1)
    page.until("place._fullLayout.xaxis.range[1] < 1e3")
    inside = "place.data.flatMap(t => t.x).filter(x => x < 1e3)"
    span = page.evaluate(f"Math.max(...{inside}) - Math.min(...{inside})")
    low, high = page.evaluate("place._fullLayout.xaxis.range")
    assert span > 0.5 * (high - low)
    quiet(page)


def test_a_rough_phate_gives_way_to_classical_scaling(show):
    page = show(more=True)
    place = "document.querySelector('#layer-0 [data-figure=mds]')"
    assert page.evaluate(f"{place}.closest('figure').querySelector('[name=view]').value") == "mds"
    assert "0.33" in page.evaluate(f"{place}.closest('figure').querySelector('figcaption').textContent")
    quiet(page)


def test_the_similarity_map_follows_its_selectors(show):
    page = show(more=True, scheme="dark")
    page.evaluate("void (window.place = document.querySelector('[data-figure=similarity]'))")
    cells = "place.data[0].z.map(row => Array.from(row))"
    first = page.evaluate(cells)
    assert len(first) == 9
    assert all(first[k][k] == pytest.approx(1, abs=1e-4) for k in range(9))
    choose(page, "place", "order", "layer")
    by_layer = page.evaluate(cells)
    order = [3 * model + layer for layer in range(3) for model in range(3)]
    assert by_layer == [[first[i][j] for j in order] for i in order]
    said = page.evaluate("place.data[0].hovertext[0][1]")
    assert said.startswith("model.layers.0 · seed0<br>model.layers.0 · seed1<br>")
    assert "by chance 0.100" in said
    choose(page, "place", "measure", 1)
    assert page.evaluate(cells)[0][1] == pytest.approx(by_layer[0][1] ** 2, abs=1e-4)
    choose(page, "place", "step", 1)
    assert page.evaluate(cells)[0][1] == pytest.approx(by_layer[0][1] ** 4, abs=1e-4)
    quiet(page)


def test_every_group_of_a_phone_s_report_is_drawn_in_the_dark(show):
    page = show(more=True, scheme="dark", width=390)
    kinds = set(page.evaluate("[...document.querySelectorAll('.plot[data-drawn]')].map(place => place.dataset.figure)"))
    assert {"together", "similarity", "comparison", "groups", "units-0", "embedding"} <= kinds
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.querySelectorAll('.settling li').length") == 3
    quiet(page)


def test_a_single_model_gets_its_trajectory_and_embedding(show):
    page = show(models=("only",))
    figures = page.evaluate("[...document.querySelectorAll('#layer-0 .plot')].map(place => place.dataset.figure)")
    assert figures[:2] == ["trajectory", "embedding"]
    assert "at least two models" in page.evaluate("document.querySelector('.answer').textContent")
    quiet(page)


def test_a_single_model_shows_its_approach_in_the_place_of_the_spread(show):
    page = show(models=("only",), more=True)
    figures = page.evaluate("[...document.querySelectorAll('#layer-0 .plot')].map(place => place.dataset.figure)")
    assert figures[0] == "approach"
    assert page.evaluate("document.querySelectorAll('.answer .spark polyline').length") == 3
    assert "at least two models" not in page.evaluate("document.querySelector('.answer').textContent")
    quiet(page)


def test_the_switch_shows_the_other_scale_of_its_layer_only(show):
    page = show(scales=True, more=True)
    kinds = "[...document.querySelectorAll('.plot')].filter(p => p.offsetParent).map(p => p.dataset.layer)"
    before = page.evaluate(kinds)
    assert before.count("layer-0-scale-1") == 1, "the spread curve is always in sight"
    page.evaluate("document.querySelector('#layer-0 .switch input[value=\"1\"]').click()")
    page.until(DRAWN)
    after = page.evaluate(kinds)
    assert after.count("layer-0-scale-1") == before.count("layer-0") - 1
    assert after.count("layer-1") == before.count("layer-1")
    place = "document.querySelector('[data-layer=layer-0-scale-1][data-figure=trajectory]')"
    assert page.evaluate(f"{place}.querySelectorAll('.scatterlayer path.point').length") == 33
    page.view(900, 900)
    page.evaluate("document.querySelector('#layer-0 .switch input[value=\"0\"]').click()")
    page.until(f"!{place}.offsetParent")
    page.until(
        "[...document.querySelectorAll('#layer-0 .plot')].filter(p => p.offsetParent)"
        ".every(p => Math.abs(p.querySelector('svg.main-svg').clientWidth - p.clientWidth) <= 1)"
    )
    page.view(900, 900, scheme="dark")
    page.until(f"!{place}.dataset.drawn")
    page.evaluate("document.querySelector('#layer-0 .switch input[value=\"1\"]').click()")
    page.until(f"{place}._fullLayout.font.color === '#9aa2aa'")
    page.until(DRAWN)
    quiet(page)


@pytest.mark.parametrize(("width", "columns"), [(1150, 2), (390, 1)])
def test_the_curves_of_both_scales_stand_side_by_side_where_there_is_room(show, width, columns):
    page = show(scales=True, width=width)
    lefts = page.evaluate(
        "[...document.querySelectorAll('#layer-0 .scales .plot')].map(p => Math.round(p.getBoundingClientRect().x))"
    )
    assert len(lefts) == 2
    assert len(set(lefts)) == columns
    assert page.evaluate("document.documentElement.scrollWidth") == width
    quiet(page)


def test_a_hovered_pair_tells_its_interval_and_p_value(show):
    page = show(scales=True, models=("a", "b", "c", "<b>d</b>"))
    place = "document.querySelector('[data-layer=layer-0][data-figure=pairs]')"
    page.evaluate(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y, w, h = page.evaluate(
        f"(() => {{ const r = {place}.querySelector('.heatmaplayer image').getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height]; })()"
    )
    page.hover(x + 0.6 * w, y + 0.1 * h)
    page.hover(x + 0.38 * w, y + 0.12 * h)
    page.until(f"{place}.querySelector('.hovertext')")
    said = page.evaluate(f"{place}.querySelector('.hovertext').textContent")
    assert re.search(r"distance 0\.\d\d \[0\.\d\d, 0\.\d\d\]Holm-adjusted p", said)
    assert page.evaluate(f"{place}.querySelectorAll('.heatmap-label text').length") == 12
    quiet(page)
