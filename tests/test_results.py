"""The contract of results.zarr: table, schema, cases and real analyses say the same."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import repaudit as ra
from repaudit.analysis.contract import contract_violations, describe, labelled
from repaudit.results import CONTRACT, FINGERPRINT, PARAMETERS, SUMMARY, VERSIONS
from repaudit.store.format.schema import violations

EXAMPLES = Path(__file__).parents[1] / "schemas/v1/examples"
DTYPES = {"float": "f8", "integer": "i8", "number": "f8", "text": object}


def cases(folder: str) -> list[Path]:
    return sorted((EXAMPLES / folder).glob("results*.json"))


@pytest.mark.parametrize("path", cases("valid"), ids=lambda path: path.stem)
def test_valid_descriptions_keep_the_contract(path):
    assert violations("results", json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", cases("invalid"), ids=lambda path: path.stem)
def test_invalid_descriptions_break_it_in_one_place(path):
    assert len(violations("results", json.loads(path.read_text(encoding="utf-8")))) == 1


def table() -> xr.DataTree:
    """Make a tree of everything that the table names, one value along each dim."""
    provenance = dict.fromkeys((PARAMETERS, VERSIONS, FINGERPRINT), "")
    groups = {}
    for name, group in CONTRACT.items():
        coords, data = (
            {key: (entry.dims, np.zeros([1] * len(entry.dims), DTYPES[entry.kind])) for key, entry in entries.items()}
            for entries in (group.coords, group.variables)
        )
        attrs = provenance | {key: 0 if key == "seed" else "" for key in group.attrs}
        groups[name] = labelled(name, xr.Dataset(data, coords, attrs))
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=provenance | {SUMMARY: "{}"}), **groups})


def test_the_table_keeps_the_schema():
    assert contract_violations(table()) == []


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.thin(2)
def test_the_schema_asks_for_what_the_table_asks_for(name):
    whole, group = describe(table()), CONTRACT[name]
    without = deepcopy(whole)
    del without["groups"][name]
    assert bool(violations("results", without)) == group.required
    for part, entries in (("variables", group.variables), ("coords", group.coords)):
        for key, entry in entries.items():
            without = deepcopy(whole)
            del without["groups"][name][part][key]
            bound_of_another = key.endswith(("_low", "_high"))
            assert bool(violations("results", without)) == (entry.required or bound_of_another), key
            for change in ({"dims": ["x", *entry.dims]}, {"dtype": "boolean"}, {"long_name": ""}):
                changed = deepcopy(whole)
                changed["groups"][name][part][key] |= change
                assert len(violations("results", changed)) == 1, (key, change)
    for attribute in (PARAMETERS, VERSIONS, FINGERPRINT, *group.attrs):
        without = deepcopy(whole)
        without["groups"][name]["attrs"].pop(attribute)
        assert len(violations("results", without)) == 1, attribute


@pytest.mark.parametrize(
    ("models", "settings"),
    [
        (3, {"groups": {"a": ["seed0"], "b": ["seed1", "seed2"]}}),
        (1, {}),
        (2, {"frames": 0, "units": 0, "similarity": ()}),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_the_results_of_an_analysis_keep_the_contract(planted_store, tmp_path, models, settings):
    results = ra.analyze(planted_store(models, steps=(0, 1)), tmp_path / "out", **settings)
    assert contract_violations(results) == []
    with xr.open_datatree(tmp_path / "out" / "results.zarr", engine="zarr") as stored:
        assert contract_violations(stored) == []


def test_a_tree_that_breaks_the_contract_is_told_where():
    tree = table()
    tree["spread"] = xr.DataTree(tree["spread"].to_dataset().drop_vars("low"))
    operator = tree["merged/operator"].to_dataset()
    tree["merged"] = xr.DataTree(tree["merged"].to_dataset().rename({"sample": "passage"}))
    tree["merged/operator"] = xr.DataTree(operator)
    tree["extra"] = xr.DataTree(xr.Dataset())
    found = "\n".join(contract_violations(tree))
    assert "groups/spread/variables: 'low' is a required property" in found
    assert "groups/merged/variables/embedding/dims: ['layer', 'scale', 'sample', 'component'] was expected" in found
    assert "'extra' was unexpected" in found


def test_diagnostics_of_a_gauge_that_has_more_are_labelled():
    values = {"mean_degree": (("layer", "model", "step"), np.ones((1, 1, 1)))}
    assert labelled("diagnostics", xr.Dataset(values))["mean_degree"].attrs == {
        "long_name": "mean degree",
        "units": "1",
    }
