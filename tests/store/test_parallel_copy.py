from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tymbal.store import parallel_copy as hands
from tymbal.store.parallel_copy import BufferPool, RowMemory, copy_in_parallel


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_pool__uses_memory_again_when_it_is_free() -> None:
    pool = BufferPool()
    first = pool.empty((4, 8), np.float16)
    there = address(first)
    del first
    assert address(pool.empty((4, 8), np.float16)) == there


@pytest.mark.parametrize(
    "show", [lambda array: torch.from_numpy(array)[2:], lambda array: array[2:].T.reshape(-1)[::2]]
)
def test_pool__keeps_memory_that_something_still_shows(show: Callable[[np.ndarray], Any]) -> None:
    pool = BufferPool()
    array = pool.empty((1000, 1), np.float16)
    there = address(array)
    array[:] = 1
    shown = show(array)
    del array
    other = pool.empty((1000, 1), np.float16)
    assert address(other) != there
    other[:] = 2
    assert (shown == 1).all()
    del shown, other
    assert address(pool.empty((1000, 1), np.float16)) == there


def test_pool__is_not_wasteful() -> None:
    pool = BufferPool(blocks=2)
    arrays = [pool.empty((1000, 9), np.uint8) for _ in range(5)]
    assert len(pool._blocks) == 2
    assert len({address(array) for array in arrays}) == 5
    del arrays
    assert pool.empty((600, 9), np.uint8).base.shape == (1000, 9)
    assert pool.empty((10, 9), np.uint8).base.shape == (10, 9)
    assert pool.empty((10, 9), np.int8).dtype == np.int8


def test_pool__under_threads_never_lends_twice() -> None:
    pool = BufferPool()

    def fill(number: int) -> bool:
        array = pool.empty((50, 100), np.int64)
        array[:] = number
        time.sleep(0)
        return bool((array == number).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(fill, range(2000)))


MIB = 1 << 20


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "cores", lambda: 4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 64])
def test_in_parts__does_each_item_once(count: int) -> None:
    done: list[int] = []
    copy_in_parallel(lambda start, stop: done.extend(range(start, stop)), count, MIB)
    assert sorted(done) == list(range(count))


def test_in_parts__shares_large_work_and_keeps_small_work_here() -> None:
    names: set[int] = set()
    both = threading.Barrier(2, timeout=10)

    def work(start: int, stop: int) -> None:
        names.add(threading.get_ident())
        both.wait()

    copy_in_parallel(work, 2, MIB)
    assert len(names) == 2
    seen: list[int] = []
    copy_in_parallel(lambda start, stop: seen.append(threading.get_ident()), 100, 100)
    assert seen == [threading.get_ident()]


def test_in_parts__an_error_in_any_part_is_raised() -> None:
    def work(start: int, stop: int) -> None:
        if start > 0:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        copy_in_parallel(work, 4, MIB)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_parts__works_in_a_forked_process() -> None:
    copy_in_parallel(lambda start, stop: None, 4, MIB)
    child = multiprocessing.get_context("fork").Process(
        target=copy_in_parallel, args=(lambda start, stop: None, 4, MIB)
    )
    child.start()
    child.join(20)
    assert child.exitcode == 0


def test_row_memory__keeps_what_is_read_twice() -> None:
    values = np.random.default_rng(0).normal(size=(10, 3, 2)).astype(np.float16)
    memory, out = RowMemory(10, (3, 2), np.float16), np.zeros((2, 3, 2), np.float16)
    memory.keep([1, 4], values[[1, 4]])
    assert not memory.recall(np.array([1, 4]), out)
    memory.keep([4, 5, 4], values[[4, 5, 4]])
    assert not memory.recall(np.array([1, 4]), out)
    assert memory.recall(np.array([4, 4]), out)
    np.testing.assert_array_equal(out, values[[4, 4]])
    for _ in range(2):
        memory.keep(list(range(10)), values)
    every = np.zeros_like(values)
    assert memory.recall(np.arange(10)[::-1], every)
    np.testing.assert_array_equal(every, values[::-1])


def test_row_memory__is_bounded_and_shared_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "memory", lambda: 16 * 400)
    out = np.zeros((1, 10), np.float16)
    for rows, processes, kept in ((20, "1", True), (21, "1", False), (11, "2", False), (10, "2", True)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        memory = RowMemory(rows, (10,), np.float16)
        for _ in range(2):
            memory.keep([3], np.ones((1, 10), np.float16))
        assert memory.recall(np.array([3]), out) is kept
    monkeypatch.setattr("multiprocessing.parent_process", object)
    memory = RowMemory(1, (10,), np.float16)
    memory.keep([0], out)
    memory.keep([0], out)
    assert not memory.recall(np.array([0]), out)
