"""Tables of labels: written whole, read back as they were, begun from other programs' annotations, and joined."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from small_model import small_model
from tones import RATE, WINDOW, evening, heard_at, tone
from tymbal import label
from tymbal.audio.file_lists import LABEL_COLUMNS
from tymbal.errors import SettingsError
from tymbal.inference.annotations import Audacity, Raven
from tymbal.labelling.agreement import merge_tables
from tymbal.labelling.table import Row, read_annotations, read_table, write_annotations, write_table

ROWS = [
    Row("/nights/a.wav", 5.0, 10.0, None, None, "robin", "ann", "2026-05-01T06:00:00.000+00:00", "1"),
    Row("/nights/a.wav", 5.0, 10.0, None, None, "wren", "ann", "2026-05-01T06:00:00.000+00:00", "1"),
    Row("/nights/a.wav", 10.0, 15.0, None, None, "", "ann", "2026-05-01T06:00:01.000+00:00", "1"),
    Row(
        "/nights/b, c.wav", 1.25, 2.5, 1200.0, 4000.5, 'the "loud" one', "ann", "2026-05-01T06:00:02.000+00:00", "check"
    ),
    Row("/nights/b, c.wav", 20.0, 25.0, None, None, "?", "ann", "2026-05-01T06:00:03.000+00:00", "2"),
]


def test_table__comes_back_as_it_was(tmp_path: Path) -> None:
    write_table(tmp_path / "labels.csv", ROWS)
    assert read_table(tmp_path / "labels.csv") == ROWS
    assert (tmp_path / "labels.csv").read_text().splitlines()[0] == ",".join(LABEL_COLUMNS)


def test_table__recordings_below_its_folder_move_with_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_table(tmp_path / "one" / "labels.csv", [ROWS[0]._replace(file=str(tmp_path / "one" / "nights" / "a.wav"))])
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_table(tmp_path / "two" / "labels.csv")[0].file == str(tmp_path / "two" / "nights" / "a.wav")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,start,end\na.wav,0,1\n", "it lacks low, high, label, who, when, round"),
        (",".join(LABEL_COLUMNS) + "\na.wav,2,1,,,robin,,,\n", "line 2 has no stretch of sound"),
        (",".join(LABEL_COLUMNS) + "\na.wav,0,one,,,robin,,,\n", "line 2 has no stretch of sound"),
    ],
)
def test_table__that_is_none_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_table(tmp_path / "labels.csv")


def test_annotations__of_raven_with_boxes_come_back(tmp_path: Path) -> None:
    recording = tmp_path / "nights" / "a.wav"
    recording.parent.mkdir()
    soundfile.write(recording, tone("low", seconds=30), RATE)
    rows = [row._replace(file=str(recording)) for row in ROWS]
    (written,) = write_annotations(rows, tmp_path / "tables", Raven())
    assert written == tmp_path / "tables" / "a.selections.txt"
    read = read_annotations(tmp_path / "tables", [str(recording)])
    assert [(row.start, row.end, row.low, row.high, row.label) for row in read] == [
        (1.25, 2.5, 1200.0, 4000.5, 'the "loud" one'),
        (5.0, 10.0, 0.0, RATE / 2, "robin"),
        (5.0, 10.0, 0.0, RATE / 2, "wren"),
    ]
    assert {(row.round, row.file) for row in read} == {("begin", str(recording))}
    (written,) = write_annotations(rows, tmp_path / "tracks", Audacity())
    assert written.read_text().splitlines()[0] == '1.250000\t2.500000\tthe "loud" one 1.00'


def test_annotations__find_their_recording_by_their_own_name(tmp_path: Path) -> None:
    files = ["/nights/a.wav", "/nights/b.wav"]
    (tmp_path / "a.Table.1.selections.txt").write_text(
        "Selection\tView\tBegin Time (s)\tEnd Time (s)\tSpecies\n1\tSpectrogram 1\t3.5\t4\trobin\n"
    )
    (tmp_path / "b.labels.txt").write_text("1\t2\twren\n")
    (tmp_path / "list.csv").write_text("filename,onset,offset\n")
    with pytest.raises(Exception, match="lists no files"):
        read_annotations(tmp_path, files)
    (tmp_path / "list.csv").write_text("file,start,end,label\na.wav,7,8,owl;wren\nb.wav,,,rain\n")
    read = read_annotations(tmp_path, files)
    assert [(row.file, row.start, row.end, row.label) for row in read] == [
        ("/nights/a.wav", 3.5, 4.0, "robin"),
        ("/nights/b.wav", 1.0, 2.0, "wren"),
        ("/nights/a.wav", 7.0, 8.0, "owl"),
        ("/nights/a.wav", 7.0, 8.0, "wren"),
        ("/nights/b.wav", 0.0, float("inf"), "rain"),
    ]
    with pytest.raises(SettingsError, match="its 1 annotations are of none of the recordings, the first of b"):
        read_annotations(tmp_path / "b.labels.txt", files[:1])


def _said(label: str, second: int, *, who: str = "ben", when: str = "2026-05-02T06:00:00.000+00:00") -> Row:
    return Row("/nights/a.wav", float(second), second + 5.0, None, None, label, who, when, "1")


def test_merge__names_conflicts_and_measures_agreement(tmp_path: Path) -> None:
    ann = [_said(name, 5 * place, who="ann") for place, name in enumerate("rrrrwwwn??")]
    ben = [_said(name, 5 * place) for place, name in enumerate("rrrwwwwn?r")]
    both = [[row._replace(label={"n": ""}.get(row.label, row.label)) for row in rows] for rows in (ann, ben)]
    write_table(tmp_path / "ann.csv", both[0])
    write_table(tmp_path / "ben.csv", [row._replace(file="/other/disk/a.wav") for row in both[1]])
    result = merge_tables([tmp_path / "ann.csv", tmp_path / "ben.csv"], tmp_path / "both.csv")
    assert (result.answers, result.shared, result.conflicts) == (10, 10, 1)
    merged = read_table(tmp_path / "both.csv")
    assert [row.label for row in merged] == ["r", "r", "r", "?", "w", "w", "w", "", "?", "r"]
    assert merged[3].who == "ann+ben"
    with (tmp_path / "both.conflicts.csv").open(newline="") as file:
        assert [(row["start"], row["who"], row["label"]) for row in csv.DictReader(file)] == [
            ("15.000", "ann", "r"),
            ("15.000", "ben", "w"),
        ]
    # Of the eight windows of which both were sure: r 4 and 3, w 3 and 4, nothing 1 and 1; seven are alike.
    chance = (4 * 3 + 3 * 4 + 1) / 64
    assert result.kappa["all labels"] == pytest.approx((7 / 8 - chance) / (1 - chance))
    chance = (4 * 3 + 4 * 5) / 64
    assert result.kappa["r"] == pytest.approx((7 / 8 - chance) / (1 - chance))
    assert "Cohen's kappa: r 0.75, w 0.75, all labels 0.79" in result.summary()


def test_merge__of_one_person_takes_the_latest(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [_said("robin", 0), _said("wren", 5)])
    write_table(tmp_path / "b.csv", [_said("owl", 0, when="2026-06-01T06:00:00.000+00:00"), _said("wren", 5)])
    result = label(tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv", merge=True)
    assert result.conflicts == 0 and not (tmp_path / "c.conflicts.csv").exists()
    assert [row.label for row in read_table(tmp_path / "c.csv")] == ["owl", "wren"]
    with pytest.raises(SettingsError, match="is one of the tables to join"):
        merge_tables([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "a.csv")


KILLED = """
import sys
from tymbal.labelling.session import Answer, Session
from tymbal.settings import LabelSettings
from tones import heard_at
session = Session.open(sys.argv[1], sys.argv[2], sys.argv[3], LabelSettings(device="cpu", who="ann"))
for place in range(len(session.windows)):
    window = session.windows.window(place)
    heard = heard_at(window.start)
    session.answer([Answer(window, (heard,)) if heard else Answer(window, kind="nothing")])
    print(place, flush=True)
"""


def test_answers__are_on_the_disk_when_the_process_is_killed(tmp_path: Path) -> None:
    model, nights = small_model(tmp_path / "model"), evening(tmp_path / "nights")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, model, nights, tmp_path / "labels"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    said = -1
    assert process.stdout is not None
    for line in process.stdout:
        said = int(line)
        if said == 25:
            time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    rows = read_table(tmp_path / "labels" / "labels.csv")
    assert len(rows) >= 26
    assert all(row.label == (heard_at(place * WINDOW) or "") for place, row in enumerate(rows))
