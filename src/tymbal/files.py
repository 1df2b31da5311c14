"""Files appear whole or not at all: written aside, synced to the disk, renamed into place.

A process that is killed in the middle leaves the old file, or none, and a `*.partial` beside it that the next writer
replaces. The rename is atomic because the partial file lies in the folder of the final one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tymbal.errors import TymbalError

__all__ = ["PARTIAL", "locked", "replace_file", "replace_folder", "sync_folder", "write_json", "write_text"]

PARTIAL = ".partial"

_MANY = 1000
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to; on success the file written becomes `path`, on error nothing changes."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(final.name + PARTIAL)
    try:
        yield aside
        _sync_file(aside)
        aside.replace(final)
        sync_folder(final.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it becomes `path` and replaces the old one as a whole.

    A folder cannot be renamed over another one that has content: the old one is moved aside first. So `path` is absent
    for an instant, but never a mixture.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(final.name + PARTIAL)
    old = final.with_name(f"{final.name}.old{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _sync_tree(aside)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        aside.rename(final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replace_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON, whole or not at all. Non-finite numbers are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Makes renames inside a folder durable (a no-op on Windows, where folders cannot be opened)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    inside = list(folder.rglob("*"))
    if len(inside) > _MANY and hasattr(os, "sync"):
        os.sync()  # one by one, a hundred thousand files take minutes
        return
    for path in inside:
        if path.is_file():
            _sync_file(path)
        else:
            sync_folder(path)
    sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(folder: Path, busy: TymbalError, *, part: str | None = None) -> Iterator[None]:
    """Holds a lock file in a folder; the system releases it when the process ends, however it ends.

    Args:
        folder: The folder; created if missing.
        busy: The error to raise if another process holds the lock.
        part: The part of the work to lock, where processes do several parts at once; None locks the whole folder.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    name = "lock" if part is None else f"lock-{part.replace('/', '-')}"
    # A soft lock would outlive a process that is killed.
    lock = FileLock(folder / name, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise busy from None
    except OSError as error:
        # Some cluster file systems have no locks: then two at once are the user's to avoid.
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
