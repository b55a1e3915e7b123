"""Where work runs: threads or processes on this machine, or the workers of a Dask scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any, Final, TypeVar

import torch
from threadpoolctl import threadpool_limits

from repaudit.analysis.settings import Settings
from repaudit.errors import AnalysisError
from repaudit.extras import require
from repaudit.main_guard import UNGUARDED, refuse_without_guard

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES: Final = 3
"""How often a unit of work whose worker died is given to another one."""
CONNECTING: Final = "20s"
LOOKED_AFTER: Final = 5.0
"""Seconds without a result after which it is asked whether there are workers."""
PATIENCE: Final = 300.0
"""Seconds without a worker after which none is expected: a queue may take a while to start one."""


@dataclass(frozen=True)
class Workplace:
    """Where functions run, and how many at once."""

    executor: Executor
    slots: int
    check: Callable[[], None] = lambda: None
    """Called now and then while nothing comes: raises where nothing will."""

    def run(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Iterate over the items with their results as they come; few results wait, whatever the number of items."""
        left = iter(items)
        waiting: dict[Future[Result], Item] = {}
        try:
            while True:
                for item in islice(left, 2 * self.slots - len(waiting)):
                    waiting[self.executor.submit(function, item)] = item
                if not waiting:
                    return
                done = wait(waiting, timeout=LOOKED_AFTER, return_when=FIRST_COMPLETED).done
                if not done:
                    self.check()
                for future in done:
                    yield waiting.pop(future), _result(future)
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def workplace(settings: Settings, threads: int) -> Iterator[Workplace]:
    """Provide threads of this process, or the scheduler or the worker processes that the settings name.

    Raises
    ------
    AnalysisError
        The scheduler does not answer or has no workers, or workers do not start.
    MissingPartError
        ``distributed`` is not installed.
    """
    if settings.scheduler is None and settings.workers is None:
        with ThreadPoolExecutor(threads) as executor:
            yield Workplace(executor, threads)
        return
    with _client(settings) as client:
        slots = sum(client.nthreads().values())
        if not slots:
            raise AnalysisError(
                f"scheduler: expected workers at {settings.scheduler}, found none; start some with `dask worker`"
            )
        yield Workplace(client.get_executor(pure=False, retries=RETRIES), slots, partial(_expect_workers, client))


@contextmanager
def side_by_side(most: int, *, own: int | None = None) -> Iterator[Workplace]:
    """Provide threads of this process, which share the threads that BLAS and torch may use, or have `own` ones each."""
    own = max(1, torch.get_num_threads() // most) if own is None else own
    of_torch = partial(threadpool_limits, own, "openmp")  # OpenMP counts for each thread, BLAS for the process
    with _BLAS.at_most(own), ThreadPoolExecutor(most, initializer=of_torch) as executor:
        yield Workplace(executor, most)


class _BlasThreads:
    """The threads of BLAS, which belong to the process: who limits them last puts them back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: list[int] = []
        self._before: Any = None

    @contextmanager
    def at_most(self, threads: int) -> Iterator[None]:
        """Let BLAS have no more threads within the block than this, and than whoever else asks for."""
        with self._lock:
            self._asked.append(threads)
            limited = threadpool_limits(min(self._asked), "blas")
            self._before = limited if len(self._asked) == 1 else self._before
        try:
            yield
        finally:
            with self._lock:
                self._asked.remove(threads)
                if self._asked:
                    threadpool_limits(min(self._asked), "blas")
                else:
                    self._before.restore_original_limits()


_BLAS: Final = _BlasThreads()


def _expect_workers(client: Any) -> None:
    """Wait for a worker where none is left, and raise an AnalysisError where none comes: results would not either."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise AnalysisError(
            f"scheduler: expected workers at {client.scheduler.address}, found none for {PATIENCE:.0f} s; what is "
            "computed is kept: start some and repeat the analysis"
        ) from None


@contextmanager
def _client(settings: Settings) -> Iterator[Any]:
    require("computing with workers or a scheduler", "distributed")
    distributed: Any = import_module("distributed")
    if settings.workers is None:
        try:
            client = distributed.Client(settings.scheduler, timeout=CONNECTING, set_as_default=False)
        except (OSError, ValueError) as error:
            raise AnalysisError(f"scheduler: no answer from {settings.scheduler} ({error})") from None
        with client:
            yield client
        return
    refuse_without_guard("an analysis")
    try:
        started = distributed.LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs=50,
        )
    except RuntimeError as error:
        raise AnalysisError(f"workers: they did not start ({error}). {UNGUARDED}") from None
    with started as cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            raise AnalysisError(
                f"the workers died {RETRIES + 1} times on one unit of work, most likely out of memory: {error}"
            ) from None
        raise
