import csv
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from made_sounds import cut, tone

import tymbal.audio.scan as module
from tymbal.audio.manifest import Manifest
from tymbal.audio.scan import scan
from tymbal.errors import AudioError, ManifestError, SettingsError


@pytest.fixture
def folder(write, tmp_path):
    """Ten good files of two classes, and one of each kind of trouble."""
    for label in ("wren", "robin"):
        for index in range(5):
            write(f"birds/{label}/{index}.wav", tone(0.5, 16_000, seed=index + len(label) * 10))
    shutil.copy(tmp_path / "birds/wren/0.wav", tmp_path / "birds/robin/copy.wav")
    write("birds/wren/silent.wav", np.zeros(16_000, np.float32))
    write("birds/wren/short.wav", tone(0.01, 16_000))
    write("birds/wren/nan.wav", np.full(16_000, np.nan, np.float32), subtype="FLOAT")
    cut(write("birds/wren/cut.wav"))
    cut(write("birds/wren/cut.ogg"))
    (tmp_path / "birds/wren/empty.wav").touch()
    (tmp_path / "birds/wren/text.wav").write_text("no sound")
    return tmp_path / "birds"


def test_scan__names_every_trouble(folder, tmp_path):
    result = scan(folder, tmp_path / "out" / "m.csv", workers=1)
    assert Counter(failure.kind for failure in result.failures) == {
        "truncated": 2, "silent": 1, "too short": 1, "not finite": 1, "empty": 1, "unreadable": 1,
    }  # fmt: skip
    assert [finding.kind for finding in result.findings] == ["duplicates", "label conflict"]
    assert len(result.manifest) == 11
    with (tmp_path / "out" / "m.failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"]: row["reason"].partition(":")[0] for row in rows} == {
        failure.file: failure.kind for failure in result.failures
    }
    assert all(row["advice"] for row in rows)
    assert Manifest.read(tmp_path / "out" / "m.csv").clips == result.manifest.clips


def test_scan__facts_of_each_clip(folder):
    clip = next(clip for clip in scan(folder, workers=1).manifest if clip.id == "robin/copy.wav")
    assert (clip.labels, clip.duration, clip.sample_rate, clip.channels) == (("robin",), 0.5, 16_000, 1)
    other = next(clip for clip in scan(folder, workers=1).manifest if clip.id == "wren/0.wav")
    assert clip.hash == other.hash
    assert clip.split == other.split


def test_scan__summary_is_for_people(folder, tmp_path):
    text = scan(folder, tmp_path / "m.parquet", workers=1).summary()
    assert text.startswith(f"11 sound files, 6 s ({folder})\n  duration     0.50 s each\n  sample rate  16,000 Hz\n")
    for line in (
        "labels       2: robin (6), wren (5)",
        "split        train (10), validation (1)",
        "exact copies of another file: 1, as robin/copy.wav = wren/0.wav",
        "Left out: 7 files",
        f"empty             1   {folder}/wren/empty.wav: the file has no bytes",
        f"Written: {tmp_path}/m.parquet and {tmp_path}/m.parquet.failures.csv",
    ):
        assert line in text


def test_scan__pool_finds_the_same(folder, monkeypatch):
    alone = scan(folder, workers=1)
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    together = scan(folder, workers=2)
    assert together.manifest == alone.manifest
    assert together.failures == alone.failures


def test_scan__process_that_dies(write, monkeypatch):
    write("a/1.wav")
    with pytest.raises(AudioError, match="has died"):
        list(module._in_parallel(_die, ["1.wav"], 1))


def _die(path: str) -> None:
    os._exit(1)


def test_scan__list_with_missing_file_and_parts(write, tmp_path):
    write("a.wav", tone(3.0, 16_000))
    (tmp_path / "l.csv").write_text(
        "file,start,end,label\na.wav,0,1,x\na.wav,1.5,3.05,y\na.wav,2,9,x\na.wav,4,,x\na.wav,2.99,3,y\nnone.wav,,,x\n"
    )
    result = scan(tmp_path / "l.csv", workers=1)
    assert [(clip.id, clip.duration) for clip in result.manifest] == [("a.wav#0-1", 1.0), ("a.wav#1.5-3.05", 1.5)]
    assert [failure.reason for failure in result.failures] == [
        "out of range: 2 to 9 s is wanted of a file of 3.00 s",
        "out of range: 4 to its end is wanted of a file of 3.00 s",
        "too short: the part at 2.99 s",
        "missing: there is no such file",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_scan__name_that_is_not_utf8(write, tmp_path):
    good = write("a/good.wav")
    shutil.copy(good, tmp_path / "a" / b"caf\xe9.wav".decode(errors="surrogateescape"))
    result = scan(tmp_path / "a", tmp_path / "m.csv")
    assert [failure.reason for failure in result.failures] == ["unreadable: its name is not UTF-8"]
    assert "caf\\udce9.wav" in (tmp_path / "m.failures.csv").read_text()
    assert "caf" in result.summary().encode().decode()


def test_scan__folder_that_is_closed(write, tmp_path, monkeypatch):
    write("a/good.wav")
    write("a/closed/b.wav")
    look = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "scandir", closed)
    result = scan(tmp_path / "a")
    assert [clip.id for clip in result.manifest] == ["good.wav"]
    assert [(failure.file, failure.kind) for failure in result.failures] == [(f"{tmp_path}/a/closed", "unreadable")]


