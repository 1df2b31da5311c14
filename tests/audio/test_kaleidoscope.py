"""Kaleidoscope's tables as lists of clips: `tymbal.audio.kaleidoscope`, by way of what reads lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tones import RATE, tone
from tymbal.audio.file_lists import read_table
from tymbal.audio.kaleidoscope import COLUMNS, cells_of
from tymbal.audio.sources import read_source
from tymbal.errors import ManifestError

# The head of Kaleidoscope 5's id.csv; and of a cluster.csv.
ID = (
    "INDIR,OUTDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,OUT FILE FS,OUT FILE ZC,DATE,TIME,HOUR,DATE-12,TIME-12,"
    "HOUR-12,AUTO ID*,PULSES,MATCHING,MATCH RATIO,MARGIN,ALTERNATE 1,ALTERNATE 2,MANUAL ID"
)
CLUSTER = "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,Fmin,Fmean,Fmax,DATE,TIME,HOUR,TOP1MATCH*,TOP1DIST,MANUAL ID*"


def sounds(folder: Path) -> None:
    import soundfile

    for name in ("night1/a.wav", "night2/b.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, tone("low", seconds=2), RATE)


def id_rows(indir: str, *, manual: tuple[str, str, str] = ("", "", "")) -> str:
    return "\r\n".join(
        (
            ID,
            f"{indir},,night1,a.wav,0,0.0,0.5,,,2024-07-01,21:30:00,21,,,,PIPPIP,12,10,0.833,0.5,PIPPYG,,{manual[0]}",
            f"{indir},,night1,a.wav,0,0.5,1.25,,,2024-07-01,21:30:00,21,,,,NoID,2,1,0.5,0.1,,,{manual[1]}",
            f"{indir},,night2,b.wav,1,0,2,,,2024-07-02,21:30:00,21,,,,NYCLEI,9,9,1,0.9,,,{manual[2]}",
            "",
        )
    )


def test_id_csv__is_a_list_of_parts_with_what_the_program_said(tmp_path: Path) -> None:
    sounds(tmp_path)
    (tmp_path / "id.csv").write_text(id_rows(str(tmp_path)))
    listing = read_source(tmp_path / "id.csv")
    assert [(clip.id, clip.labels) for clip in listing.clips] == [
        ("night1/a.wav#0-0.5", ("PIPPIP",)),
        ("night1/a.wav#0.5-1.75", ("NoID",)),
        ("night2/b.wav#0-2", ("NYCLEI",)),
    ]
    assert listing.labelled
    assert "no row has a MANUAL ID; labels are what a program said" in listing.notes[0]
    assert "CHANNEL is not looked at" in listing.notes[1]


def test_id_csv__labels_of_a_person_are_not_mixed_with_a_programs(tmp_path: Path) -> None:
    sounds(tmp_path)
    (tmp_path / "id.csv").write_text(id_rows(str(tmp_path), manual=("PIPNAT", "", "NYCLEI")))
    listing = read_source(tmp_path / "id.csv")
    assert [clip.labels for clip in listing.clips] == [("PIPNAT",), (), ("NYCLEI",)]
    assert "labels are those of MANUAL ID; 1 of 3 rows have none" in listing.notes[0]


@pytest.mark.parametrize("indir", ["D:\\bats", "/somewhere/else", ""])
def test_id_csv__files_that_moved_are_found_beside_the_table(tmp_path: Path, indir: str) -> None:
    sounds(tmp_path)
    (tmp_path / "id.csv").write_text(id_rows(indir))
    assert {clip.file for clip in read_source(tmp_path / "id.csv").clips} == {
        str(tmp_path / "night1/a.wav"),
        str(tmp_path / "night2/b.wav"),
    }


def test_id_csv__files_that_are_gone_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "id.csv").write_text(id_rows("D:\\bats"))
    assert read_table(tmp_path / "id.csv").rows[0]["file"] == "D:\\bats\\night1\\a.wav"


def test_cluster_csv__has_its_own_names(tmp_path: Path) -> None:
    sounds(tmp_path)
    row = f"{tmp_path},night1,a.wav,0,1.0,0.5,1,2,3,2024-07-01,21:30:00,21,owl.3,0.4,"
    (tmp_path / "cluster.csv").write_text(f"{CLUSTER}\n{row}\n")
    table = read_table(tmp_path / "cluster.csv")
    assert table.rows == [{"file": str(tmp_path / "night1/a.wav"), "start": 1.0, "end": 1.5, "label": "owl.3"}]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",0,0.0,0.5,", ",0,early,0.5,", "row 2: OFFSET is 'early', which is not a number"),
        (",0,0.5,1.25,", ",0,0.5,,", "row 3: DURATION is empty"),
        ("night2,b.wav", "night2,", "row 4: IN FILE is empty"),
    ],
)
def test_id_csv__a_row_that_cannot_be_read_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "id.csv").write_text(id_rows("x").replace(old, new))
    with pytest.raises(ManifestError, match=message):
        read_table(tmp_path / "id.csv")


def test_cells_of__a_night_has_one_date() -> None:
    row = {"file": "/r/site/a.wav", "start": 3600.0, "end": 3603.5, "label": "owl", "score": 0.75}
    cells = dict(zip(COLUMNS, cells_of({**row, "start_time": "2024-07-02T01:30:00.000"}), strict=True))
    filled = {name: str(cell) for name, cell in cells.items() if cell != ""}
    assert filled == {
        "INDIR": str(Path("/r").absolute()),
        "FOLDER": "site",
        "IN FILE": "a.wav",
        "CHANNEL": "0",
        "OFFSET": "3600.000",
        "DURATION": "3.500",
        "DATE": "2024-07-02",
        "TIME": "00:30:00",
        "HOUR": "0",
        "DATE-12": "2024-07-01",
        "TIME-12": "12:30:00",
        "HOUR-12": "12",
        "AUTO ID*": "owl",
        "MATCH RATIO": "0.750000",
    }
    unknown = dict(zip(COLUMNS, cells_of({**row, "start_time": None}), strict=True))
    assert unknown["DATE"] == unknown["HOUR-12"] == ""
