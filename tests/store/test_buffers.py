from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tymbal.store.parallel_copy import BufferPool


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
