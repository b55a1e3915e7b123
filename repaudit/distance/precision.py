"""The precision of products of matrices: a setting of the whole process, held at float32 while any thread needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, current_thread, main_thread
from typing import Any, Final

import torch

_OF_CPU: Final[Any] = getattr(torch.backends.mkldnn, "matmul", None)
"""The setting of the CPU alone; None before torch 2.9."""


class Precision:
    """Holds products at float32, and gives the caller's setting back once nobody needs it.

    The main thread, in which a training waits meanwhile, sets it for all devices. Other threads set it for the CPU
    alone: a training that goes on beside them, on a GPU, keeps its own.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._whole, self._cpu = 0, 0
        self._before, self._before_of_cpu = "highest", ""

    @contextmanager
    def of_all(self) -> Iterator[None]:
        """Hold it for all devices."""
        with self._lock:
            if not self._whole:
                self._before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self._whole += 1
        try:
            yield
        finally:
            with self._lock:
                self._whole -= 1
                if not self._whole:
                    torch.set_float32_matmul_precision(self._before)
                    if self._cpu:
                        self._hold_cpu()

    @contextmanager
    def of_cpu(self) -> Iterator[None]:
        """Hold it for the CPU."""
        with self._lock:
            if not self._cpu and not self._whole:
                self._hold_cpu()
            self._cpu += 1
        try:
            yield
        finally:
            with self._lock:
                self._cpu -= 1
                if not self._cpu and not self._whole:
                    _OF_CPU.fp32_precision = self._before_of_cpu

    def _hold_cpu(self) -> None:
        self._before_of_cpu = _OF_CPU.fp32_precision
        _OF_CPU.fp32_precision = "ieee"


_PRECISION: Final = Precision()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep float32 products at float32: no TF32, no bfloat16, no autocast, whatever the caller's settings."""
    beside = device.type == "cpu" and _OF_CPU is not None and current_thread() is not main_thread()
    held = _PRECISION.of_cpu() if beside else _PRECISION.of_all()
    with held, torch.autocast(device.type, enabled=False):
        yield
