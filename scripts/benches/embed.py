"""Pictures: of one operator, of many operators, and of units over steps, beside phate and m-phate from the same input.

``stress`` is Kruskal's stress-1 of each layout against our potential distances, or those of the operators: of one input
the same for both. phate lays out by stochastic descent unless it is told otherwise, so both of its solvers are there.
m-phate is measured where it is installed (GPL-3: no dependency of this project). Frames are those of one layer, as an
analysis draws them, of 500 samples chosen evenly, beside SMACOF (scikit-learn's) of the same distances and starts.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform
from sketch import trajectories
from sklearn.manifold import smacof

import repaudit as ra
from repaudit.analysis.embeddings import MOST_MOVING
from repaudit.embed.mds import classical_mds, kruskal_stress, scaled_stress
from repaudit.embed.phate import phate_embedding, phate_frames, phate_trajectories, unit_trajectories
from repaudit.embed.potential import diffusion_time, potential_distances

Layout = Callable[[], Any]


def of_one_operator(samples: int) -> tuple[np.ndarray, Mapping[str, Layout]]:
    """PHATE of one operator; phate is given the operator's symmetric kernel."""
    import phate

    points = np.random.default_rng(0).normal(size=(samples, 8)).astype(np.float32)
    operator = ra.DiffusionGauge(knn=15)(points)
    matrix = operator.to_numpy().astype(np.float64)
    kernel = matrix * operator.degrees.numpy().astype(np.float64)[:, None]
    kernel = (kernel + kernel.T) / 2
    kernel /= kernel.max()  # phate drops what is below 1e-4
    time_ = diffusion_time(operator, "auto")

    def peer(solver: str) -> Layout:
        made = {"knn_dist": "precomputed_affinity", "mds_solver": solver, "t": time_, "n_landmark": None}
        return lambda: phate.PHATE(**made, n_jobs=1, random_state=0, verbose=0).fit_transform(kernel.copy())

    ours = {"repaudit": lambda: phate_embedding(operator, t=time_).values}
    return potential_distances(matrix, time_), {
        **ours,
        "phate, smacof": peer("smacof"),
        "phate, sgd": peer("sgd"),
    }


def of_many_operators(count: int) -> tuple[np.ndarray, Mapping[str, Layout]]:
    """PHATE of operators by their distances."""
    import phate

    distances = ra.operator_distances(trajectories(count, 64), "calibrated")

    def peer(solver: str) -> Layout:
        made = {"knn": 5, "knn_dist": "precomputed_distance", "mds_solver": solver, "n_landmark": None}
        return lambda: phate.PHATE(**made, n_jobs=1, random_state=0, verbose=0).fit_transform(distances.copy())

    return distances, {
        "repaudit": lambda: phate_trajectories(distances).values,
        "phate, smacof": peer("smacof"),
        "phate, sgd": peer("sgd"),
    }


def of_units(units: int, steps: int = 30) -> tuple[np.ndarray, Mapping[str, Layout]]:
    """M-PHATE of units over steps; the stress is against the distances of their standardised activations."""
    rng = np.random.default_rng(0)
    drift = np.cumsum(0.2 * rng.normal(size=(steps, 128, units)), axis=0)
    activations = (drift + rng.normal(size=(1, 128, units))).astype(np.float32)
    given = np.transpose(activations, (0, 2, 1))
    flat = given.reshape(steps * units, -1).astype(np.float64)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    found: dict[str, Layout] = {"repaudit": lambda: unit_trajectories(activations).values.reshape(steps * units, -1)}
    if find_spec("m_phate"):
        made = import_module("m_phate").M_PHATE
        found["m-phate"] = lambda: made(n_jobs=1, random_state=0, verbose=0).fit_transform(given)
    return squareform(pdist(flat)), found


def frames(samples: int, count: int = 12) -> list[str]:
    """Lay out a layer's frames; give a line each for ours and for SMACOF, with CPU seconds and mean stress."""
    rng, gauge = np.random.default_rng(0), ra.DiffusionGauge()
    start, end = rng.normal(size=(2, samples, 8))
    clouds = [start + step / (count - 1) * (end - start) for step in range(count)]
    operators = [gauge(cloud.astype(np.float32)) for cloud in clouds]
    shown = np.linspace(0, samples - 1, min(samples, MOST_MOVING)).round().astype(int).tolist()
    phate_frames(operators[:1], samples=shown)  # which imports
    begun = time.process_time()
    ours = phate_frames(operators, samples=shown)
    spent, stresses = time.process_time() - begun, ours.attrs["stress"]
    distances = [potential_distances(operator.to_numpy(), ours.attrs["t"], shown) for operator in operators]
    begun, stresses_of_smacof, layout = time.process_time(), [], classical_mds(distances[0], 2)
    for one in distances:
        layout, _ = smacof(one, init=layout, n_init=1, max_iter=3000, eps=1e-6, normalized_stress=False)
        stresses_of_smacof.append(kruskal_stress(one, squareform(pdist(layout))))
    by_smacof = time.process_time() - begun
    what = f"{count} frames of {samples} samples, {len(shown)} shown"
    return [
        f"| {what} | {name} | {seconds:.2f} s | {seconds / spent:.1f} | {np.mean(stress):.3f} |"
        for name, seconds, stress in (("repaudit", spent, stresses), ("SMACOF alone", by_smacof, stresses_of_smacof))
    ]


def row(what: str, distances: np.ndarray, layouts: Mapping[str, Layout], rounds: int) -> list[str]:
    """Time all layouts in turn, some rounds long; give a line for each."""
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    stress: dict[str, float] = {}
    for _ in range(rounds):
        for name, layout in layouts.items():
            start = time.perf_counter()
            points = np.asarray(layout())
            seconds[name].append(time.perf_counter() - start)
            stress[name] = scaled_stress(distances, points)
    ours = statistics.median(seconds["repaudit"])
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    return [
        f"| {what} | {name} | {median:.2f} s | {median / ours:.1f} | {stress[name]:.2f} |"
        for name, median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="embed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is timed, in turn")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--operators", type=int, default=500)
    parser.add_argument("--units", type=int, default=32)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()  # phate says between the rows of the table what it thinks of its layout
    print("| what | by | median | over repaudit | stress |\n|---|---|---|---|---|")
    for what, (distances, layouts) in {
        f"one operator, {options.samples} samples": of_one_operator(options.samples),
        f"{options.operators} operators": of_many_operators(options.operators),
        f"{options.units} units x 30 steps": of_units(options.units),
    }.items():
        print("\n".join(row(what, distances, layouts, options.rounds)), flush=True)
    print("\n".join(frames(options.samples)))


if __name__ == "__main__":
    main()
