"""Memory that is used again as soon as nobody looks at it any more.

A batch of spectrograms takes megabytes, and memory fresh from the kernel costs more in page faults than the copy into
it. A pool keeps a few blocks and lends out views of them. numpy arrays and torch tensors made of a view all refer to
the block that owns the memory, so its reference count says whether anyone is left.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]


class BufferPool:
    """Lends arrays of uninitialised memory; safe to use from several threads.

    Args:
        blocks: Blocks that are kept at most.
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
