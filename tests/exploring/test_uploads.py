"""What the explorer takes in, by requests as a server hands them to the guard."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tymbal.exploring.uploads import Guard


class Keeping:
    """An application that writes what it is sent into a file, and deletes it when the sender goes away."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "sound"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self.file.open("wb") as file:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.file.unlink()
                    return
                file.write(message["body"])
                more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def status(folder: Path, chunks: Sequence[bytes], headers: dict[str, str]) -> int:
    """The status of a request with this body, where 10 bytes may be sent at once and 25 be kept."""
    left = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    left[-1]["more_body"] = False
    sent: list[Any] = []

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "headers": named}
    asyncio.run(Guard(Keeping(folder), folder=folder, most=10, most_together=25)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("told", [True, False])
def test_guard__bounds_an_upload_and_the_sum(tmp_path: Path, told: bool) -> None:
    def sends(size: int) -> int:
        chunks = [b"x" * (size // 2), b"x" * (size - size // 2)]
        return status(tmp_path, chunks, {"content-length": str(size)} if told else {})

    assert sends(10) == 200
    assert (tmp_path / "sound").read_bytes() == b"x" * 10
    (tmp_path / "sound").unlink()
    assert sends(11) == 413
    (tmp_path / "first").write_bytes(b"x" * 20)
    assert sends(5) == 200
    (tmp_path / "sound").unlink()
    assert sends(6) == 413
    assert not (tmp_path / "sound").exists()
