"""One process at a time writes into a folder; the lock ends with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tymbal.errors import TymbalError

__all__ = ["locked"]


@contextlib.contextmanager
def locked(folder: Path, busy: TymbalError, *, part: str | None = None) -> Iterator[None]:
    """Holds the file `lock` in a folder.

    Args:
        folder: The folder; it is made where it is not there.
        busy: What is raised where another process holds the lock.
        part: The part of the work that is done, of which several are done at once, each with a lock of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(
        folder / ("lock" if part is None else f"lock-{part.replace('/', '-')}"), os.O_RDWR | os.O_CREAT, 0o644
    )
    try:
        if not _lock(handle):
            raise busy
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some cluster file systems have no locks: then two at once are the user's to avoid.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True
