"""Change points of curves whose change points are known."""

from __future__ import annotations

import numpy as np

from repaudit.measure.settling import Settling, below_start, settled, settling_order

STEPS = [0, 1, 10, 100, 1000]


def points(value: list[float], half: float = 0.05) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    v = np.array(value)
    return STEPS, v, v - half, v + half


def test_the_first_step_significantly_below_the_start() -> None:
    assert below_start(*points([0.8, 0.75, 0.5, 0.2, 0.2])) == 10
    assert below_start(*points([0.8, 0.95, 0.9, 0.8, 0.3])) == 1000
    assert below_start(*points([0.2, 0.5, 0.9, 0.9, 0.9])) is None
    assert below_start(*points([0.8, 0.75, 0.5, 0.2, 0.2], half=0.6)) is None


def test_settled_from_the_step_after_the_last_that_differs_from_the_end() -> None:
    assert settled(*points([0.8, 0.7, 0.5, 0.21, 0.2])) == 100
    assert settled(*points([0.2, 0.8, 0.2, 0.2, 0.2])) == 10
    assert settled(*points([0.5, 0.5, 0.5, 0.5, 0.5])) == 0
    assert settled(*points([0.8, 0.7, 0.6, 0.5, 0.2])) is None
    assert settled([], [], [], []) is None


def test_a_step_too_uncertain_to_differ_has_not_settled() -> None:
    v, half = np.array([0.8, 0.75, 0.4, 0.21, 0.2]), np.array([0.05, 0.05, 0.6, 0.05, 0.05])
    assert settled(STEPS, v, v - half, v + half) == 100
    half[-1] = 0.3
    assert settled(STEPS, v, v - half, v + half) is None
    half[-1] = np.nan
    assert settled(STEPS, v, v - half, v + half) is None


def test_layers_in_the_order_in_which_they_settle() -> None:
    curves = {
        "deep": points([0.8, 0.75, 0.6, 0.5, 0.2]),
        "middle": points([0.8, 0.75, 0.5, 0.21, 0.2]),
        "first": points([0.8, 0.21, 0.2, 0.2, 0.2]),
    }
    assert settling_order(curves) == [Settling("first", 1, 1), Settling("middle", 10, 100), Settling("deep", 10, None)]


def test_what_begins_to_move_inside_the_wide_interval_of_the_end_has_not_settled() -> None:
    steps, value, half = [0, 10, 20, 30], np.array([0.3, 0.15, 0.45, 0.3]), 0.2
    margins = np.full((4, 4), 0.25)
    assert settled(steps, value, value - half, value + half, margins) is None
    assert settled(steps, value, value - half, value + half, margins * 2) == 0
    slowly = np.array([0.4, 0.35, 0.2, 0.1])  # all within the interval of the end, but 0 and 30 differ
    assert settled(steps, slowly, slowly - half, slowly + 0.28, margins) is None
    assert below_start(steps, slowly, slowly - half, slowly + half, margins) == 30
    sooner = np.array([0.4, 0.35, 0.1, 0.1])
    assert settled(steps, sooner, sooner - half, sooner + 0.28, margins) == 20
    assert settled(steps, 0.7 - sooner, 0.7 - sooner - 0.28, 0.7 - sooner + half, margins) == 20
    falling = np.array([0.9, 0.3, 0.3, 0.3])
    assert settled(steps, falling, falling - half, falling + half, margins) == 10
