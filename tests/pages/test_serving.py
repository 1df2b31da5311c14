"""Addresses, folders and foreign pages of what is served on this machine."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from tymbal.errors import SettingsError
from tymbal.pages.serving import address, free_port, is_foreign, own_folder


def test_own_folder__deletes_what_killed_servers_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, young, other = (tmp_path / name for name in ("tymbal-explore-a", "tymbal-explore-b", "else"))
    for folder in (left, young, other):
        folder.mkdir()
        (folder / "sound.wav").write_bytes(b"RIFF")
    os.utime(left, (time.time() - 3600,) * 2)
    with own_folder("explore") as first:
        assert not left.exists()
        assert young.exists()
        assert other.exists()
        with own_folder("explore"):
            assert first.exists()  # it is in use
    assert sorted(path.name for path in tmp_path.iterdir()) == ["else", "tymbal-explore-b"]


def test_free_port__takes_the_next_one_and_refuses_a_taken_one() -> None:
    first = free_port("127.0.0.1", None)
    with socket.create_server(("127.0.0.1", first)):
        assert first < free_port("127.0.0.1", None) < first + 100
        with pytest.raises(SettingsError, match=f"cannot be served at http://127.0.0.1:{first}: the port is taken"):
            free_port("127.0.0.1", first)


def test_address__brackets_version_6() -> None:
    assert address("::1", 80) == "http://[::1]:80"


@pytest.mark.parametrize(
    ("method", "headers", "foreign"),
    [
        ("POST", {"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1"}, False),
        ("POST", {"host": "127.0.0.1:1", "origin": "http://127.0.0.1:2"}, True),
        ("POST", {"host": "127.0.0.1:1", "origin": "null"}, True),
        ("POST", {"host": "127.0.0.1:1"}, False),  # a program
        ("POST", {"host": "127.0.0.1:1", "sec-fetch-site": "cross-site"}, True),
        ("GET", {"host": "127.0.0.1:1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, True),
        ("GET", {"host": "127.0.0.1:1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),
    ],
)
def test_is_foreign__by_what_browsers_say(method: str, headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(method, headers) == foreign
