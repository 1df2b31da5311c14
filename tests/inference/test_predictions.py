from __future__ import annotations

from pathlib import Path

import pytest

import tymbal
from small_model import small_model
from tones import tone_folder
from tymbal.audio.sources import read_source
from tymbal.errors import SettingsError
from tymbal.inference.annotations import DETECTED, Audacity, Raven
from tymbal.inference.detections import Detection
from tymbal.inference.predictions import DETECTIONS, WINDOWS, detections_path, is_annotations, read_predictions
from tymbal.inference.tables import RowFormat, table_format

ROWS = [("a, b.wav", 0.0, 5.0, "robin", 0.75), ("ü.wav", 86400.0, 86405.0, 'the "wren"', 0.5)]
FOUND = [Detection(0.5, 0, 3.25, 0.91, 3), Detection(86399.125, 1, 86400.0, 0.5, 1)]
LABELS = ("robin", "song thrush 2")


@pytest.mark.parametrize("ending", ["csv", "parquet", "json", "jsonl"])
def test_read_predictions__tables_of_windows_and_of_detections_come_back(tmp_path: Path, ending: str) -> None:
    with table_format(ending, RowFormat).open(tmp_path / f"a.{ending}", WINDOWS) as write:
        for row in ROWS:
            write((*row, None, "2024-06-01T00:00:00"))
    with table_format(ending, RowFormat).open(tmp_path / f"a.detections.{ending}", DETECTIONS) as write:
        for row in ROWS:
            write((*row, None, None, 2))
    for name, kind in ((f"a.{ending}", "windows"), (f"a.detections.{ending}", "detections")):
        found = read_predictions(tmp_path / name)
        assert found.kind == kind
        assert [tuple(row) for row in found.rows] == ROWS
    assert detections_path(tmp_path / f"a.{ending}") == tmp_path / f"a.detections.{ending}"
    assert detections_path(tmp_path / f"a.detections.{ending}") is None


@pytest.mark.parametrize("ending", ["csv", "parquet", "json", "jsonl"])
def test_read_predictions__nothing_found_is_no_mistake(tmp_path: Path, ending: str) -> None:
    with table_format(ending, RowFormat).open(tmp_path / f"a.{ending}", WINDOWS):
        pass
    assert list(read_predictions(tmp_path / f"a.{ending}").rows) == []


def test_read_predictions__raven_and_audacity_come_back(tmp_path: Path) -> None:
    (tmp_path / "out" / "north").mkdir(parents=True)
    for kind, name in ((Raven(), "a.selections.txt"), (Audacity(), "north/b.labels.txt")):
        with kind.open(tmp_path / "out" / name, DETECTED) as write:
            for one in FOUND:
                write(("nights/a.wav", one.start, one.end, LABELS[one.label], one.score, 20.0, 8000.0))
    assert is_annotations(tmp_path / "out")
    assert not is_annotations(tmp_path / "out" / "a.selections.txt")
    found = read_predictions(tmp_path / "out")
    assert found.kind == "detections"
    path = str(Path("nights/a.wav").absolute())
    assert [tuple(row) for row in found.rows] == [
        (path, 0.5, 3.25, "robin", 0.91),
        (path, 86399.125, 86400.0, "song thrush 2", 0.5),
        ("north/b", 0.5, 3.25, "robin", 0.91),
        ("north/b", 86399.125, 86400.0, "song thrush 2", 0.5),
    ]


