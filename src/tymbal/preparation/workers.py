"""Processes that work on a list of tasks, and what happens when one of them, or their parent, dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for
from types import TracebackType
from typing import Any, Self, TypeVar

from tymbal.machine import cores, tune_malloc
from tymbal.stopping import shielded, survive_in_worker

__all__ = ["Crew"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 3


class Crew:
    """Runs tasks in an executor that was given, in a pool of processes of its own, or in this process.

    Args:
        executor: A given executor, or None.
        workers: Processes of an own pool; None is one a core, 1 is this process.
    """

    def __init__(self, executor: Executor | None, workers: int | None) -> None:
        self._executor = executor
        self._workers = workers or cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task], *, parallel: bool) -> Iterator[Result]:
        """Yields results as they are ready, in any order.

        Args:
            function: What to run for each task; a function of a module, so that it can travel.
            tasks: The tasks.
            parallel: Whether a pool of processes is worth its start. A given executor is used in any case.

        Raises:
            BrokenProcessPool: A process died.
        """
        if self._executor is not None:
            # How many machines are behind it nobody knows here: it gets all there is.
            yield from _completed(self._executor, function, tasks, ahead=None)
        elif parallel and self._workers > 1:
            yield from _completed(self._own_pool(), function, tasks, ahead=_AHEAD * self._workers)
        else:
            yield from map(function, tasks)

    def _own_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            if os.name == "posix":
                # Python starts this helper with its first worker; a signal that all processes of a job get kills it.
                with shielded():
                    resource_tracker.ensure_running()
            # Spawned, never forked: a fork inherits locks of threads that it does not have.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start_worker)
        return self._pool


def _completed(
    executor: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], *, ahead: int | None
) -> Iterator[Result]:
    pending: set[Future[Any]] = set()
    try:
        for task in tasks:
            pending.add(executor.submit(function, task))
            if ahead is not None and len(pending) >= ahead:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        for future in pending:
            future.cancel()


def _start_worker() -> None:
    # Ctrl-C reaches every process of a terminal; the parent decides, and waits for what is being written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    survive_in_worker()
    tune_malloc()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    """A pool's process whose parent was killed would wait for work forever: it holds both ends of its own pipe."""
    wait_for([sentinel])
    os._exit(1)
