"""What the explorer takes in: from its own page only, no more than it has room for, and kept while it is looked at."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from tymbal.pages.serving import is_foreign

__all__ = ["Guard", "Uploads"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class Guard:
    """ASGI middleware that answers the page's own requests only, and takes no upload that is too large.

    Args:
        app: What it guards.
        folder: The folder of uploads.
        most: Bytes that one upload may have.
        most_together: Bytes that all uploads may have together.
    """

    def __init__(self, app: _App, *, folder: Path, most: int, most_together: int) -> None:
        self._app = app
        self._folder = folder
        self._most = most
        self._together = most_together

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Handles one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if is_foreign(scope.get("method", "GET"), headers):
            await _refuse(scope, send, 403, "This page answers no other site.")
            return
        if scope["type"] == "websocket" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        room = min(self._most, max(0, self._together - _size(self._folder)))
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > room:
            await _refuse(scope, send, 413, self._too_large(room))
            return
        await self._bounded(scope, receive, send, room)

    async def _bounded(self, scope: _Message, receive: _Receive, send: _Send, room: int) -> None:
        """Answers a request whose body does not say how long it is, or says it wrongly."""
        taken, answered = 0, False

        async def counted() -> _Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # To the application it is as if the sender had gone: it then deletes what it has taken so far.
            return {"type": "http.disconnect"} if taken > room else message

        async def sending(message: _Message) -> None:
            nonlocal answered
            if taken <= room or answered:
                answered = True
                await send(message)

        try:
            await self._app(scope, counted, sending)
        finally:
            if taken > room and not answered:
                await _refuse(scope, send, 413, self._too_large(room))

    def _too_large(self, room: int) -> str:
        what = "one upload" if room == self._most else "all uploads together"
        return f"This is more than the {room / 1e9:.3g} GB that are left for {what}."


async def _refuse(scope: _Message, send: _Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})


def _size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


class Uploads:
    """Tracks which session uses which file. Sessions with the same sound share a file until all release it.

    Args:
        folder: Only files inside it are ever deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._held: dict[str, Path] = {}
        self._lock = threading.Lock()

    def hold(self, session: str, path: Path | None) -> None:
        """Records a session's sound and releases its previous one. None is no sound."""
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
