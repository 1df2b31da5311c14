"""What the headers of sound files tell: enough to plan with, without decoding them.

The content of a file is checked when it is decoded, once, on its way into the store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from tymbal.audio.decode import info
from tymbal.audio.failures import Failure
from tymbal.errors import AudioError

__all__ = ["Header", "read_headers"]

_ENDS = 1 << 14


@dataclass(frozen=True)
class Header:
    """One file, unopened but for its header.

    Attributes:
        file: Its path.
        seconds: Its length.
        fingerprint: Of its size, first and last 16 KiB: files with the same bytes have the same one.
    """

    file: str
    seconds: float
    fingerprint: str


def read_headers(files: Sequence[str]) -> list[Header | Failure]:
    """Reads headers; what is wrong with a file is returned in its place."""
    return [_read(file) for file in files]


def _read(file: str) -> Header | Failure:
    try:
        return Header(file, info(file).duration, _fingerprint(file))
    except AudioError as error:
        return Failure.of(error, file)
    except OSError as error:
        return Failure(file, f"unreadable: {error.strerror or error}", "Check its permissions and the disk.")


def _fingerprint(file: str) -> str:
    with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 - a million files
        size = os.fstat(opened.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=8)
        digest.update(opened.read(_ENDS))
        if size > _ENDS:
            opened.seek(max(size - _ENDS, _ENDS))
            digest.update(opened.read(_ENDS))
        return digest.hexdigest()
