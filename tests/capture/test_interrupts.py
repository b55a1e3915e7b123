"""Interrupts at any moment of an audit: the model ends as it began, and no later audit hangs."""

import gc
import os
import queue
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.interrupts import Shield

PROBE = ra.ProbeSet.from_tensors({"src": torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))})


class EndedError(Exception):
    """What a handler of SIGTERM raises, as those of job schedulers do."""


def terminate(_number, _frame):
    raise EndedError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm = nn.BatchNorm1d(4)
        self.norm.eval()  # frozen

    def forward(self, src):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.norm(self.encoder(src).float())


def state(model):
    modules = list(model.modules())
    return (
        [module.training for module in modules],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        [float(value.double().sum()) for value in model.state_dict().values()],
        signal.getsignal(signal.SIGINT),
    )


class Sender(threading.Thread):
    """Interrupts the main thread after given times."""

    def __init__(self):
        super().__init__(daemon=True)
        self.jobs, self.given, self.done = queue.SimpleQueue(), 0, 0
        self.start()

    def run(self):
        while True:
            for delay, number in self.jobs.get():
                time.sleep(delay)
                signal.pthread_kill(threading.main_thread().ident, number)
            self.done += 1

    def is_done(self):
        while self.done < self.given:
            time.sleep(0.0002)
        return True


def interrupted(action, *signals):
    """Run an action under two signals at most, (seconds after the one before, number); return whether one ended it."""

    def run():
        sender.given += 1
        sender.jobs.put(signals)
        action()

    try:  # a signal may fall between any lines of this test, too
        ended = is_ended(run)
        is_ended(sender.is_done)
    except (KeyboardInterrupt, EndedError):
        ended = True
    while True:
        try:
            sender.is_done()
            return ended
        except (KeyboardInterrupt, EndedError):
            continue


def is_ended(action):
    try:
        action()
    except (KeyboardInterrupt, EndedError):
        return True
    return False


sender = Sender()


