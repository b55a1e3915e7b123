"""Every part of every document of a store made wrong: verification ends and tells, opening ends in a typed error."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repaudit as ra
from repaudit.errors import RepauditError, StoreWarning
from repaudit.store.read import catalog

MISSING = object()
WRONG = (MISSING, None, True, -1, 0, 7, 10**7, 10**30, 1.5, float("nan"), "", "wrong", [], [-1], [[]], {}, {"a": []})
SHARES = (569, pytest.param(11, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]))
"""Of so many damages one is tried; primes, so that every kind of damage meets every place."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the path of every branch and leaf of a JSON document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def damaged(document: dict[str, Any], path: tuple[Any, ...], wrong: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    if wrong is MISSING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = wrong
    return document


@pytest.fixture
def store(url, probe_set, step_arrays) -> Path:
    layers = {"model.layers.0": ((6, 3), "float32"), "model.layers.1": ((6, 3), "float32")}
    for codec, model in (("raw", "seed0"), ("compact", "seed1")):
        with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers=layers, codec=codec) as writer:
            for step in (0, 10):
                writer.append(step, step_arrays(step), loss=1.0)
    return Path(url)


def held(url: Path) -> dict[str, Any]:
    """Read all that a store holds through its public face."""
    tree = ra.open_store(url)
    found: dict[str, Any] = {"info": catalog.describe(tree)}
    for model in catalog.models(tree):
        found |= {
            f"{model}/{layer}": catalog.activations(tree, model, layer).values for layer in catalog.layers(tree, model)
        }
    for name in (
        "sample",
        "label",
        "text",
        "sha256",
        "probe/ffffffffffffffff/input_ids",
        "probe/ffffffffffffffff/attention_mask",
    ):
        found[name] = tree[name].values
    return found


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(value, right[name]) if isinstance(value, np.ndarray) else value == right[name]
        for name, value in left.items()
    )


@pytest.mark.parametrize("share", SHARES)
def test_no_damage_of_a_document_is_silent_endless_or_a_traceback(store, tmp_path, share):
    truth = held(store)
    assert ra.verify(store, data=True) == []
    tried = 0
    for path in sorted(store.rglob("zarr.json")):
        text = path.read_text()
        document = json.loads(text)
        cases = [(place, wrong) for place in places(document) for wrong in WRONG]
        for place, wrong in cases[:: min(share, len(cases) - 1)]:
            tried += 1
            path.write_text(json.dumps(damaged(document, place, wrong)))
            where = f"{path.relative_to(store)}: {'/'.join(map(str, place))} = {wrong!r}"
            found = outcome(lambda: ra.verify(store, data=True), f"verify, {where}")
            assert isinstance(found, RepauditError) or len(found) < 2000, where
            seen = outcome(lambda: held(store), f"open_store, {where}")
            if found == []:
                assert isinstance(seen, dict), f"verify passed what opening refuses: {where}: {seen}"
                assert same(seen, truth), f"silent: {where}"
            if tried % 10 == 0:
                mended_or_refused(store, tmp_path / "copy.zarr", where)
        path.write_text(text)
    assert tried > 70


def mended_or_refused(store: Path, copied: Path, where: str) -> None:
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(store, copied)
    outcome(lambda: ra.repair(copied), f"repair, {where}")
    if outcome(lambda: ra.verify(copied, data=True), f"verify after repair, {where}") == []:
        assert isinstance(outcome(lambda: held(copied), where), dict), where


def outcome(action: Callable[[], Any], where: str) -> Any:
    """Give the result, or the error if it is one raised on purpose; a model that is left out is one here."""
    try:
        return action()
    except (RepauditError, StoreWarning) as error:
        return error
    except Exception as error:
        raise AssertionError(f"a traceback of {where}") from error
