"""One tree of errors. Every message says what is wrong, in which file, and what to do.

The command line prints a `TymbalError` as it is, without a traceback, and ends with exit status 2: it is a user's
mistake or a fact about the user's data. So is what the system refuses (`system_error`): a full disk, missing rights.
Anything else that escapes is a defect of Tymbal and keeps its traceback.
"""

from __future__ import annotations

import errno
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
    "system_error",
    "what_to_do",
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


def system_error(error: OSError | MemoryError) -> TymbalError:
    """What the system refused, for a person: the file, the reason and what can be done.

    Args:
        error: What Python raised: a full disk, missing rights, an impossible path, too little memory.
    """
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return TymbalError(f"there is not enough memory{detail}", advice=_FOR_MEMORY)
    reason = error.strerror or str(error) or type(error).__name__
    place = next((each for each in (error.filename2, error.filename) if isinstance(each, str)), None)
    if place is not None and len(place) > _LONGEST_PATH:
        place = f"{place[:_LONGEST_PATH]}…"
    return TymbalError(f"{reason[:1].lower()}{reason[1:]}", path=place, advice=what_to_do(error))


def what_to_do(error: OSError) -> str:
    """What a person can do about what the system refused."""
    return _FOR_ERRNO.get(error.errno or 0, "Look at the path, its permissions and the disk. Then run it again.")


_LONGEST_PATH = 300
_FOR_MEMORY = "Use a smaller batch, model or window, or a machine with more memory. The same command continues."
_FULL = "Make room, or choose another folder for the output. Then run the same command again: it continues."
_RIGHTS = "Give yourself the rights to it, or choose another place."
_FOR_ERRNO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "It cannot be written to: choose another place.",
    errno.ENAMETOOLONG: "Give a shorter path.",
    errno.ELOOP: "A link leads back to itself: correct or remove it.",
    errno.ENOTDIR: "A part of the path is a file, not a folder: choose another path.",
    errno.EEXIST: "It is a file, where a folder is needed: choose another path.",
    errno.EISDIR: "It is a folder, where a file is needed: choose another path.",
    errno.ENOENT: "Correct the path.",
    errno.EIO: "The disk or the network drive gave an error: look after it, then run the same command again.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n), or use fewer workers.",
}
"""What to do, by what the system said."""


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
