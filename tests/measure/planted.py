"""Replicas whose convergence is known because it was built in: shared signal, rotations, sharpening."""

from __future__ import annotations

import numpy as np

from repaudit import DiffusionGauge

SAMPLES, FEATURES, CLUSTERS = 160, 24, 8


def signal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    centres = rng.standard_normal((CLUSTERS, FEATURES))
    return centres[rng.permutation(np.arange(SAMPLES) % CLUSTERS)], rng.standard_normal((SAMPLES, FEATURES))


def sharpen(parts: tuple[np.ndarray, np.ndarray], sharpness: float) -> np.ndarray:
    clusters, noise = parts
    return sharpness * clusters + noise


def run(kind: str, seed: int, models: int = 3, steps: int = 8) -> list[dict[str, np.ndarray]]:
    """Operators of every step by model: replicas that "converge", "diverge" or are "unrelated"."""
    rng = np.random.default_rng(seed)
    common = signal(rng)
    own = [signal(rng) for _ in range(models)]
    progress = np.linspace(0, 1, steps)
    shares = {"converge": 0.3 + 0.69 * progress, "diverge": 0.99 - 0.39 * progress, "unrelated": 0 * progress}[kind]
    gauge = DiffusionGauge(knn=15)
    operators = []
    for shared, sharpness in zip(shares, 0.3 + 1.2 * progress, strict=True):
        at_step = {}
        for k in range(models):
            mixed = np.sqrt(shared) * sharpen(common, sharpness) + np.sqrt(1 - shared) * sharpen(own[k], sharpness)
            rotation = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0]
            at_step[f"seed{k}"] = gauge(mixed @ rotation).to_numpy()
        operators.append(at_step)
    return operators
