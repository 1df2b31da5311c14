"""When a recording began: from the header of an AudioMoth, or from a file name that tells.

| recorder | name |
|---|---|
| AudioMoth | `20240322_191730.WAV`, `20240322_191730T.WAV`, `24F319055FDF2F5B_20240322_191730.WAV`, `5E90A4D4.WAV` |
| Song Meter | `SITE_20240322_191730.wav`, `SITE_20240322$191730.wav`, `SITE_0+1_20240322_191730.wav` |
| others | `20240322T191730+1000_REC.flac`, `2024-03-22T19-17-30.wav`, `20240322T191730Z.wav` |

Names tell what the recorder's clock showed, mostly without its zone: such a time has none here either. Old AudioMoths
name files by the seconds since 1970 in hexadecimal, which are UTC; newer ones write time and zone into the header
(`ICMT` of the `INFO` list, as their firmware does), which stands above the name.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

__all__ = ["recorded_at", "when"]

_NAME = re.compile(
    r"(?<!\d)(\d{4})(-?)(\d{2})\2(\d{2})([T_$ -])(\d{2})([-:]?)(\d{2})\7(\d{2})(?!\d)"
    r"(?:(Z)|([+-]\d{2}):?(\d{2})(?!\d))?"
)
_HEXADECIMAL = re.compile(r"[0-9A-F]{8}")
_COMMENT = re.compile(
    rb"Recorded at (\d\d):(\d\d):(\d\d)(?:\.(\d{3}))? (\d\d)/(\d\d)/(\d{4}) "
    rb"\(UTC(?:([+-])(\d{1,2})(?::(\d\d))?)?\) (?:during deployment [0-9A-F]+ )?by AudioMoth"
)
_HEADER = 512  # bytes: the AudioMoth's header ends before
_YEARS = range(1990, 2100)  # eight digits in a name can be anything
_AUDIOMOTH_YEARS = range(2016, 2030)


def recorded_at(path: Path) -> datetime | None:
    """When a recording began, as far as its header or its name tells; the header is looked for in WAV files only."""
    if path.suffix.lower() in (".wav", ".wave"):
        try:
            with path.open("rb") as file:
                found = _from_comment(file.read(_HEADER))
        except OSError:
            found = None
        if found is not None:
            return found
    return _from_name(path.stem)


def when(start: datetime | None, seconds: float) -> str | None:
    """A time in a recording that began at `start`, in ISO 8601 to the millisecond: `2024-03-22T19:17:30.000`."""
    return None if start is None else (start + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def _from_comment(header: bytes) -> datetime | None:
    match = _COMMENT.search(header)
    if match is None:
        return None
    hour, minute, second, day, month, year = (int(match[i]) for i in (1, 2, 3, 5, 6, 7))
    offset = timedelta(hours=int(match[9] or 0), minutes=int(match[10] or 0))
    zone = timezone(-offset if match[8] == b"-" else offset)
    return _time(year, month, day, hour, minute, second, int(match[4] or 0) * 1000, zone=zone)


def _from_name(stem: str) -> datetime | None:
    for match in _NAME.finditer(stem):
        year, month, day, hour, minute, second = (int(match[i]) for i in (1, 3, 4, 6, 8, 9))
        zone = UTC if match[10] else None
        # A sign behind the time is a zone in ISO 8601 alone: elsewhere it may begin a number.
        if match[11] and match[5] == "T":
            minutes = int(match[12]) * (-1 if match[11].startswith("-") else 1)
            zone = timezone(timedelta(hours=int(match[11]), minutes=minutes))
        found = _time(year, month, day, hour, minute, second, zone=zone)
        if found is not None:
            return found
    if _HEXADECIMAL.fullmatch(stem):
        found = datetime.fromtimestamp(int(stem, 16), UTC)
        return found if found.year in _AUDIOMOTH_YEARS else None
    return None


def _time(*parts: int, zone: timezone | None) -> datetime | None:
    try:
        return datetime(*parts, tzinfo=zone) if parts[0] in _YEARS else None  # type: ignore[misc, arg-type]
    except ValueError:
        return None
