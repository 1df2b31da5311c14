from __future__ import annotations

import csv
from pathlib import Path

from tymbal.audio.sources import Recording
from tymbal.inference.annotations import DETECTED, Audacity, Raven, annotation_files
from tymbal.inference.detections import Detection
from tymbal.inference.tables import RowFormat

LABELS = ("robin", "a\ttab and\na line")
FOUND = [Detection(0.5, 0, 3.25, 0.91234, 3), Detection(86399.1234567, 1, 86400.0, 0.5, 1)]


def written(kind: RowFormat, path: Path, file: str, found: list[Detection]) -> None:
    with kind.open(path, DETECTED) as write:
        for one in found:
            write((file, one.start, one.end, LABELS[one.label], one.score, 20.0, 8000.0))


def test_raven__comes_back(tmp_path: Path):
    written(Raven(), tmp_path / "a.txt", "nights/a.wav", FOUND)
    text = (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert text.splitlines()[0] == (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tLabel\tScore\t"
        "Begin Path\tFile Offset (s)"
    )
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 2
    assert rows[0] == {
        "Selection": "1",
        "View": "Spectrogram 1",
        "Channel": "1",
        "Begin Time (s)": "0.500000",
        "End Time (s)": "3.250000",
        "Low Freq (Hz)": "20.0",
        "High Freq (Hz)": "8000.0",
        "Label": "robin",
        "Score": "0.9123",
        "Begin Path": str(Path("nights/a.wav").absolute()),
        "File Offset (s)": "0.500000",
    }
    assert [float(row["Begin Time (s)"]) for row in rows] == [0.5, 86399.123457]
    assert rows[1]["Label"] == "a tab and a line"
    assert rows[1]["Selection"] == "2"


def test_raven__without_detections_is_a_header(tmp_path: Path):
    written(Raven(), tmp_path / "a.txt", "a.wav", [])
    assert len((tmp_path / "a.txt").read_text().splitlines()) == 1


def test_audacity__comes_back(tmp_path: Path):
    written(Audacity(), tmp_path / "a.txt", "a.wav", FOUND)
    rows = [line.split("\t") for line in (tmp_path / "a.txt").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        ["0.500000", "3.250000", "robin 0.91"],
        ["86399.123457", "86400.000000", "a tab and a line 0.50"],
    ]


def test_annotation_files__no_two_recordings_share_one():
    places = ["a.wav", "a.flac", "b/A.wav", "b/a.wav", "b/a.wav", "2024.03.wav", "../up.wav", "/elsewhere/c.wav"]
    recordings = [Recording(Path(f"{number}"), place) for number, place in enumerate(places)]
    found = annotation_files(Path("out"), recordings, ".selections.txt")
    assert [path.as_posix() for path in found.values()] == [
        "out/a.selections.txt",
        "out/a.flac.selections.txt",
        "out/b/A.selections.txt",
        "out/b/a.wav.selections.txt",
        "out/b/a.wav-2.selections.txt",
        "out/2024.03.selections.txt",
        "out/up.selections.txt",
        "out/c.selections.txt",
    ]
