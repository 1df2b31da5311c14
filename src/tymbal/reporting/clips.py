"""Clips of a store on the page: a spectrogram, what is known of it, and its sound where that can be had."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from tymbal.audio.decode import info, read
from tymbal.errors import TymbalError
from tymbal.pages.page import words
from tymbal.pages.pictures import limits, spectrogram
from tymbal.store.base import SpectrogramSource

__all__ = ["Clips", "Sounds", "clip_name"]


def clip_name(file: str, start: float) -> str:
    """A clip in words: its file, the last folder with it, and from when on."""
    last = "/".join(PurePath(file.replace("\\", "/")).parts[-2:])
    return f"{last}, from {start:.1f} s" if start else last


class Clips:
    """Draws clips of a store, all with one scale of brightness.

    Args:
        store: The store.
        sounds: Gives their sound.
    """

    def __init__(self, store: SpectrogramSource, sounds: Sounds) -> None:
        self.store = store
        self.sounds = sounds
        self._between: tuple[float, float] | None = None

    def labels(self, row: int) -> list[str]:
        """Its labels; none where it has none."""
        found: list[str] = self.store.index["labels"][row].as_py() or []
        return found

    def name(self, row: int) -> str:
        """Its file, the last folders with it, and from when on."""
        index = self.store.index
        return clip_name(index["file"][row].as_py() or "", index["start"][row].as_py() or 0.0)

    def sound(self, row: int) -> tuple[str, str]:
        """The name of its player and the player, both empty where there is none."""
        index = self.store.index
        file = index["file"][row].as_py()
        if not file:
            return "", ""
        return self.sounds.named(file, index["start"][row].as_py() or 0.0, index["end"][row].as_py())

    def picture(self, row: int, *, alt: str) -> str:
        """Its spectrogram, without the padding."""
        values = self.store.gather(np.array([row]))[0]
        return spectrogram(values[: max(int(self.store.real_frames[row]), 1)], alt=alt, between=self.between)

    def card(self, row: int, *, title: str, text: str = "", sound: bool = True) -> str:
        """Its spectrogram, title and text, with its sound if that is wanted."""
        player = self.sound(row)[1] if sound else ""
        picture = self.picture(row, alt=f"Spectrogram of {title}: {self.name(row)}")
        below = "".join(f"<div>{words(line)}</div>" for line in text.splitlines())
        caption = f'<strong>{words(title)}</strong>{below}<span class="path">{words(self.name(row))}</span>'
        return f'<figure class="card">{picture}{player}<figcaption>{caption}</figcaption></figure>'

    @property
    def between(self) -> tuple[float, float]:
        """Values of the darkest and the brightest colour, of some clips of the whole store."""
        if self._between is None:
            rows = np.unique(np.linspace(0, len(self.store) - 1, 32).astype(np.int64))
            values: list[NDArray[np.float32]] = [
                clip[: max(int(real), 1)].astype(np.float32).ravel()
                for clip, real in zip(self.store.gather(rows), self.store.real_frames[rows], strict=True)
            ]
            self._between = limits(np.concatenate(values))
        return self._between


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
