"""Copying many rows with more than one core.

One core does not exhaust the memory's bandwidth: two copy a batch nearly twice as fast. Copies and reads let go of the
interpreter's lock, so threads do. They are started by the first large batch, one set for all stores of a process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from tymbal.machine import cores

__all__ = ["in_parts"]

_MOST = 4
"""Threads, this one included, that share a batch: memory is exhausted by few."""

_WORTH = 1 << 20
"""Bytes from which on a thread is worth waking."""

_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def in_parts(work: Callable[[int, int], None], count: int, size: int) -> None:
    """Calls `work(start, stop)` for parts of `range(count)`, side by side where that pays.

    Args:
        work: What to do with the items from `start` to `stop`; it must let go of the interpreter's lock to gain.
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
