"""Sounds that were dropped on the page: each is deleted when the next one comes, or the session that sent it ends."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

__all__ = ["Uploads"]


class Uploads:
    """Which session holds which file. Two that sent the same sound share a file, which stays until both let it go.

    Args:
        folder: Only files inside it are ever deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._held: dict[str, Path] = {}
        self._lock = threading.Lock()

    def hold(self, session: str, path: Path | None) -> None:
        """Takes note of a session's sound; the one before is let go of. None is no sound."""
        with self._lock:
            before = self._held.pop(session, None)
            if path is not None:
                self._held[session] = path.resolve()
            if before is not None and before not in self._held.values() and before.is_relative_to(self._folder):
                before.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    before.parent.rmdir()

    def holds(self, session: str, path: Path) -> bool:
        """Whether this is still the session's sound."""
        return self._held.get(session) == path.resolve()
