"""Sounds inside the page: FLAC files in audio players, and the pieces of recordings that a page has room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tymbal.audio.decode import info, read
from tymbal.errors import TymbalError

__all__ = ["Sounds", "flac", "heard", "player"]

_HIGHEST_RATE = 48_000
_ULTRASONIC = 96_000
_SLOWER = 10
_LOUDEST = 0.7
_ROOM = 1_200_000


def flac(waveform: NDArray[np.floating], rate: int) -> bytes:
    """A waveform [samples] in [-1, 1] as a FLAC file of 16 bits."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def player(content: bytes, *, name: str = "") -> str:
    """A FLAC file as HTML with its controls; `name` is its id on the page."""
    code = base64.b64encode(content).decode("ascii")
    known = f' id="{name}"' if name else ""
    return f'<audio{known} controls preload="metadata" src="data:audio/flac;base64,{code}"></audio>'


def heard(path: Path, start: float, end: float | None, *, seconds: float) -> tuple[bytes, bool]:
    """A part of a recording as a person is to hear it: at one loudness, and ultrasound ten times slower.

    Args:
        path: The recording.
        start: Where the part begins, in seconds.
        end: Where it ends; None is the end of the recording.
        seconds: How long it may be played, at most.

    Returns:
        A FLAC file, and whether it is played slower.

    Raises:
        AudioError: It cannot be read.
    """
    header = info(path)
    native = header.sample_rate
    slower = _SLOWER if native > _ULTRASONIC else 1
    stop = start + seconds / slower
    rate = native if slower > 1 else min(native, _HIGHEST_RATE)
    wave, rate = read(path, sample_rate=rate, start=start, end=min(header.duration if end is None else end, stop))
    wave = wave - wave.mean()
    wave *= _LOUDEST / max(float(np.abs(wave).max()), 1e-6)
    return flac(wave, rate // slower), slower > 1


class Sounds:
    """Players for pieces of recordings, as many as the page has room for. Remembers which could not be read.

    Loudness is evened out. Recordings above 96 kHz hold ultrasound: they are played ten times slower, as is the custom
    with bats.

    Args:
        most: How many pieces at most.
        seconds: How long a piece may be.
        beside: Folder in which to look for files that have moved.
        numbers: Numbers that no player has yet.
        room: Bytes of all pieces together, about.
    """

    def __init__(self, *, most: int, seconds: float, beside: Path, numbers: Iterator[int], room: int = _ROOM) -> None:
        self._left = most
        self._seconds = seconds
        self._beside = beside
        self._room = room
        self._numbers = numbers
        self._given = 0
        self._slower = False
        self._missing: list[str] = []

    def of(self, file: str, start: float = 0.0, end: float | None = None) -> str:
        """The HTML of a new player for a part of a recording; empty if the page is full or the file is missing."""
        return self.named(file, start, end)[1]

    def named(self, file: str, start: float = 0.0, end: float | None = None) -> tuple[str, str]:
        """The name of a new player and its HTML; both empty if the page is full or the file is missing."""
        if self._left <= 0 or self._room <= 0:
            return "", ""
        try:
            content, slower = heard(self.locate(file), start, end, seconds=self._seconds)
        except TymbalError as error:
            self._missing.append(f"{error.path or file}: {error.what}")
            return "", ""
        self._left -= 1
        self._given += 1
        self._slower |= slower
        self._room -= len(content)
        name = f"sound-{next(self._numbers)}"
        return name, player(content, name=name)

    def remark(self) -> str:
        """Remarks for the listener; empty without any."""
        remarks = ["Loudness of the sounds is evened out."] if self._given else []
        if self._slower:
            remarks.append(f"Ultrasound is played {_SLOWER} times slower.")
        if self._missing:
            remarks.append(f"{len(self._missing)} sounds could not be had; the first: {self._missing[0]}.")
        return " ".join(remarks)

    def locate(self, file: str) -> Path:
        """Locates a file: at its path, or beside the page's source; else returns its old path."""
        path = Path(file)
        places = [path, self._beside / path, self._beside.parent / path, self._beside / path.name]
        return next((place for place in places if place.is_file()), path)
