"""What every page that is served on this machine needs: an address, a folder for what is dropped, and to know its own.

A page in another tab can send requests to a server on this machine, too, and browsers say from where they come. Such a
server answers its own page only, and keeps nothing of what is dropped when it ends; what a killed one left is deleted
by the next.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tymbal.errors import SettingsError, TymbalError
from tymbal.files import locked
from tymbal.progress import tell

__all__ = ["LOOPBACK", "address", "free_port", "is_foreign", "own_folder"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that are reached from this machine alone."""

_FIRST_PORT, _PORTS = 7860, 100
_YOUNG = 60.0
"""Seconds in which another server may have made its folder and not locked it yet."""


def free_port(host: str, port: int | None) -> int:
    """The port, or the first free one from 7860 on, so that the address is known before anything is loaded.

    Raises:
        SettingsError: It is taken, or the address is not this machine's.
    """
    wanted = range(_FIRST_PORT, _FIRST_PORT + _PORTS) if port is None else (port,)
    for number in wanted:
        with contextlib.suppress(OSError):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.create_server((host, number), family=family):
                return number
    raise SettingsError(
        f"the page cannot be served at {host if port is None else address(host, port)}: the port is taken, or the "
        "address is not this machine's",
        advice="Choose another --port or --host.",
    )


def address(host: str, port: int) -> str:
    """The address of a page."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request was made by the page of another site.

    Browsers name the page that a request comes from (`Origin`, `Sec-Fetch-Site`); programs name none and are answered.
    Following a link to the page is not a request of another page.

    Args:
        method: Such as GET.
        headers: By name in lower case.
    """
    origin = headers.get("origin")
    if origin is not None:
        hosts = {headers.get("host", ""), headers.get("x-forwarded-host", "")}
        return urlsplit(origin).netloc not in hosts - {""}
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    return not (method == "GET" and headers.get("sec-fetch-mode") == "navigate")


@contextlib.contextmanager
def own_folder(verb: str) -> Iterator[Path]:
    """A folder for what is dropped, deleted at the end; what killed servers of the same verb left is deleted now."""
    prefix = f"tymbal-{verb}-"
    _remove_left_overs(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, _held(Path(folder)):
        yield Path(folder)


def _remove_left_overs(prefix: str) -> None:
    """Deletes folders of servers that do not run any more; those of others are not ours to delete."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(TymbalError, OSError):
            if not (folder / "lock").exists() and time.time() - folder.stat().st_mtime < _YOUNG:
                continue
            with _held(folder):
                pass
            shutil.rmtree(folder)
            tell(f"Deleted {folder}, which a page that was killed had left")


def _held(folder: Path) -> contextlib.AbstractContextManager[None]:
    return locked(folder, SettingsError("another page uses this folder", path=folder))
