"""Copying many rows with more than one core, into memory that is used again.

One core does not exhaust the memory's bandwidth: two copy a batch nearly twice as fast. Copies and reads let go of the
interpreter's lock, so threads do. They are started by the first large batch, one set for all stores of a process.

A batch of spectrograms takes megabytes, and memory fresh from the kernel costs more in page faults than the copy into
it. A pool keeps a few blocks and lends out views of them. numpy arrays and torch tensors made of a view all refer to
the block that owns the memory, so its reference count says whether anyone is left.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tymbal.machine import cores, memory

__all__ = ["BufferPool", "RowMemory", "copy_in_parallel"]

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


class RowMemory:
    """Rows of a small store that are read again and again, in memory, from where they come three times as fast.

    Reading a row of a second from cached pages costs three times as much as copying it: a call of the system, and
    pages of 4 KiB. A row is kept when it is read for the second time, so that what reads a store once pays nothing.
    Processes that a `DataLoader` starts keep none: each would have its own.

    Args:
        count: Rows of the store.
        shape: Shape of a row.
        dtype: Type of its values.
    """

    def __init__(self, count: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._shape = (count, *shape)
        self._dtype = np.dtype(dtype)
        self._size = math.prod(shape) * self._dtype.itemsize
        self._state = bytearray(count) if 0 < count * self._size <= _budget() else bytearray()
        self._missing = count
        self._lock = threading.Lock()
        self._rows: npt.NDArray[Any] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all rows are kept."""
        return self._rows is not None and self._missing == 0

    def recall(self, places: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> bool:
        """Copies rows to `out` [n, …] if all of them are kept; False where some are not."""
        kept = self._rows
        if kept is None or not (self._missing == 0 or all(self._state[row] == _KEPT for row in places)):
            return False

        def copy(start: int, stop: int) -> None:
            # The mode that neither checks places nor buffers what it copies: whoever asks has checked them.
            np.take(kept, places[start:stop], axis=0, out=out[start:stop], mode="clip")

        copy_in_parallel(copy, len(places), self._size)
        return True

    def keep(self, rows: list[int], values: npt.NDArray[Any]) -> None:
        """Notes that rows were read, and keeps those that were read before."""
        if not self._state:
            return
        with self._lock:
            for row, value in zip(rows, values, strict=True):
                if self._state[row] == _READ:
                    if self._rows is None:
                        self._rows = np.empty(self._shape, self._dtype)  # which takes memory where it is written to
                    self._rows[row] = value
                    self._missing -= 1
                self._state[row] = min(self._state[row] + 1, _KEPT)


_READ, _KEPT = 1, 2
_MOST_KEPT = 1 << 30
_SHARE_KEPT = 16


def _budget() -> int:
    """Bytes of rows that a store may keep in the memory of this process."""
    if multiprocessing.parent_process() is not None:
        return 0
    most = min(_MOST_KEPT, (memory() or 0) // _SHARE_KEPT)
    return most // max(int(os.environ.get("LOCAL_WORLD_SIZE") or 1), 1)


def _fits(block: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike) -> bool:
    """Whether a block is of this kind and not much larger: batches are of one size, but for the last of an epoch."""
    return block.shape[1:] == shape[1:] and block.dtype == dtype and shape[0] <= len(block) <= 2 * shape[0]


def _references(blocks: list[npt.NDArray[Any]], place: int) -> int:
    return sys.getrefcount(blocks[place])


_IDLE = _references([np.empty(0)], 0)
"""References to a block that only its pool knows, as this interpreter counts them."""
