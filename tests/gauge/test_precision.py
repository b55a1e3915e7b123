"""The precision of products is the process's own setting: other threads keep what they have set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import repaudit as ra
from repaudit.distance.precision import Precision, full_precision


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


CPU = torch.device("cpu")


def on_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def settings() -> tuple[str, str, bool]:
    """That of all devices, of the CPU, and of GPUs."""
    of_cpu = torch.backends.mkldnn.matmul.fp32_precision
    return torch.get_float32_matmul_precision(), of_cpu, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("setting", ["high", "medium", "highest"])
@pytest.mark.parametrize("kinds", ["ac", "ca", "cc", "aa"])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_whoever_leaves_last_gives_the_setting_back(setting: str, kinds: str, crossed: bool, failing: bool) -> None:
    """Of two that overlap, of all devices or of the CPU, nested or crossed, also after an error."""
    torch.set_float32_matmul_precision(setting)
    before, held = settings(), Precision()
    one, other = (held.of_all() if kind == "a" else held.of_cpu() for kind in kinds)
    one.__enter__()
    other.__enter__()
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    first, last = (one, other) if crossed else (other, one)
    error = RuntimeError("broken") if failing else None
    for each in (first, last):
        if each is last:
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        if error is None:
            assert not each.__exit__(None, None, None)
        else:
            assert not each.__exit__(RuntimeError, error, None)
    assert settings() == before


def test_a_thread_leaves_the_setting_of_gpus_alone() -> None:
    """A training on a GPU goes on in TF32 while operators are computed beside it, on the CPU."""
    torch.set_float32_matmul_precision("high")

    def seen() -> tuple[str, str, bool]:
        with full_precision(CPU):
            return settings()

    assert on_a_thread(seen) == ("high", "ieee", True)
    assert seen()[0] == "highest"
    assert settings() == ("high", "tf32", True)


@pytest.mark.parametrize("run", [on_a_thread, lambda function: function()])
def test_products_are_of_full_precision_whatever_is_set(run: Callable[[Any], Any]) -> None:
    torch.set_float32_matmul_precision("medium")
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 300))).float()

    def product() -> torch.Tensor:
        with full_precision(CPU):
            return values @ values

    error = float((run(product) - values.double() @ values.double()).abs().max())
    assert error < 5e-5
    assert torch.get_float32_matmul_precision() == "medium"


def test_operators_on_several_threads_leave_it_too() -> None:
    torch.set_float32_matmul_precision("medium")
    before = settings()
    gauge, clouds = ra.DiffusionGauge(perplexity=5), np.random.default_rng(0).standard_normal((12, 60, 4))
    threads = [threading.Thread(target=gauge, args=(cloud.astype(np.float32),)) for cloud in clouds]
    for thread in threads:
        thread.start()
    for cloud in clouds:
        gauge(cloud.astype(np.float32))
    for thread in threads:
        thread.join()
    assert settings() == before
