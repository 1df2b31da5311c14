"""Clips of a store on the page: a spectrogram, what is known of it, and its sound where that can be had."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from tymbal.pages.page import card
from tymbal.pages.pictures import limits, spectrogram
from tymbal.pages.players import Sounds
from tymbal.store.base import SpectrogramSource

__all__ = ["Clips", "clip_name"]


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
        labels: list[str] = self.store.index["labels"][row].as_py() or []
        return labels

    def name(self, row: int) -> str:
        """Its file, the last folders with it, and from when on."""
        index = self.store.index
        return clip_name(index["file"][row].as_py() or "", index["start"][row].as_py() or 0.0)

    def sound(self, row: int) -> tuple[str, str]:
        """The name of its player and the player, both empty where its sound cannot be read."""
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
        """Its spectrogram, title and text, with its sound unless `sound` is false."""
        player = self.sound(row)[1] if sound else ""
        picture = self.picture(row, alt=f"Spectrogram of {title}: {self.name(row)}")
        return card(picture, player, title, text=text, path=self.name(row))

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
