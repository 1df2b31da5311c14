"""The server of the page of `tymbal label`, for one person on this machine.

It is the standard library's: ten addresses need no framework and no extra to install, and it starts at once. It answers
its own page alone (`tymbal.pages.serving`), fetches nothing, and takes no more than it has room for.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tymbal.errors import SettingsError, TymbalError
from tymbal.labelling.page import LabelPage
from tymbal.pages.serving import LOOPBACK, is_foreign

__all__ = ["serving"]

_MOST_BYTES = 1_000_000  # of a request that is no sound
_BLOCK = 1 << 20
_DRAINED = 64 * _BLOCK  # of a request that is not taken


class _Reply(NamedTuple):
    """What the server answers.

    Attributes:
        content: The content.
        kind: Its media type.
        status: The status of HTTP.
        kept: Whether a browser may keep it.
    """

    content: bytes
    kind: str = "application/json"
    status: int = 200
    kept: bool = False


@contextlib.contextmanager
def serving(page: LabelPage, *, host: str, port: int) -> Iterator[None]:
    """Serves a page within it.

    Args:
        page: What is served.
        host: Address.
        port: Port.

    Raises:
        SettingsError: The address cannot be had.
    """
    names = {f"{'[::1]' if name == '::1' else name}:{port}" for name in (*LOOPBACK, host)} if host in LOOPBACK else None
    try:
        server = _Server((host, port), partial(_Handler, page, names))
    except OSError:
        raise SettingsError(
            f"the page cannot be served at {host}:{port}: the port was taken meanwhile",
            advice="Run the same command again, or choose another --port.",
        ) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """A thread a connection. Browsers hold connections; at the end they are ended, each behind its last answer."""

    daemon_threads = False

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begins a connection."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Ends the server, and waits for what it is answering."""
        for request in tuple(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RD)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser.

    Args:
        page: What is asked.
        names: Hosts that the page has; None is any.
        *args: Those of the base.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm: ClassVar[bool] = True
    wbufsize = _BLOCK
    timeout = 60  # of a connection without requests

    def __init__(self, page: LabelPage, names: set[str] | None, *args: Any) -> None:
        self._page, self._names = page, names
        self._left: int | None = None
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answers what is looked at."""
        page, self._left = self._page, None
        found: dict[str, Callable[[Mapping[str, str]], _Reply]] = {
            "/": lambda _: _Reply(page.page().encode(), "text/html; charset=utf-8"),
            "/label.css": lambda _: _Reply(page.style().encode(), "text/css; charset=utf-8"),
            "/label.js": lambda _: _Reply(page.script().encode(), "text/javascript; charset=utf-8"),
            "/state": lambda _: _json(page.state()),
            "/knowledge": lambda _: _json(page.knowledge()),
            "/picture": lambda query: _Reply(page.picture(_row(query)), "image/png", kept=True),
            "/sound": lambda query: _Reply(page.sound(_row(query)), "audio/flac", kept=True),
            "/large": lambda query: _Reply(page.large(_row(query)).encode(), "text/html; charset=utf-8"),
            "/box": lambda query: _json(page.box(_row(query), query.get("label", ""))),
        }
        self._answer(found, lambda answer, query: answer(query))

    do_HEAD = do_GET  # noqa: N815 - the base's name

    def do_POST(self) -> None:
        """Takes what is said."""
        page, length = self._page, self.headers.get("Content-Length", "")
        self._left = int(length) if length.isdecimal() else None
        found: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]] | None] = {
            "/clips": page.clips,
            "/steps": page.steps,
            "/label": page.add_label,
            "/example": None,
        }

        def take(answer: Callable[[Mapping[str, Any]], dict[str, Any]] | None, query: Mapping[str, str]) -> _Reply:
            length = self._length(page.most if answer is None else _MOST_BYTES)
            if answer is None:
                return _json(self._dropped(length, query.get("name", "sound")))
            return _json(answer(self._body(length)))

        self._answer(found, take)

    def _answer(self, found: Mapping[str, Any], how: Callable[[Any, Mapping[str, str]], _Reply]) -> None:
        """Finds who answers, and writes what they say."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if self._names is not None and headers.get("host", "") not in self._names:
            reply = _refusal("This page has another address.", 400)
        elif is_foreign(self.command, headers):
            reply = _refusal("This page answers no other site.", 403)
        elif address.path not in found:
            reply = _refusal("There is nothing here.", 404)
        else:
            try:
                reply = how(found[address.path], query)
            except _RefusedError as refused:
                reply = _refusal(str(refused), refused.status)
            except TymbalError as error:
                reply = _refusal(error.what + (f" {error.advice}" if error.advice else ""), 422)
        self._write(reply)

    def _write(self, reply: _Reply) -> None:
        if reply.status >= 400:
            self.close_connection = True  # what was sent and not read must not be taken for the next request
            self._drain()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.content)))
        self.send_header("Cache-Control", "private, max-age=3600" if reply.kept else "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(reply.content)
                self.wfile.flush()

    def _length(self, most: int) -> int:
        """The length of the body.

        Raises:
            _RefusedError: It is not told, or is more than `most`.
        """
        if self._left is None:
            raise _RefusedError("The request does not say how long it is.", 411)
        if self._left > most:
            raise _RefusedError(f"This is more than {most / 1e6:,.3g} MB.", 413)
        return self._left

    def _read(self, length: int) -> bytes:
        """Reads a part of the body."""
        block = self.rfile.read(length)
        self._left = (self._left or 0) - len(block)
        return block

    def _drain(self) -> None:
        """Reads what is not taken, up to a bound: else the refusal would be lost with what is on its way."""
        drained = 0
        while self._left and drained < _DRAINED and (block := self._read(min(self._left, _BLOCK))):
            drained += len(block)

    def _body(self, length: int) -> Mapping[str, Any]:
        try:
            told = json.loads(self._read(length))
        except ValueError:
            raise _RefusedError("The request is no JSON.", 400) from None
        if not isinstance(told, dict):
            raise _RefusedError("The request is no JSON object.", 400)
        return told

    def _dropped(self, length: int, name: str) -> dict[str, Any]:
        """Reads a dropped sound, of which nothing is left afterwards."""
        ending = Path(name).suffix if Path(name).suffix.isascii() else ""
        path = self._page.folder / f"dropped-{threading.get_ident()}{ending[:10]}"
        try:
            with path.open("wb") as file:
                while length and (block := self._read(min(length, _BLOCK))):
                    file.write(block)
                    length -= len(block)
            if length:
                raise _RefusedError("The sound did not come to its end.", 400)
            return self._page.example(path, Path(name).name)
        finally:
            path.unlink(missing_ok=True)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Says nothing: the page says what matters."""


_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
_POLICY += "media-src 'self' blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"


class _RefusedError(Exception):
    """A request that is not taken."""

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


def _row(query: Mapping[str, str]) -> int:
    row = query.get("row", "")
    if not row.isdecimal() or len(row) > 15:
        raise _RefusedError("The request names no window.", 400)
    return int(row)


def _json(values: Mapping[str, Any]) -> _Reply:
    return _Reply(json.dumps(values).encode())


def _refusal(why: str, status: int) -> _Reply:
    return _Reply(why.encode(), "text/plain; charset=utf-8", status)
