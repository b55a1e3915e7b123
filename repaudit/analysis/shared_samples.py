"""The samples that several stores share: by id, and only where what stands behind the id is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.errors import AnalysisError
from repaudit.names import ATTRS, SAMPLE, SHA256, TEXT
from repaudit.store.format.sample_set import PREVIEW_1, Raw, SampleSet, row_hashes, text_hash
from repaudit.store.read import catalog

FEWEST = 3


@dataclass(frozen=True)
class SharedSamples:
    """Rows of the shared samples by store, all in one order, their fingerprint, and what was left out."""

    rows: Mapping[str, NDArray[np.int64]]
    fingerprint: str = ""
    notes: tuple[str, ...] = ()


def repeated_samples(samples: xr.Dataset) -> str:
    """Say how many of the samples are different ones, where some are repeated.

    Examples
    --------
    >>> repeated_samples(xr.Dataset(coords={"sha256": ("sample", ["a", "b", "b"])}))
    '2 of 3 samples are different ones; each that is repeated counts as one of its own, also in the intervals.'
    """
    hashes = [str(one) for one in samples[SHA256].values] if SHA256 in samples.coords else []
    different = len({*hashes})
    if different == len(hashes):
        return ""
    return (
        f"{different} of {len(hashes)} samples are different ones; each that is repeated counts as one of its own, "
        "also in the intervals."
    )


def share_samples(trees: Mapping[str, xr.DataTree]) -> SharedSamples:
    """Find the samples that all stores have, in the order of the first.

    Raises
    ------
    AnalysisError
        Samples of one id differ, stores know their samples in different ways, or fewer than 3 are shared.
    """
    sets = {url: _samples(tree) for url, tree in trees.items()}
    kinds = {url: {raw for raw, _ in known} for url, known in sets.items()}
    common = set.intersection(*kinds.values())
    if not common:
        raise AnalysisError(
            "expected stores that know their samples in the same way, found "
            + ", ".join(f"{url} by {' or '.join(sorted(raws))}" for url, raws in kinds.items())
            + "; record the models on the same texts"
        )
    raw: Raw = "text" if "text" in common else "inputs"
    hashes = {url: dict(known)[raw] for url, known in sets.items()}
    first, *others = trees
    ids = [name for name in hashes[first] if all(name in hashes[url] for url in others)]
    for url in others:
        for name in ids:
            if hashes[url][name] != hashes[first][name]:
                what = "text differs" if raw == "text" else "inputs differ"
                raise AnalysisError(
                    f"sample {name!r} is not the same in {first} and {url}: its {what}; stores are analysed "
                    "together by the ids of their samples, so give different samples different ids"
                )
    if len(ids) < FEWEST:
        raise AnalysisError(
            f"expected at least {FEWEST} samples that all stores have, found {len(ids)}: "
            + ", ".join(f"{url} has {len(known)}" for url, known in hashes.items())
        )
    rows = {url: _places(list(known), ids) for url, known in hashes.items()}
    notes = tuple(
        f"store {url}: {len(known) - len(ids)} of its {len(known)} samples, which the other stores lack"
        for url, known in hashes.items()
        if len(known) > len(ids)
    )
    return SharedSamples(rows, SampleSet(ids, [hashes[first][name] for name in ids], raw).fingerprint, notes)


def _samples(tree: xr.DataTree) -> list[tuple[str, dict[str, str]]]:
    """Return the hash of every sample by id, in each of the ways in which a store knows its samples."""
    root = tree.to_dataset()
    ids = [str(name) for name in root[SAMPLE].values]
    raw = root.attrs[ATTRS].get("raw")
    if SHA256 in root.coords and raw == "text":
        return [("text", dict(zip(ids, root[SHA256].values.tolist(), strict=True)))]
    found = []
    texts = [str(text) for text in root[TEXT].values] if TEXT in root else []
    if texts and (root.attrs[ATTRS]["version"] > 1 or max(map(len, texts)) < PREVIEW_1):
        found.append(("text", dict(zip(ids, map(text_hash, texts), strict=True))))
    inputs = {name: array.values for name, array in catalog.inputs(tree).data_vars.items()}
    return [
        *found,
        ("inputs", dict(zip(ids, row_hashes({str(k): v for k, v in inputs.items()}, len(ids)), strict=True))),
    ]


def _places(known: list[str], ids: list[str]) -> NDArray[np.int64]:
    place = {name: index for index, name in enumerate(known)}
    return np.array([place[name] for name in ids], dtype=np.int64)