def test_scan__nothing_left(tmp_path):
    (tmp_path / "l.txt").write_text("none.wav\nnowhere.wav\n")
    with pytest.raises(AudioError) as caught:
        scan(tmp_path / "l.txt")
    assert caught.value.what.startswith("not one of its 2 files can be used\n")
    assert "nowhere.wav: missing: there is no such file" in caught.value.what


def test_scan__mistakes_are_told_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_inspect_all", lambda *_: pytest.fail("files were read"))
    for keywords, error in (
        ({"split": "groups"}, ManifestError),
        ({"validation_pattern": "nowhere"}, SettingsError),
        ({"group_pattern": "(nowhere)"}, SettingsError),
        ({"labels": "column"}, ManifestError),
        ({"label": "folder"}, SettingsError),
        ({"output": tmp_path / "m.txt"}, ManifestError),
        ({"output": tmp_path / "failures.csv"}, ManifestError),
    ):
        with pytest.raises(error):
            scan(folder, **keywords)


def test_scan__again_gives_the_same(folder, tmp_path):
    first = scan(folder, tmp_path / "one.parquet", workers=1).manifest
    again = scan(tmp_path / "one.parquet", tmp_path / "two.parquet", workers=1).manifest
    assert again.clips == first.clips


def test_scan__spoken_digits_by_speaker(shared, tmp_path):
    (tmp_path / "l.txt").write_text(
        "\n".join(str(path) for path in sorted((shared / "data" / "fsdd").glob("[0-4]_*_1.wav")))
    )
    result = scan(tmp_path / "l.txt", label_pattern=r"(\d)_", group_pattern=r"\d_([a-z]+)_", workers=1)
    assert result.failures == []
    assert result.manifest.labels() == ["0", "1", "2", "3", "4"]
    assert len({clip.group for clip in result.manifest}) == 6
    assert Counter(clip.split for clip in result.manifest) == {"train": 25, "validation": 5}
    assert {clip.sample_rate for clip in result.manifest} == {8_000}


def test_decode__import_is_light():
    code = (
        "import sys, tymbal.audio.inspect, tymbal.audio.decode\n"
        "print([name for name in ('torch', 'pyarrow', 'av', 'transformers', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_scan__says_what_is_odd_about_good_files(write, tmp_path):
    wave = tone(1.0, 16_000)
    write("sound/a.wav", np.stack([wave, -wave], axis=1))
    joined = write("sound/b.wav")
    joined.write_bytes(joined.read_bytes() * 2)
    result = scan(tmp_path / "sound", workers=1)
    assert [clip.duration for clip in result.manifest] == [1.0, 2.0]
    said = [finding.text for finding in result.findings if finding.kind == "note"]
    assert said == [
        f"its channels cancel each other in the mean: the loudest one is read alone; 1 file, as {tmp_path}/sound/a.wav",
        f"several sounds lie one behind the other in it: read one after the other; 1 file, as {joined}",
    ]


def test_scan__says_that_much_of_a_spectrogram_would_be_constant(write, tmp_path):
    for rate in (2000, 16_000):
        write(f"{rate}/a.wav", tone(1.0, rate), rate)
    said = scan(tmp_path / "2000").summary().split("Worth knowing")[1]
    assert "83 of 128 mel bins are constant in sound of 2,000 Hz at a sample rate of 16,000 Hz" in said
    assert "--sample-rate 2000 --mel-bins 80 --frame-length 0.05 would fill all" in said
    assert "constant" not in scan(tmp_path / "16000").summary()


def test_scan__lists_all_labels(write, tmp_path):
    for index in range(14):
        write(f"sound/bird{index:02d}/a.wav", tone(0.3, 16_000, seed=index))
    summary = scan(tmp_path / "sound").summary()
    listed = " ".join(summary.split())
    assert all(f"bird{index:02d} (1)" in listed for index in range(14))
    assert "more" not in summary.split("labels")[1].split("split")[0]
    assert max(map(len, summary.splitlines()[2:])) <= 120
