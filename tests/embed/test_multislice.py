"""The multislice operator against its definition, entry by entry."""

from __future__ import annotations

import numpy as np

from repaudit.embed.multislice import multislice_operator, standardised_units


def test_the_operator_is_its_definition() -> None:
    units, constant = standardised_units(np.random.default_rng(0).standard_normal((4, 9, 3)))
    assert constant == 0
    np.testing.assert_allclose(units.std(2), 1)
    within = [[[np.linalg.norm(step[i] - step[j]) for j in range(3)] for i in range(3)] for step in units]
    across = [[[np.linalg.norm(units[a, i] - units[b, i]) for b in range(4)] for a in range(4)] for i in range(3)]
    scale = np.mean([sorted(row)[2] for unit in across for row in unit])
    kernel = np.zeros((12, 12))
    for a in range(4):
        for i in range(3):
            for j in range(3):
                kernel[3 * a + i, 3 * a + j] = np.exp(-((within[a][i][j] / sorted(within[a][i])[1]) ** 5))
            for b in set(range(4)) - {a}:
                kernel[3 * a + i, 3 * b + i] = np.exp(-((across[i][a][b] / scale) ** 2))
    kernel = (kernel + kernel.T) / 2
    found = multislice_operator(units, knn=1, step_knn=2, decay=5.0)
    np.testing.assert_allclose(found, kernel / kernel.sum(1, keepdims=True), rtol=1e-9, atol=1e-15)
