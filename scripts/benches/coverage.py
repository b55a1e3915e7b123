"""How often intervals hold and verdicts are right, on planted curves: not a timing, but measured like one.

``scripts/bench coverage --models 3 --steps 5 --curves 1000`` prints the share of curves without a change that are said
to change, the share of planted convergences that are found, and the share of 95% intervals that hold the mean of the
spreads at their step over all curves, which is what a spread estimates.
"""

from __future__ import annotations

import argparse

import joblib
import numpy as np
import torch

import repaudit as ra
from repaudit.measure.band import band
from repaudit.measure.phases import verdict
from repaudit.measure.spread import Spread, spread

SAMPLES, FEATURES = 128, 8


def curve(seed: int, models: int, steps: int, converging: bool) -> list[Spread]:
    """Return the spreads of models that share a cloud: a model's own part stays, or fades; that of a step is new."""
    rng = np.random.default_rng(seed)
    base, own = rng.normal(size=(SAMPLES, FEATURES)), rng.normal(size=(models, SAMPLES, FEATURES))
    gauge, found = ra.DiffusionGauge(), []
    for step in range(steps):
        share = 1.2 - 0.9 * step / max(1, steps - 1) if converging else 0.6
        clouds = [base + share * own[k] + 0.3 * rng.normal(size=base.shape) for k in range(models)]
        found.append(spread([gauge(cloud) for cloud in clouds]))
    return found


def curves(count: int, models: int, steps: int, converging: bool, jobs: int) -> list[list[Spread]]:
    """Return the curves of as many seeds, made in processes of one thread each."""

    def one(seed: int) -> list[Spread]:
        torch.set_num_threads(1)
        return curve(seed, models, steps, converging)

    return joblib.Parallel(n_jobs=jobs)(joblib.delayed(one)(seed) for seed in range(count))


def judged(spreads: list[Spread]) -> str:
    """Return the verdict on a curve, as an analysis gives it."""
    left_out = np.array([one.left_out for one in spreads])
    margins = band(np.array([one.halves for one in spreads]), left_out if left_out.shape[1] > 2 else None)
    value, low, high = ([getattr(one, name) for one in spreads] for name in ("value", "low", "high"))
    return verdict(range(len(spreads)), value, low, high, margins.change)


def held(found: list[list[Spread]]) -> float:
    """Return the share of intervals that hold the mean of all curves at their step."""
    values, low, high = (
        np.array([[getattr(one, name) for one in spreads] for spreads in found]) for name in ("value", "low", "high")
    )
    mean = values.mean(0)
    return float(((low <= mean) & (mean <= high)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("models", 3), ("steps", 5), ("curves", 100), ("jobs", joblib.cpu_count())):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    null, planted = (
        curves(options.curves, options.models, options.steps, converging, options.jobs) for converging in (False, True)
    )
    changed = np.mean([judged(one) in ("converging", "diverging") for one in null])
    found = np.mean([judged(one) == "converging" for one in planted])
    print(f"{options.models} models, {options.steps} steps, {options.curves} curves of {SAMPLES} samples each:")
    print(f"  said to change, of curves that do not: {changed:.3f}")
    print(f"  found, of planted convergences: {found:.3f}")
    print(f"  intervals that hold: {held(null):.3f} where nothing changes, {held(planted):.3f} on the way together")


if __name__ == "__main__":
    main()
