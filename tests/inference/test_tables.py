from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tymbal.inference.tables import open_table

COLUMNS = {"file": "text", "start": "seconds", "label": "text", "score": "score", "windows": "count", "time": "text"}
ROWS = [("a, b.wav", 0.1234567, 'rain "hard"', 0.12345678, 3, None), ("ü.wav", 86400.0, "wind", 1.0, 1, "2024")]
WRITTEN = [
    {"file": "a, b.wav", "start": 0.123, "label": 'rain "hard"', "score": 0.123457, "windows": 3, "time": None},
    {"file": "ü.wav", "start": 86400.0, "label": "wind", "score": 1.0, "windows": 1, "time": "2024"},
]


def written(path: Path, kind: str, rows=ROWS) -> Path:
    with open_table(path, kind, COLUMNS) as write:
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
    with pytest.raises(ZeroDivisionError), open_table(tmp_path / "a", kind, COLUMNS) as write:
        write(ROWS[0])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
