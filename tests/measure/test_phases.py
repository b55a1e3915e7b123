"""Phases and verdicts of spread curves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repaudit.errors import AnalysisError
from repaudit.measure.phases import phases, verdict


def read(
    value: list[float], half: float = 0.05, steps: list[int] | None = None
) -> tuple[list[tuple[int, int, str]], str]:
    v = np.array(value)
    steps = list(range(len(v))) if steps is None else steps
    found = [(p.start, p.end, p.direction) for p in phases(steps, v, v - half, v + half)]
    return found, verdict(steps, v, v - half, v + half)


def test_real_replicas_first_part_then_converge() -> None:
    found, word = read([0.17, 0.4, 0.69, 0.5, 0.3, 0.14], steps=[0, 10, 40, 100, 300, 600])
    assert found == [(0, 40, "rises"), (40, 600, "falls")]
    assert word == "converging"


def test_the_last_significant_phase_names_the_verdict() -> None:
    assert read([0.8, 0.5, 0.2])[1] == "converging"
    assert read([0.2, 0.5, 0.8])[1] == "diverging"
    assert read([0.8, 0.3, 0.7])[1] == "diverging"
    assert read([0.8, 0.3, 0.31, 0.3, 0.32])[1] == "converging"


def test_a_peak_with_a_wide_interval_does_not_hide_a_fall() -> None:
    value, half = [0.35, 0.34, 0.43, 0.24, 0.17, 0.17], [0.03, 0.03, 0.25, 0.2, 0.04, 0.04]
    low, high = ([v + sign * h for v, h in zip(value, half, strict=True)] for sign in (-1, 1))
    found = phases([0, 10, 40, 100, 300, 600], value, low, high)
    assert [phase.direction for phase in found if phase.direction != "flat"] == ["falls"]
    assert verdict([0, 10, 40, 100, 300, 600], value, low, high) == "converging"


def test_the_end_at_the_null_is_unrelated() -> None:
    assert read([0.99, 1.0, 0.98])[1] == "unrelated"
    assert read([0.2, 0.6, 0.92])[1] == "unrelated"
    assert read([0.2, 0.6, 0.89])[1] == "diverging"


def test_nothing_significant_is_unchanged_and_one_flat_phase() -> None:
    assert read([0.3, 0.32, 0.29, 0.31]) == ([(0, 3, "flat")], "unchanged")
    assert read([0.3, 0.305, 0.3], half=0) == ([(0, 2, "flat")], "unchanged")


def test_too_little_to_tell_is_undecided() -> None:
    assert verdict([0], [0.5], [0.4], [0.6]) == "undecided"
    assert verdict([], [], [], []) == "undecided"
    assert verdict([0, 1], [0.5, 0.2], [np.nan] * 2, [np.nan] * 2) == "undecided"
    assert verdict([0, 1], [0.5, 0.5], [0.0, 0.0], [1.1, 1.1]) == "undecided"
    assert verdict([0, 1], [0.1, 0.99], [0.05, 0.71], [0.15, 1.27]) == "unrelated"
    assert phases([], [], [], []) == []


def test_flat_stretches_around_a_fall_are_cut_off() -> None:
    found, word = read([0.9] * 6 + [0.7, 0.5, 0.3] + [0.2] * 6, half=0.01, steps=list(range(0, 150, 10)))
    assert found == [(0, 50, "flat"), (50, 90, "falls"), (90, 140, "flat")]
    assert word == "converging"


def test_steps_without_a_value_are_passed_over() -> None:
    value = np.array([0.9, np.nan, 0.2])
    assert [(p.start, p.end, p.direction) for p in phases([0, 5, 9], value, value - 0.1, value + 0.1)] == [
        (0, 9, "falls")
    ]


def test_noise_about_a_level_has_phases_in_one_curve_of_twenty() -> None:
    rng = np.random.default_rng(0)
    words = [read(rng.normal(0.5, 0.05, 40).tolist(), half=0.05 * 1.96)[1] for _ in range(400)]
    assert np.mean([word != "unchanged" for word in words]) < 0.07


@example([0.5, 0.0, 1.0, 0.5], 0.5)  # a rise between two ends at one height
@given(st.lists(st.floats(0, 1.2), min_size=1, max_size=25), st.floats(0, 0.5))
def test_phases_tile_the_steps(value: list[float], half: float) -> None:
    found = phases(range(len(value)), value, np.array(value) - half, np.array(value) + half)
    assert found[0].start == 0
    assert found[-1].end == len(value) - 1
    assert all(a.end == b.start for a, b in pairwise(found))
    for phase in found:
        if phase.direction != "flat":
            assert phase.start < phase.end


def test_misfitting_input_is_refused() -> None:
    with pytest.raises(AnalysisError, match="shapes"):
        phases([0, 1], [0.1], [0.1], [0.1])
    with pytest.raises(AnalysisError, match="increasing"):
        phases([1, 1], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2])
    with pytest.raises(AnalysisError, match="at step 7"):
        phases([0, 7], [0.1, 0.2], [0.0, 0.3], [0.2, 0.4])
