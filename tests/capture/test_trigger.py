"""Schedules of audits."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repaudit import AuditTrigger


def steps(trigger, stop=1001):
    return [step for step in range(stop) if trigger.due_at(step)]


def test_each_schedule_by_itself():
    assert steps(AuditTrigger(every_n_steps=250)) == [250, 500, 750, 1000]
    assert steps(AuditTrigger(at_start=True)) == [0]
    assert steps(AuditTrigger(at_steps=[7, 0, 3])) == [0, 3, 7]
    assert steps(AuditTrigger(log_spaced=1)) == [1, 10, 100, 1000]
    assert steps(AuditTrigger(log_spaced=2)) == [1, 3, 10, 32, 100, 316, 1000]
    assert steps(AuditTrigger(on_checkpoint=True)) == []


def test_triggers_that_agree_are_all_named():
    trigger = AuditTrigger(every_n_steps=10, at_steps={10}, log_spaced=1, at_start=True)
    assert trigger.due_at(10) == ("every_n_steps", "at_steps", "log_spaced")
    assert trigger.due_at(0) == ("at_start",)


def test_epochs():
    trigger = AuditTrigger(every_n_epochs=2)
    assert [epoch for epoch in range(7) if trigger.due_at_epoch(epoch)] == [2, 4, 6]
    assert AuditTrigger(every_n_steps=1).due_at_epoch(2) == ()


@given(st.integers(1, 7), st.integers(1, 5), st.lists(st.integers(0, 60), max_size=5))
def test_steps_taken_several_at_once_miss_no_schedule(every, stride, wanted):
    trigger = AuditTrigger(every_n_steps=every, at_steps=wanted)
    due_singly = [step for step in steps(trigger, 61) if step > 0]
    for start in range(0, 60, stride):
        inside = any(start < step <= start + stride for step in due_singly)
        assert bool(trigger.due_at(start + stride, start)) == inside or start + stride > 60


@pytest.mark.parametrize(
    "options", [{}, {"every_n_steps": 0}, {"every_n_epochs": -1}, {"at_steps": [-1]}, {"log_spaced": 0}]
)
def test_what_would_never_or_wrongly_trigger_is_refused(options):
    with pytest.raises(ValueError, match=r"expected|never"):
        AuditTrigger(**options)


def test_a_value_without_its_keyword_is_told_the_keyword():
    with pytest.raises(TypeError, match="keywords only: did you mean every_n_steps=50"):
        AuditTrigger(50)
    assert list(inspect.signature(AuditTrigger).parameters)[:2] == ["every_n_steps", "every_n_epochs"]


def test_numbers_are_whole():
    trigger = AuditTrigger(every_n_steps=5.0, at_steps=[np.int64(2), 3.0])
    assert (repr(trigger.every_n_steps), sorted(map(repr, trigger.at_steps))) == ("5", ["2", "3"])
    for options in ({"at_steps": [2.7]}, {"at_steps": "12"}, {"at_steps": [True]}, {"log_spaced": float("nan")}):
        with pytest.raises(ValueError, match="expected a whole number"):
            AuditTrigger(**options)
