"""What a shield does with signals and their handlers, one by one."""

import signal

import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.capture.record.failed_audits import Failures
from repaudit.interrupts import Shield, _Signals, handler_of, set_handler, was_raised_by_handler


class EndedError(Exception):
    """What a handler of SIGTERM raises, as those of job schedulers do."""


def terminate(_number, _frame):
    raise EndedError


@pytest.fixture
def raising_sigterm():
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


def test_an_error_of_a_handler_is_known_after_another_that_was_lost(raising_sigterm):
    with Shield() as shield, pytest.raises(EndedError) as first, shield.lifted():
        signal.raise_signal(signal.SIGTERM)
    with Shield() as shield, pytest.raises(EndedError), shield.lifted():
        signal.raise_signal(signal.SIGTERM)
    assert was_raised_by_handler(first.value)
    assert not was_raised_by_handler(EndedError())


@pytest.mark.parametrize("moment", ["_install", "_remove"])
def test_a_signal_while_a_shield_goes_up_or_down_is_no_failed_audit(moment, monkeypatch):
    def interrupted(signals):
        done(signals)
        monkeypatch.undo()
        if moment == "_install":
            signals._remove()
        terminate(signal.SIGTERM, None)

    done = getattr(_Signals, moment)
    monkeypatch.setattr(_Signals, moment, interrupted)
    with pytest.raises(EndedError):
        Failures("seed0", "warn").attempt(3, list, None)


class Signals(nn.Module):
    """Sends a signal whenever its mode is set, and tells then, and in a forward, how many were handled."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "training" and TOLD is not None:
            signal.raise_signal(signal.SIGUSR1)
            TOLD.append((value, len(HANDLED)))

    def forward(self, x):
        if TOLD is not None:
            TOLD.append(("forward", len(HANDLED)))
        return self.layer(x)


TOLD, HANDLED = None, []


def test_signals_wait_while_a_model_is_prepared_and_restored(monkeypatch):
    model, extractor = Signals(), ra.ActivationExtractor("layer")
    probe_set = ra.ProbeSet.from_tensors({"x": torch.eye(3)})
    extractor.extract(model, probe_set)  # tries it, too
    before = signal.signal(signal.SIGUSR1, lambda number, _: HANDLED.append(number))
    told = []
    try:
        monkeypatch.setitem(globals(), "TOLD", told)
        extractor.extract(model, probe_set)
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGUSR1, before)
    assert told == [(False, 0), ("forward", 1), (True, 1)]  # the second waits until the model is as it was
    assert len(HANDLED) == 2


def test_handlers_are_told_and_set_through_a_shield():
    first, second = (lambda *_: None), (lambda *_: None)
    before = signal.signal(signal.SIGUSR1, first)
    try:
        with Shield():
            assert handler_of(signal.SIGUSR1) is first
            assert signal.getsignal(signal.SIGUSR1) is not first
            set_handler(signal.SIGUSR1, second)
            assert handler_of(signal.SIGUSR1) is second
            assert signal.getsignal(signal.SIGUSR1) is not second  # the shield still stands
        assert signal.getsignal(signal.SIGUSR1) is second
    finally:
        signal.signal(signal.SIGUSR1, before)