@pytest.fixture(autouse=True)
def ctrl_c():
    """Have Ctrl-C raise also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _no_callback_of_the_collector():
    """Put aside what Hypothesis has called by the garbage collector, where an interrupt that falls into it is lost."""
    kept, gc.callbacks[:] = list(gc.callbacks), []
    yield
    gc.callbacks[:] = kept


@pytest.fixture
def raising_sigterm():
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("count", [120, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["Ctrl-C", "two signals"])
def test_interrupts_at_random_moments(tmp_path, count, kind, raising_sigterm):
    torch.manual_seed(0)
    model, chance = Model().train(), random.Random(1)
    model.norm.eval()
    recorder = ra.Recorder(tmp_path / "s.zarr", "seed0", PROBE, ["encoder.layers[*]", "norm"], durable=False)
    recorder.audit(model, 0)
    began = time.perf_counter()
    for step in range(1, 6):
        recorder.audit(model, step)
    one_audit = (time.perf_counter() - began) / 5
    before, changed, ended, longest = state(model), [], 0, 0.0
    for step in range(6, 6 + count):
        times = 1 if kind == "Ctrl-C" else 2
        kinds = [signal.SIGINT] if times == 1 else [signal.SIGINT, signal.SIGTERM]
        signals = [(chance.uniform(0, one_audit / times), chance.choice(kinds)) for _ in range(times)]
        began = time.perf_counter()
        ended += interrupted(lambda step=step: recorder.audit(model, step), *signals)
        longest = max(longest, time.perf_counter() - began)
        if state(model) != before:
            changed.append(step)
            torch.set_grad_enabled(True)
            torch.backends.mha.set_fastpath_enabled(True)
    assert changed == []
    assert ended > count / 40  # enough hit the audit itself
    assert longest < 30
    recorder.audit(model, 6 + count)
    recorder.close()
    assert recorder.failures == []
    assert recorder.steps[-1] == 6 + count
    assert ra.open_store(tmp_path / "s.zarr")["models/seed0"].step.values.tolist() == recorder.steps
    assert ra.verify(tmp_path / "s.zarr", data=True) == []


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_interrupts_while_a_record_opens_and_closes(tmp_path, count):
    model, chance = nn.Sequential(nn.Linear(3, 2)), random.Random(1)
    probe_set = ra.ProbeSet.from_tensors({"input": torch.eye(3)})
    recorder = ra.Recorder(tmp_path / "s.zarr", "seed0", probe_set, ["[0]"], durable=False)

    def whole():
        recorder.audit(model, len(recorder.steps))
        recorder.close()

    began = time.perf_counter()
    whole()
    whole()
    one = (time.perf_counter() - began) / 2
    ended = sum(interrupted(whole, (chance.uniform(0, one), signal.SIGINT)) for _ in range(count))
    assert ended > count / 8
    recorder.close()
    with ra.Recorder(tmp_path / "s.zarr", "seed0", probe_set, ["[0]"], durable=False) as other:
        assert other.audit(model, 10**6)
    assert ra.verify(tmp_path / "s.zarr", data=True) == []


def test_a_full_queue_is_left_at_once(tmp_path, monkeypatch):
    from repaudit.store.write.commit import ModelRecord

    append = ModelRecord.append
    free = threading.Event()
    monkeypatch.setattr(ModelRecord, "append", lambda *arguments: free.wait(30) and append(*arguments))
    model, probe_set = nn.Sequential(nn.Linear(3, 2)), ra.ProbeSet.from_tensors({"input": torch.eye(3)})
    recorder = ra.Recorder(tmp_path / "s.zarr", "seed0", probe_set, ["[0]"], durable=False)

    def fill():
        for step in range(10):
            recorder.audit(model, step)

    began = time.perf_counter()
    assert interrupted(fill, (0.5, signal.SIGINT))
    assert interrupted(recorder.flush, (0.2, signal.SIGINT))
    assert interrupted(recorder.close, (0.2, signal.SIGINT))
    assert time.perf_counter() - began < 5
    free.set()
    recorder.close()
    assert ra.open_store(tmp_path / "s.zarr")["models/seed0"].step.values.tolist() == [0, 1, 2]


def test_a_forward_is_left_at_once(tmp_path):
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 2)

        def forward(self, x):
            for _ in range(1000):
                time.sleep(0.02)
            return self.first(x)

    model = Slow().train()
    probe_set = ra.ProbeSet.from_tensors({"x": torch.eye(3)})
    began = time.perf_counter()
    extractor = ra.ActivationExtractor(["first"])
    assert interrupted(lambda: extractor.extract(model, probe_set), (0.2, signal.SIGINT))
    assert time.perf_counter() - began < 2
    assert model.training
    assert torch.is_grad_enabled()


def shielded(done):
    with Shield():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        done.append("shielded")


def test_what_arrives_in_a_shield_is_delivered_after_it(raising_sigterm):
    done = []
    with pytest.raises((KeyboardInterrupt, EndedError)) as caught:
        shielded(done)
    assert done == ["shielded"]
    assert isinstance(caught.value.__context__, KeyboardInterrupt | EndedError)  # both were
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is terminate


def nested(done):
    with Shield() as outer:
        with outer.lifted(), Shield():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("never")


def interrupted_twice(done):
    with Shield() as outer:
        try:
            with outer.lifted():
                signal.raise_signal(signal.SIGINT)
                done.append("never")
        finally:
            signal.raise_signal(signal.SIGINT)  # the second is delayed
            done.append("restored")


@pytest.mark.parametrize(("block", "expected"), [(nested, "inner"), (interrupted_twice, "restored")])
def test_shields_are_nested_and_lifted(block, expected):
    done = []
    with pytest.raises(KeyboardInterrupt):
        block(done)
    assert done == [expected]


def test_a_handler_that_only_notes_does_not_end_the_forward():
    seen, done = [], []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with Shield() as shield, shield.lifted():
            for _ in range(2):
                signal.raise_signal(signal.SIGUSR1)
                done.append(len(seen))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done == [1, 2]


def test_another_thread_needs_no_shield():
    done = []

    def work():
        with Shield() as shield, shield.lifted():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
