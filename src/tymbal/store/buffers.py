"""Memory that is used again as soon as nobody looks at it any more.

A batch of spectrograms takes megabytes, and memory fresh from the kernel costs more in page faults than the copy into
it. A pool keeps a few blocks. It lends each one out behind an owner object, which numpy arrays and torch tensors made
of it keep alive; the block returns when the last of them is gone, never before.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]


class BufferPool:
    """Lends arrays of uninitialised memory; safe to use from several threads.

    Args:
        blocks: Blocks that are kept at most when nobody uses them.
    """

    def __init__(self, blocks: int = 4) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=blocks)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Returns an array of this shape, its content undefined."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array: npt.NDArray[Any] = np.asarray(_Loan(self._take(size), self._free))
        return array[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        try:
            block = self._free.popleft()
        except IndexError:
            return np.empty(size, np.uint8)
        # A block of another size is let go: batches are of one size, but for the last of an epoch.
        return block if size <= block.size <= 2 * size + 4096 else np.empty(size, np.uint8)


class _Loan:
    """Owns a block while arrays look at it, and gives it back to the pool afterwards."""

    def __init__(self, block: npt.NDArray[np.uint8], free: deque[npt.NDArray[np.uint8]]) -> None:
        self._block = block
        self._free = free
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._block)
