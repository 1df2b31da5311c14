"""Copying many rows with more than one core, into memory that is used again.

One core does not exhaust the memory's bandwidth: two copy a batch nearly twice as fast. Copies and reads let go of the
interpreter's lock, so threads do. They are started by the first large batch, one set for all stores of a process.

A batch of spectrograms takes megabytes, and memory fresh from the kernel costs more in page faults than the copy into
it. A pool keeps a few blocks and lends out views of them. numpy arrays and torch tensors made of a view all refer to
the block that owns the memory, so its reference count says whether anyone is left.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tymbal.machine import cores

__all__ = ["BufferPool", "copy_in_parallel"]

_MOST = 4
"""Threads, this one included, that share a batch: memory is exhausted by few."""

_WORTH = 1 << 20
"""Bytes from which on a thread is worth waking."""

_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def copy_in_parallel(work: Callable[[int, int], None], count: int, size: int) -> None:
    """Calls `work(start, stop)` for parts of `range(count)`, side by side where that pays.

    Args:
        work: What to do with the items from `start` to `stop`; it gains only if it releases the interpreter's lock.
        count: Number of items.
        size: Bytes of an item.
    """
    parts = min(_MOST, cores(), count, count * size // _WORTH)
    if parts < 2:
        work(0, count)
        return
    pool = _pools.get(os.getpid())
    if pool is None:
        _pools.clear()
        pool = _pools[os.getpid()] = ThreadPoolExecutor(_MOST - 1, thread_name_prefix="tymbal-copy")
    bounds = [count * part // parts for part in range(parts + 1)]
    others = [pool.submit(work, *pair) for pair in pairwise(bounds[1:])]
    try:
        work(bounds[0], bounds[1])
    finally:
        for other in others:
            other.result()


class BufferPool:
    """Lends arrays of uninitialised memory; safe to use from several threads.

    Args:
        blocks: Most blocks to keep.
    """

    def __init__(self, blocks: int = 4) -> None:
        self._most = blocks
        self._blocks: list[npt.NDArray[Any]] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Returns an array of this shape, its content undefined."""
        with self._lock:
            for place in range(len(self._blocks)):
                if _references(self._blocks, place) == _IDLE:
                    block = self._blocks[place]
                    if _fits(block, shape, dtype):
                        return block[: shape[0]]
                    del self._blocks[place]
                    break
            block = np.empty(shape, dtype)
            if len(self._blocks) < self._most:
                self._blocks.append(block)
            return block[:]


def _fits(block: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike) -> bool:
    """Whether a block is of this kind and not much larger: batches are of one size, but for the last of an epoch."""
    return block.shape[1:] == shape[1:] and block.dtype == dtype and shape[0] <= len(block) <= 2 * shape[0]


def _references(blocks: list[npt.NDArray[Any]], place: int) -> int:
    return sys.getrefcount(blocks[place])


_IDLE = _references([np.empty(0)], 0)
"""References to a block that only its pool knows, as this interpreter counts them."""
