"""The recordings that a user means: files, and the sound files in folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tymbal.audio.failures import Failure
from tymbal.audio.manifest import relative_path
from tymbal.audio.sources import sound_files
from tymbal.errors import AudioError

__all__ = ["Recording", "find_recordings"]


@dataclass(frozen=True)
class Recording:
    """A sound file that is meant.

    Attributes:
        path: Where it is, as the user gave it.
        place: Its path from the folder that was given; its name, where the file itself was.
    """

    path: Path
    place: str

    def stamp(self) -> tuple[int, int] | None:
        """Size and time of change, by which it is known again; None where there is no such file."""
        try:
            found = self.path.stat()
        except (OSError, ValueError):
            return None
        return found.st_size, found.st_mtime_ns


def find_recordings(files: str | Path | Sequence[str | Path]) -> tuple[list[Recording], list[Failure]]:
    """The recordings that are meant, each once, and the folders that could not be looked into.

    They are the files given, and the sound files below the folders given, in order of name.

    Raises:
        AudioError: There are none.
    """
    given = [files] if isinstance(files, str | os.PathLike) else list(files)
    found: dict[Path, Recording] = {}
    failures: list[Failure] = []
    for each in map(Path, given):
        if each.is_dir():
            inside, closed = sound_files(each)
            failures += closed
            for file in inside:
                found.setdefault(Path(file), Recording(Path(file), relative_path(file, each)))
        else:
            found.setdefault(each, Recording(each, each.name))
    if not found:
        where = ", ".join(map(str, given)) or "nothing was given"
        raise AudioError(f"there are no sound files: {where}", advice="Give files, or folders with files.")
    return list(found.values()), failures