def test_read_predictions__annotations_of_others(tmp_path: Path) -> None:
    columns = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tCommon Name\tConfidence\tFile Offset (s)\tBegin Path\n"
    rows = "1\tSpectrogram 1\t63.0\t66.0\tRobin\t0.4\t3.0\tb.wav\n1\tWaveform 1\t63.0\t66.0\tRobin\t0.4\t3.0\tb.wav\n"
    (tmp_path / "birdnet.txt").write_text(columns + rows, encoding="utf-8")
    assert [tuple(row) for row in read_predictions(tmp_path / "birdnet.txt").rows] == [
        ("b.wav", 3.0, 6.0, "Robin", 0.4)
    ]
    (tmp_path / "hand.txt").write_text("1.5\t2\tblack cap\n\\\t100\t900\n3\t4\n5\t6\twren\t0.25\n", encoding="utf-8")
    assert [tuple(row) for row in read_predictions(tmp_path / "hand.txt").rows] == [
        ("hand", 1.5, 2.0, "black cap", 1.0),
        ("hand", 3.0, 4.0, "", 1.0),
        ("hand", 5.0, 6.0, "wren", 0.25),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n1,2\n", "no table of predictions: it lacks file, start, end, label, score"),
        ("a.csv", "file,start,end,label,score\nx.wav,0,1,robin,0.5\nx.wav,0\n", "row 2 cannot be read"),
        ("a.csv", "file,start,end,label,score\nx.wav,0,1,robin,nan\n", "row 1 cannot be read"),
        ("a.jsonl", '{"file": "x.wav", "start"', "the table cannot be read: line 1:"),
        ("a.json", "[3]", "a row is no object with names"),
        ("a.parquet", "not parquet", "the table cannot be read"),
        ("a.txt", "hello\n", "line 1 is none of an Audacity label track"),
        ("a.txt", "Selection\tView\n", "lacks Begin Time"),
        ("a.docx", "", "is no table of predictions"),
    ],
)
def test_read_predictions__what_is_broken_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        list(read_predictions(tmp_path / name).rows)


@pytest.mark.parametrize(("name", "kind"), [("night.csv", "windows"), ("night.detections.csv", "detections")])
def test_read_predictions__an_empty_table_is_what_its_name_says(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("file,start,end,label,score\n")
    found = read_predictions(tmp_path / name)
    assert (found.kind, list(found.rows)) == (kind, [])


def test_kaleidoscope__predict_writes_what_is_read_as_predictions_and_as_labels(tmp_path: Path) -> None:
    sound = tone_folder(tmp_path / "sound", clips=1, splits=("night_20240701_213000",))
    model = small_model(tmp_path / "model", labels=("owl", "wren"), pooling="mean")
    tymbal.predict(model, sound, tmp_path / "id.csv", format="kaleidoscope", threshold=0.0, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"sound", "model", "id.csv"}
    found = read_predictions(tmp_path / "id.csv")
    assert found.kind == "detections"
    rows = list(found.rows)
    tymbal.predict(model, sound, tmp_path / "night.csv", threshold=0.0, device="cpu")
    plain = list(read_predictions(tmp_path / "night.detections.csv").rows)
    assert len(rows) == len(plain) == 6
    for row, same in zip(rows, plain, strict=True):
        assert row[:4] == (str(Path(same.file).absolute()), *same[1:4])
        assert row.score == pytest.approx(same.score, abs=1e-6)
    listing = read_source(tmp_path / "id.csv")
    assert {clip.labels for clip in listing.clips} == {("owl", "wren")}
    assert [clip.end for clip in listing.clips] == [0.335] * 3


def test_kaleidoscope__of_birdnet(tmp_path: Path) -> None:
    (tmp_path / "birds.csv").write_text(
        "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,common_name,confidence,lat,lon\n"
        "/data,site1,rec1.wav,3.0,3.0,Turdus merula,Eurasian Blackbird,0.8123,-1,-1\n"
    )
    found = read_predictions(tmp_path / "birds.csv")
    path = str(Path("/data/site1/rec1.wav"))
    assert [tuple(row) for row in found.rows] == [(path, 3.0, 6.0, "Eurasian Blackbird", 0.8123)]
    (tmp_path / "birds.csv").write_text("INDIR,FOLDER,IN FILE,OFFSET,DURATION,AUTO ID\n/data,a,b.wav,x,1,owl\n")
    with pytest.raises(SettingsError, match="line 2 cannot be read: OFFSET is 'x'"):
        list(read_predictions(tmp_path / "birds.csv").rows)
