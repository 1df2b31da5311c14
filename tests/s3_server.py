"""A real S3 server (moto) behind a proxy that injects faults: slow answers, 500, resets, altered bytes and ETags."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

BUCKET = "sounds"


# The server asks who somebody is and believes them.
_WHO = "Credential=someone/20260101/us-east-1/s3/aws4_request"
_SIGNED = {"Authorization": f"AWS4-HMAC-SHA256 {_WHO}, SignedHeaders=host, Signature=0"}


@dataclass
class S3:
    """A server with an empty bucket.

    Attributes:
        endpoint: Its address, through the proxy.
        fault: Told the number, method and path of each request; names what is to go wrong with it, or None.
        asked: Method, path and range of each request so far.
    """

    endpoint: str
    direct: str
    fault: Callable[[int, str, str], str | None] = lambda number, method, path: None
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}"

    def put(self, name: str, content: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream", **_SIGNED}
        request = urllib.request.Request(f"{self.direct}/{BUCKET}/{name}", content, headers, method="PUT")
        urllib.request.urlopen(request).close()

    def get(self, name: str) -> bytes:
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.direct}/{BUCKET}/{name}", headers=_SIGNED)
        ) as answer:
            return answer.read()

    def names(self) -> list[str]:
        request = urllib.request.Request(f"{self.direct}/{BUCKET}?list-type=2", headers=_SIGNED)
        with urllib.request.urlopen(request) as answer:
            return [part.split("</Key>")[0] for part in answer.read().decode().split("<Key>")[1:]]

    def upload(self, folder: Path, name: str) -> str:
        """Copies a folder to the bucket; gives its address."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return self.url(name)

    def ranges(self) -> list[tuple[str, str, str]]:
        """The requests for parts of shards."""
        return [each for each in self.asked if each[2] and "/shards/" in each[1]]


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[S3]:
    """An S3 server whose credentials, and a cache, are in the environment; skips where a package is missing."""
    pytest.importorskip("obstore", reason="stores elsewhere need the extra remote")
    server = pytest.importorskip("moto.server", reason="a real S3 server is needed: pip install 'moto[s3]' flask-cors")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with _proxy(host, port) as state:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_SKIP_SIGNATURE"):
            monkeypatch.delenv(name, raising=False)
        given = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        for name, value in {**given, "AWS_ENDPOINT_URL": state.endpoint, "TYMBAL_CACHE": str(cache)}.items():
            monkeypatch.setenv(name, value)
        request = urllib.request.Request(f"{state.direct}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request).close()
        try:
            yield state
        finally:
            urllib.request.urlopen(urllib.request.Request(f"{state.direct}/moto-api/reset", method="POST")).close()
            moto.stop()


@contextmanager
def _proxy(host: str, port: int) -> Iterator[S3]:
    class Handler(_Handler):
        upstream = (host, port)
        lock = threading.Lock()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.state = S3(f"http://127.0.0.1:{server.server_port}", f"http://{host}:{port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Handler.state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: S3
    upstream: tuple[str, int]
    lock: threading.Lock
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        with self.lock:
            number = len(self.state.asked)
            self.state.asked.append((self.command, path, self.headers.get("Range", "")))
        fault = self.state.fault(number, self.command, path)
        if fault == "500":
            self._send(500, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        if fault == "403":
            self._send(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            return
        status, headers, answer = self._forwarded(body)
        if fault == "slow":
            time.sleep(0.5)
        if fault == "etag":
            headers["ETag"] = '"00000000000000000000000000000000"'
        if fault == "altered" and answer:
            answer = bytes([answer[0] ^ 1]) + answer[1:]
        if fault == "reset":
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self._send(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def _forwarded(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(*self.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection",)}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length")
        }
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length", "0")
        upstream.close()
        return answer.status, kept, content

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError):
            self.close_connection = True
