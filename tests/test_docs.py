"""The documentation: every block of code runs, and every public name is in the reference."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import repaudit as ra

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))
import doc_pages  # noqa: E402

PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_CODE = [page for page in PAGES if any(block.language in {"python", "sh"} for block in doc_pages.blocks(page))]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run a page once; the folder that it leaves."""
    folders = {}

    def run(page):
        if page not in folders:
            folders[page] = tmp_path_factory.mktemp(page.stem)
            before = doc_pages.earlier(page)
            if before is not None:
                shutil.copytree(run(before), folders[page], dirs_exist_ok=True)
            doc_pages.run_page(page, folders[page])
        return folders[page]

    return run


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, ran):
    ran(page)


def test_pages_have_code_and_what_is_not_run_has_a_reason():
    assert {page.stem for page in WITH_CODE} == {
        "start", "recording", "pretrained", "analysis", "live", "spread", "student", "scaling", "gallery",
    }  # fmt: skip
    left_out = [block for page in PAGES for block in doc_pages.blocks(page) if block.reason is not None]
    assert all(len(block.reason) > 10 for block in left_out)
    assert len(left_out) <= 5


def test_the_first_page_says_what_came_out(ran):
    layers = json.loads((ran(ROOT / "docs/start.md") / "store.analysis/summary.json").read_text())["layers"]
    verdicts = {name: entry["verdict"] for name, entry in layers.items()}
    assert verdicts == {
        "model.embed_tokens": "unchanged", "model.layers.0": "converging", "model.layers.1": "converging",
    }  # fmt: skip
    inputs = layers["model.layers.1"]["inputs"]["value"]
    assert inputs < layers["model.layers.1"]["start"] / 2


def test_every_figure_of_the_gallery_is_made_by_it(ran):
    page = ROOT / "docs/gallery.md"
    shown = {name for name in page.read_text().split("](") if ".png)" in name}
    made = {path.name for path in ran(page).glob("*.png")}
    assert {name.split(")")[0] for name in shown} == made
    assert len(made) >= 10


def test_the_reference_has_every_public_name():
    listed = {line.split()[1] for line in (ROOT / "docs/api.md").read_text().splitlines() if line.startswith(":::")}
    homes = {f"{value.__module__}.{name}" for name in ra.__all__ if hasattr(value := getattr(ra, name), "__module__")}
    assert homes <= listed
    assert {f"{getattr(ra.plots, name).__module__}.{name}" for name in ra.plots.__all__} <= listed


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ('<script src="https://x.org/a.js"></script><img src=//x.org/a.png>', 2),
        ('<link rel="stylesheet" href="https://x.org/a.css"><style>a{background:url(https://x.org/b.png)}</style>', 2),
        ('<a href="https://x.org">x</a><script src="assets/a.js"></script><link rel=canonical href=https://x.org>', 0),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(tmp_path, page, count):
    (tmp_path / "page.html").write_text(page)
    assert len(doc_pages.loaded_from_elsewhere(tmp_path)) == count


def test_the_check_of_a_site_fails_only_where_something_is_loaded(tmp_path):
    page = tmp_path / "page.html"
    for text, code in (("<p>x</p>", 0), ('<script src="https://x.org/a.js"></script>', 1)):
        page.write_text(text)
        command = [sys.executable, ROOT / "scripts/doc_pages.py", "--check", tmp_path]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code


def test_the_site_is_built_without_a_warning(tmp_path):
    """The figures are those of the gallery, empty here; ``scripts/docs`` makes them."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in re.findall(r"\]\((\S+\.png)\)", (ROOT / "docs/gallery.md").read_text()):
        (tmp_path / "docs" / name).touch()
    config = (ROOT / "scripts/mkdocs.yml").read_text()
    config = config.replace("../build/docs", "docs").replace("../build/site", "site").replace("[..]", f"[{ROOT}]")
    (tmp_path / "mkdocs.yml").write_text(config)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", tmp_path / "mkdocs.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert doc_pages.loaded_from_elsewhere(tmp_path / "site") == []
    assert "samples_fingerprint" in (tmp_path / "site/schemas/v2/format.html").read_text()
    reference = (tmp_path / "site/api.html").read_text()
    assert all(
        f".{name}" in reference for name in ("spread", "TreeAccessor.operators", "plot_pairs", "NotInStoreError")
    )


def test_a_command_that_fails_and_a_foreign_one_are_told():
    with pytest.raises(RuntimeError, match="exit code 2"):
        doc_pages.run_commands("repaudit info nowhere.zarr\n")
    with pytest.raises(ValueError, match="found 'rm -r x'"):
        doc_pages.run_commands("rm -r x\n")
