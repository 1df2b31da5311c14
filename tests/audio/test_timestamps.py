from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tymbal.audio.clip_labels import recorded_at, when


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20240322_191730.WAV", "2024-03-22T19:17:30"),  # AudioMoth
        ("20240322_191730T.WAV", "2024-03-22T19:17:30"),  # AudioMoth, triggered
        ("24F319055FDF2F5B_20240322_191730.WAV", "2024-03-22T19:17:30"),  # AudioMoth with its number
        ("5E90A4D4.WAV", "2020-04-10T16:54:44+00:00"),  # AudioMoth before 2020
        ("S4A01234_20240322_191730.wav", "2024-03-22T19:17:30"),  # Song Meter 4, Mini, Micro
        ("SM2+BAT_0+1_20240322_191730_000.wav", "2024-03-22T19:17:30"),
        ("SITE_20240322$191730.wac", "2024-03-22T19:17:30"),
        ("20240322T191730+1000_REC.flac", "2024-03-22T19:17:30+10:00"),  # Frontier Labs
        ("20240322T191730-0330.flac", "2024-03-22T19:17:30-03:30"),
        ("20240322T191730Z.wav", "2024-03-22T19:17:30+00:00"),
        ("2024-03-22T19-17-30.wav", "2024-03-22T19:17:30"),
        ("20240322_191730-0001.wav", "2024-03-22T19:17:30"),
        ("run 20241301_000000 of 20240322_191730.wav", "2024-03-22T19:17:30"),
        ("20240322.wav", None),
        ("120240322_1917301.wav", None),
        ("12345678_123456.wav", None),
        ("CAFEBABE.wav", None),
        ("robin.wav", None),
    ],
)
def test_recorded_at__names(name: str, expected: str | None):
    found = recorded_at(Path("absent") / name)
    assert (None if found is None else found.isoformat()) == expected


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        (
            "Recorded at 19:17:30 22/03/2024 (UTC) by AudioMoth 24F319055FDF2F5B at medium gain.",
            "2024-03-22T19:17:30+00:00",
        ),
        ("Recorded at 19:17:30.250 22/03/2024 (UTC-3:30) by AudioMoth 24F3", "2024-03-22T19:17:30.250000-03:30"),
        ("Recorded at 19:17:30 22/03/2024 (UTC+2) during deployment 0A1B by AudioMoth 24", "2024-03-22T19:17:30+02:00"),
        ("Recorded at dusk", "2023-01-01T00:00:00"),
    ],
)
def test_recorded_at__the_header_of_an_audiomoth_stands_above_the_name(tmp_path: Path, comment: str, expected: str):
    path = tmp_path / "20230101_000000.WAV"
    soundfile.write(path, np.zeros(800, np.float32), 8000, subtype="PCM_16")
    plain = path.read_bytes()
    text = comment.encode() + b"\0" * (1 + (len(comment) + 1) % 2)
    info = b"INFOICMT" + len(text).to_bytes(4, "little") + text
    chunk = b"LIST" + len(info).to_bytes(4, "little") + info
    path.write_bytes(plain[:36] + chunk + plain[36:])  # between fmt and data
    found = recorded_at(path)
    assert found is not None
    assert found.isoformat() == expected


def test_when__is_to_the_millisecond():
    assert when(datetime(2024, 12, 31, 23, 59, 59), 1.5) == "2025-01-01T00:00:00.500"
    assert when(datetime(2024, 12, 31, tzinfo=UTC), 0) == "2024-12-31T00:00:00.000+00:00"
    assert when(None, 1.5) is None
