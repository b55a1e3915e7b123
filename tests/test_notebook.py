"""The notebook runs from beginning to end, and what its text says is what came out."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "scripts/explore.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    written = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in written.cells)
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    return NotebookClient(written, timeout=240, kernel_name="python3", resources=place).execute()


def outputs(notebook, of):
    """What the one cell that holds this code put out: text as printed, and the kinds of what it showed."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and of in cell.source)
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    shown = [output.data for output in cell.outputs if output.output_type in {"execute_result", "display_data"}]
    return printed, shown


def test_the_notebook_is_valid_and_warns_of_nothing(notebook):
    nbformat.validate(notebook)
    said = [out.text for cell in notebook.cells for out in cell.get("outputs", ()) if out.get("name") == "stderr"]
    lines = "".join(said).splitlines()
    assert len(lines) == 4, lines  # what each of its recorders tells at its end
    assert all(line.startswith("repaudit: ") and "Next: repaudit analyze" in line for line in lines)


def test_the_spreads_in_its_text_are_those_that_it_computes(notebook):
    printed, _ = outputs(notebook, "ra.spread(")
    computed = [float(value) for value in re.findall(r"Spread\((\d\.\d+)", printed)]
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    said = [float(value) for value in re.findall(r"is about (\d\.\d+)", text)]
    assert len(said) == 2
    assert computed == pytest.approx(said, abs=0.03)
    low, high = re.findall(r"\[(\d\.\d+), (\d\.\d+)\]", printed)[0]
    assert float(low) < computed[0] < float(high)


def test_stores_operators_and_results_are_shown_as_tables(notebook):
    for code, words in (
        ("tree.repaudit", ("store of 3 models on 64 samples", "hidden, last")),
        ('operators["seed0"]', ("Diffusion operator of 64 samples", "perplexity")),
        ("results.repaudit", ("3 models, 2 layers", "neighbourhoods", "shape", "converging")),
    ):
        (cell,) = (cell for cell in notebook.cells if cell.source.splitlines()[-1] == code)
        (page,) = (output.data["text/html"] for output in cell.outputs if output.output_type == "execute_result")
        assert all(word in page for word in words), code
        assert "<script" not in page


def test_figures_are_drawn(notebook):
    for code, count in (("plot.spread", 1), ("plot.pairs", 1)):
        _, shown = outputs(notebook, code)
        assert [set(data) >= {"image/png"} for data in shown] == [True] * count


def test_a_store_is_read_while_it_is_written(notebook):
    printed, _ = outputs(notebook, "record.flush()")
    assert printed.splitlines() == [
        f"trained to step {step}: the store has {[*range(0, step + 1, 25)]}" for step in (25, 50, 75)
    ]
