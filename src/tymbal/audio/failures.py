"""The ways in which a sound file can fail, each with its advice, and the table of what was left out.

A reason begins with its kind (`truncated: …`), so that a hundred thousand reasons can be counted by it.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tymbal.errors import AudioError, ManifestError, TymbalError
from tymbal.files import replace_file

__all__ = [
    "ADVICE",
    "Failure",
    "Kind",
    "append_failures",
    "check_reachable",
    "failures_beside",
    "printable",
    "problem",
    "read_failures",
    "write_failures",
]

Kind = Literal["missing", "empty", "unreadable", "truncated", "not finite", "silent", "too short", "out of range"]

ADVICE: dict[Kind, str] = {
    "missing": "Correct the path in the list, or put the file there.",
    "empty": "Copy it again from where it came from, or delete it.",
    "unreadable": "If a player can open it, convert it (ffmpeg -i FILE out.wav); else copy it again or delete it.",
    "truncated": "Copy it again from where it came from; ffmpeg -i FILE out.wav keeps the part that is there.",
    "not finite": "Write it again from its source, as 16-bit PCM for instance.",
    "silent": "A dead microphone or an empty channel; lower silence_db if so quiet a file is wanted.",
    "too short": "Leave it out, or lower min_seconds.",
    "out of range": "Correct start and end (seconds) in the list.",
}
"""What to do about each kind of failure, where nothing more specific is known."""


@dataclass(frozen=True)
class Failure:
    """A file, or a part of one, that was left out.

    Attributes:
        file: Path, as far as it is known.
        reason: What is wrong; begins with its kind and a colon.
        advice: What to do about it.
    """

    file: str
    reason: str
    advice: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", printable(self.file))

    @property
    def kind(self) -> str:
        """The kind of failure: one of the keys of `ADVICE`, or `other`."""
        kind = self.reason.partition(":")[0]
        return kind if kind in get_args(Kind) else "other"

    @property
    def is_away(self) -> bool:
        """Whether the file itself could not be reached, as where a disk or a share is away for a while."""
        kind, _, detail = self.reason.partition(": ")
        return kind == "missing" or (kind == "unreadable" and detail.startswith(_AWAY))

    @classmethod
    def of(cls, error: TymbalError, file: str | os.PathLike[str]) -> Failure:
        """The failure that an error describes."""
        return cls(os.fspath(file), error.what, error.advice or "")


def printable(name: str) -> str:
    """A file name that can be written and printed, also where it is no UTF-8."""
    return name.encode(errors="backslashreplace").decode()


_AWAY = tuple(
    os.strerror(getattr(errno, name))
    for name in ("EACCES", "EHOSTDOWN", "EHOSTUNREACH", "EIO", "ENODEV", "ENOTCONN", "ENXIO", "ESTALE", "ETIMEDOUT")
    if hasattr(errno, name)
)
_FEW, _SHARE = 10, 0.1
_COLUMNS = ("file", "reason", "advice")


def check_reachable(failures: Sequence[Failure], total: int, *, force: bool = False) -> None:
    """Refuses to go on as if files were gone for good where a disk or share may be away.

    Args:
        failures: The failures among some files.
        total: Those files.
        force: Go on without them; unless they are all.

    Raises:
        AudioError: More than a tenth of the files, and at least ten, or all of them, cannot be reached.
    """
    away = [failure for failure in failures if failure.is_away]
    if not away or (len(away) < total and (force or len(away) < max(_FEW, _SHARE * total))):
        return
    raise AudioError(
        f"{len(away):,} of {total:,} files cannot be reached; the first: {away[0].file}: {away[0].reason}",
        advice="If a disk or share was away, run the same command again: what was done stays. If they are gone for "
        "good, take them off the list.",
    )


def problem(kind: Kind, detail: str, path: str | os.PathLike[str] | None, *, advice: str | None = None) -> AudioError:
    """The error for a sound file of which `detail` is true."""
    return AudioError(f"{kind}: {detail}", path=path, advice=advice or ADVICE[kind])


def append_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Appends failures to a `failures.csv`, each once; lines appear at once, since several processes may write."""
    # Another process, or an earlier session, may have named them.
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if not before:
        writer.writerow(_COLUMNS)
    writer.writerows((one.file, one.reason, one.advice) for one in failures if f"{one.file}," not in before)
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())


def failures_beside(output: Path) -> Path:
    """The table of what was left out of an output that is a file, beside it: no other output's."""
    return output.with_name(f"{output.stem if output.suffix == '.csv' else output.name}.failures.csv")


def read_failures(path: Path) -> list[Failure]:
    """Reads a `failures.csv`.

    Raises:
        ManifestError: It cannot be read, or is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Failure(row["file"], row["reason"], row.get("advice") or "") for row in csv.DictReader(file, restval="")
            ]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        what = "it has no column file or reason" if isinstance(error, KeyError) else str(error)
        raise ManifestError(f"cannot be read ({what}): what was left out is not known", path=path) from None


def write_failures(path: str | os.PathLike[str], failures: Iterable[Failure]) -> None:
    """Writes `failures.csv` (file, reason, advice), whole or not at all; without failures only its header."""
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((failure.file, failure.reason, failure.advice) for failure in failures)
