"""Sound inside the page: short FLAC pieces, as many as there is room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tymbal.audio.decode import info, read
from tymbal.errors import TymbalError

__all__ = ["Sounds"]

_HIGHEST = 48_000
_ULTRASONIC = 96_000
_SLOWER = 10
_ROOM = 1_200_000


class Sounds:
    """Gives sound for the page, and remembers what it could not give.

    Loudness is evened out. Recordings above 96 kHz hold what nobody hears: they are played ten times slower, as is the
    custom with bats.

    Args:
        most: How many pieces at most.
        seconds: How long a piece may be.
        beside: Where files are looked for that are not where they were.
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
        """The name of a new player and its HTML, for a part of a recording; empty where it cannot be had."""
        return self.named(file, start, end)[1]

    def named(self, file: str, start: float = 0.0, end: float | None = None) -> tuple[str, str]:
        """The name of a new player and its HTML; both empty where there is no room or no file."""
        if self._left <= 0 or self._room <= 0:
            return "", ""
        try:
            content = self._piece(self.found(file), start, end)
        except TymbalError as error:
            self._missing.append(f"{error.path or file}: {error.what}")
            return "", ""
        self._left -= 1
        self._given += 1
        self._room -= len(content)
        name = f"sound-{next(self._numbers)}"
        code = base64.b64encode(content).decode("ascii")
        return name, f'<audio id="{name}" controls preload="metadata" src="data:audio/flac;base64,{code}"></audio>'

    def remark(self) -> str:
        """What the listener should know; empty where there is nothing."""
        remarks = ["Loudness of the sounds is evened out."] if self._given else []
        if self._slower:
            remarks.append(f"Ultrasound is played {_SLOWER} times slower.")
        if self._missing:
            remarks.append(f"{len(self._missing)} sounds could not be had; the first: {self._missing[0]}.")
        return " ".join(remarks)

    def found(self, file: str) -> Path:
        """Where a file is, as far as that is known."""
        path = Path(file)
        places = [path, self._beside / path, self._beside.parent / path, self._beside / path.name]
        return next((place for place in places if place.is_file()), path)

    def _piece(self, path: Path, start: float, end: float | None) -> bytes:
        import soundfile

        native = info(path).sample_rate
        slower = _SLOWER if native > _ULTRASONIC else 1
        stop = start + self._seconds / slower
        rate = native if slower > 1 else min(native, _HIGHEST)
        wave, rate = read(path, sample_rate=rate, start=start, end=stop if end is None else min(end, stop))
        self._slower |= slower > 1
        wave = wave - wave.mean()
        wave *= 0.7 / max(float(np.abs(wave).max()), 1e-6)
        file = io.BytesIO()
        soundfile.write(file, wave, rate // slower, format="FLAC", subtype="PCM_16")
        return file.getvalue()
