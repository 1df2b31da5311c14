from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import tymbal
from other_package import install
from small_model import small_model
from tones import tone_folder
from tymbal.errors import SettingsError
from tymbal.inference.predictions import read_predictions
from tymbal.inference.tables import (
    EmbeddingFormat,
    RowFormat,
    choose_format,
    formats,
    has_kaleidoscope_columns,
    read_rows,
    recognised,
    table_format,
)
from tymbal.settings.fields import nature
from tymbal.settings.inference import EmbedSettings, PredictSettings

COLUMNS = {"file": "text", "start": "seconds", "label": "text", "score": "score", "windows": "count", "time": "text"}
ROWS = [("a, b.wav", 0.1234567, 'rain "hard"', 0.12345678, 3, None), ("ü.wav", 86400.0, "wind", 1.0, 1, "2024")]
WRITTEN = [
    {"file": "a, b.wav", "start": 0.123, "label": 'rain "hard"', "score": 0.123457, "windows": 3, "time": None},
    {"file": "ü.wav", "start": 86400.0, "label": "wind", "score": 1.0, "windows": 1, "time": "2024"},
]


def written(path: Path, kind: str, rows=ROWS) -> Path:
    with table_format(kind, RowFormat).open(path, COLUMNS) as write:
        for row in rows:
            write(row)
    return path


def test_csv__comes_back(tmp_path: Path):
    with written(tmp_path / "a.csv", "csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert found[0] == {
        "file": "a, b.wav",
        "start": "0.123",
        "label": 'rain "hard"',
        "score": "0.123457",
        "windows": "3",
        "time": "",
    }
    assert [row["start"] for row in found] == ["0.123", "86400.000"]


def test_parquet__comes_back_in_full(tmp_path: Path):
    found = pq.read_table(written(tmp_path / "a.parquet", "parquet"))
    assert found["start"].to_pylist() == [0.1234567, 86400.0]
    assert found["score"].to_pylist() == pytest.approx([0.12345678, 1.0])
    assert found.drop_columns(["start", "score"]).to_pylist() == [
        {name: row[name] for name in ("file", "label", "windows", "time")} for row in WRITTEN
    ]


def test_json__comes_back(tmp_path: Path):
    assert json.loads(written(tmp_path / "a.json", "json").read_text(encoding="utf-8")) == WRITTEN
    lines = written(tmp_path / "a.jsonl", "jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == WRITTEN


def test_table__without_rows_is_one_too(tmp_path: Path):
    assert written(tmp_path / "a.csv", "csv", []).read_text() == ",".join(COLUMNS) + "\n"
    assert pq.read_table(written(tmp_path / "a.parquet", "parquet", [])).column_names == list(COLUMNS)
    assert json.loads(written(tmp_path / "a.json", "json", []).read_text()) == []
    assert written(tmp_path / "a.jsonl", "jsonl", []).read_text() == ""


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "jsonl"])
def test_table__is_whole_or_absent(tmp_path: Path, kind: str):
    with pytest.raises(ZeroDivisionError), table_format(kind, RowFormat).open(tmp_path / "a", COLUMNS) as write:
        write(ROWS[0])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


SEMICOLONS = """
import contextlib
from tymbal.files import replace_file
from tymbal.inference.tables import RowFormat

class Semicolons(RowFormat):
    "Cells between semicolons."
    name = "semicolons"
    suffixes = (".ssv",)

    @contextlib.contextmanager
    def open(self, path, columns):
        with replace_file(path) as aside, aside.open("w") as file:
            file.write(";".join(columns) + "\\n")
            yield lambda row: file.write(";".join(map(str, row)) + "\\n")

    def read(self, path):
        head, *lines = path.read_text().splitlines()
        for line in lines:
            yield dict(zip(head.split(";"), line.split(";"), strict=True))

class Single(Semicolons):
    "One file a recording."
    name = "single"
    suffixes = (".single.ssv",)
    per_recording = True
"""


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"semicolons": "other_package_module:Semicolons", "single": "other_package_module:Single"}
    install(tmp_path / "site", monkeypatch, "tymbal.table_formats", points, SEMICOLONS)


def test_formats__of_another_package_are_written_and_read_by_the_verbs(tmp_path: Path, other: None) -> None:
    small_model(tmp_path / "model", labels=("high", "low", "middle"), pooling="mean")
    tone_folder(tmp_path / "sound", clips=1)
    sounds = tmp_path / "sound" / "train"
    result = tymbal.predict(tmp_path / "model", sounds, tmp_path / "out.ssv", device="cpu")
    assert [path.name for path in result.written] == ["out.ssv", "out.detections.ssv"]
    tymbal.predict(tmp_path / "model", sounds, tmp_path / "out.csv", device="cpu")
    rows, known = (list(read_predictions(tmp_path / name).rows) for name in ("out.ssv", "out.csv"))
    assert len(rows) == len(known) == 9
    for row, same in zip(rows, known, strict=True):
        assert (row.file, row.label) == (same.file, same.label)
        assert (row.start, row.end, row.score) == pytest.approx((same.start, same.end, same.score), abs=1e-3)
    assert read_predictions(tmp_path / "out.detections.ssv").kind == "detections"
    tymbal.predict(tmp_path / "model", sounds, tmp_path / "each", format="single", threshold=0.0, device="cpu")
    assert len(list((tmp_path / "each").rglob("*.single.ssv"))) == 3
    assert len(list(read_predictions(tmp_path / "each").rows)) == 9


def test_choose_format__unknown_ones_are_errors_that_name_the_known(tmp_path: Path, other: None) -> None:
    with pytest.raises(
        SettingsError, match=r"'semicolon'.*embedding-atlas, semicolons, single\n  Did you mean semicolons\?"
    ):
        table_format("semicolon", RowFormat)
    with pytest.raises(SettingsError, match=r"End it in .csv, .parquet, .json, .jsonl or .ssv, or say --format raven"):
        choose_format(tmp_path / "a.xyz", None, RowFormat)
    with pytest.raises(SettingsError, match=r"End it in .csv, .parquet or .npy.$"):
        choose_format(tmp_path / "a.json", None, EmbeddingFormat)
    with pytest.raises(SettingsError, match=r"'json', which holds no embeddings\n  Set format to one of csv, parq"):
        choose_format(tmp_path / "a.csv", "json", EmbeddingFormat)
    with pytest.raises(SettingsError, match=r"'npy', which holds no rows\n"):
        choose_format(tmp_path / "a.csv", "npy", RowFormat)
    with pytest.raises(SettingsError, match=r"is no table of predictions\n.*\.ssv"):
        read_predictions(tmp_path / "a.xyz")


def test_formats__are_known_by_their_names() -> None:
    for kind in (RowFormat, EmbeddingFormat):
        for one in formats(kind):
            assert type(table_format(one.name, kind)) is type(one)


@pytest.mark.parametrize(("settings", "kind"), [(PredictSettings, RowFormat), (EmbedSettings, EmbeddingFormat)])
def test_formats__are_the_choices_that_help_shows(settings: type, kind: type) -> None:
    assert sorted(nature(settings, "format").choices) == sorted(one.name for one in formats(kind))


def test_recognised__a_line_that_no_table_has(tmp_path):
    (tmp_path / "a.csv").write_text('{"a":' * 100_000)
    assert not has_kaleidoscope_columns(tmp_path / "a.csv")
    with pytest.raises(SettingsError, match=r"a\.csv: the table cannot be read: field larger"):
        list(read_rows(tmp_path / "a.csv", recognised(tmp_path / "a.csv")))
