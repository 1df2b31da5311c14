from __future__ import annotations

import gc

import numpy as np
import torch

from tymbal.store.buffers import BufferPool


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_pool__uses_memory_again_when_it_is_free() -> None:
    pool = BufferPool()
    first = pool.empty((4, 8), np.float16)
    there = address(first)
    del first
    assert address(pool.empty((4, 8), np.float16)) == there


def test_pool__keeps_memory_that_a_tensor_or_view_still_shows() -> None:
    pool = BufferPool()
    array = pool.empty((4, 1000), np.float16)
    array[:] = 1
    tensor = torch.from_numpy(array)[2:]
    del array
    gc.collect()
    other = pool.empty((4, 1000), np.float16)
    other[:] = 2
    assert tensor.eq(1).all()
    there = tensor.data_ptr() - 4000
    del tensor
    gc.collect()
    assert address(pool.empty((4, 1000), np.float16)) == there


def test_pool__is_not_wasteful() -> None:
    pool = BufferPool(blocks=2)
    arrays = [pool.empty((1_000_000,), np.uint8) for _ in range(5)]
    del arrays
    assert len(pool._free) == 2
    small = pool.empty((10,), np.uint8)
    assert small.base is not None
    assert len(pool._free) == 1


def test_pool__result_can_be_written() -> None:
    array = BufferPool().empty((2, 3), np.float32)
    array[:] = 5
    assert array.shape == (2, 3)
    assert array.sum() == 30
