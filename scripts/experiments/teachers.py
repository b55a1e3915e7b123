"""What four pretrained models say of all sets of e-mails: recorded once, merged by every strategy, and looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mails import HELD_OUT, READ, TRAIN, Mails, pretrained

import repaudit as ra

LAYER = "penultimate"
MERGES = ("frobenius", "weighted", "ot_barycenter")


def record(mails: Mails, folder: Path, models: list[str]) -> dict[str, Path]:
    """Record the teachers' penultimate layers on every set; what is there is not recorded again."""
    places = {name: place for name, place in pretrained.models().items() if name in models}
    stores = {}
    for name in (TRAIN, HELD_OUT, READ):
        stores[name] = folder / f"teachers-{name}.zarr"
        probe = pretrained.write_probe(folder / f"{name}.jsonl", mails.sets[name])
        if stores[name].exists() and set(ra.open_store(stores[name]).repaudit.models) == set(places):
            continue
        ra.record_pretrained(
            list(places.values()), probe, [f"{LAYER}=hidden_states[-2]"], stores[name], names=list(places)
        )
    return stores


@dataclass(frozen=True)
class Teaching:
    """The targets of one scale.

    Attributes
    ----------
    merged : dict of AlignmentTarget, by set, merged anew on each
    best : str, the teacher whose walk finds the same class most often on the training e-mails
    alone : AlignmentTarget, that teacher's own operator
    spread : float, of the teachers on the held-out e-mails
    """

    merged: dict[str, ra.AlignmentTarget]
    best: str
    alone: ra.AlignmentTarget
    spread: float

    @classmethod
    def of(cls, stores: dict[str, Path], mails: Mails, scale: float | None = None) -> Teaching:
        """Merge the teachers on every set, at a perplexity, or a quarter of each set's samples."""
        gauges = {name: gauge_of(len(mails.sets[name]), scale) for name in stores}
        operators = {name: operators_of(store, gauges[name]) for name, store in stores.items()}
        ids = {name: [mail["id"] for mail in mails.sets[name]] for name in stores}
        merged = {
            name: ra.AlignmentTarget.from_operator(
                ra.DiffusionMerging("frobenius").merge(found), samples=ids[name], gauge=gauges[name]
            )
            for name, found in operators.items()
        }
        classes = mails.labels(TRAIN)
        best = max(operators[TRAIN], key=lambda name: same_class(operators[TRAIN][name], classes))
        alone = ra.AlignmentTarget.from_operator(operators[TRAIN][best], samples=ids[TRAIN], gauge=gauges[TRAIN])
        spread = ra.spread(operators[HELD_OUT]).value
        return cls(merged, best, alone, spread)


def gauge_of(samples: int, scale: float | None) -> ra.DiffusionGauge:
    """Return the gauge at a perplexity, or a quarter of the samples."""
    return ra.DiffusionGauge(perplexity=scale or samples / 4)


def operators_of(store: Path, gauge: ra.DiffusionGauge) -> dict[str, ra.DiffusionOperator]:
    """Return every teacher's operator on a set."""
    tree = ra.open_store(store)
    return {name: gauge(tree.repaudit.activations(name, LAYER).isel(step=-1).values) for name in tree.repaudit.models}


def same_class(operator: ra.DiffusionOperator, classes: np.ndarray) -> float:
    """Return how often one step of the walk ends at a sample of the same class."""
    return float((operator.to_numpy() * np.equal.outer(classes, classes)).sum() / len(classes))


def merges(store: Path, classes: np.ndarray, scale: float | None) -> list[dict[str, object]]:
    """Return the same-class rate of every teacher and of every merge, and how far each merge is from the teachers."""
    operators = operators_of(store, gauge_of(len(classes), scale))
    rows: list[dict[str, object]] = [
        {"operator": name, "same class": same_class(one, classes)} for name, one in operators.items()
    ]
    for merge in MERGES:
        options = {"weights": dict.fromkeys(operators, 1 / len(operators))} if merge == "weighted" else {}
        merged = ra.DiffusionMerging(merge, **options).merge(operators)  # type: ignore[arg-type]
        far = np.mean([ra.spread({"teacher": one, "merged": merged}).value for one in operators.values()])
        known = same_class(merged, classes)
        rows.append({"operator": f"P*, {merge}", "same class": known, "from teachers": float(far)})
    return rows
