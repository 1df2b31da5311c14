"""One tree of errors. Every message says what is wrong, in which file, and what to do.

The command line prints a `TymbalError` as it is, without a traceback, and ends with exit status 2: it is a user's
mistake or a fact about the user's data. Anything else that escapes is a defect of Tymbal and keeps its traceback.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "AudioError",
    "CheckpointError",
    "DeviceError",
    "ManifestError",
    "ModelError",
    "SettingsError",
    "StoreError",
    "TrainingError",
    "TymbalError",
]


class TymbalError(Exception):
    """Base of all errors that Tymbal raises on purpose.

    Args:
        what: What is wrong, in one sentence without a full stop.
        path: The file or folder that it is about.
        advice: What the user can do about it.
    """

    def __init__(self, what: str, *, path: str | os.PathLike[str] | None = None, advice: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.path = None if path is None else os.fspath(path)
        self.advice = advice

    def __str__(self) -> str:
        text = self.what if self.path is None else f"{self.path}: {self.what}"
        return text if self.advice is None else f"{text}\n  {self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments are lost by the default, and these errors travel between processes.
        return (_rebuild, (type(self), self.what, self.path, self.advice))


def _rebuild(kind: type[TymbalError], what: str, path: str | None, advice: str | None) -> TymbalError:
    return kind(what, path=path, advice=advice)


class SettingsError(TymbalError):
    """A setting is unknown, of the wrong type, out of range or at odds with another."""


class AudioError(TymbalError):
    """A sound file cannot be used: unreadable, truncated, empty, too short, silent or not finite."""


class ManifestError(TymbalError):
    """A list of files is unreadable, lacks a column or contradicts itself."""


class StoreError(TymbalError):
    """A store of spectrograms is incomplete, damaged or made with other settings."""


class ModelError(TymbalError):
    """A model folder or checkpoint cannot be read, is not safe to load or does not fit."""


class CheckpointError(TymbalError):
    """A training checkpoint is incomplete or belongs to another run."""


class TrainingError(TymbalError):
    """Training cannot go on: the loss is not finite, or there are no clips to learn from."""


class DeviceError(TymbalError):
    """The requested device or precision is not available."""
