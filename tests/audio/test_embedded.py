"""Sounds in the rows of Parquet tables: the numbers are those of files with the same bytes."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tymbal
from embedded_sounds import NAMES, encoded, sound_table
from small_model import small_model
from tones import RATE, tone
from tymbal.audio import embedded
from tymbal.audio.decode import info, read, stream
from tymbal.audio.file_lists import read_table
from tymbal.audio.scan import scan
from tymbal.audio.sources import find_recordings, read_source
from tymbal.errors import AudioError, ManifestError
from tymbal.store.packed.packed_store import Store

KINDS = ("WAV", "FLAC", "OGG", "MP3")
SMALL = {"sample_rate": RATE, "mel_bins": 16, "window": 0.335, "workers": 1}


def dataset(folder: Path, clips: int = 12) -> Path:
    """A folder as a data set of the Hub is downloaded: two tables of train, one of test."""
    sounds = [encoded(NAMES[n % 3], seed=n, kind=KINDS[n % 4]) for n in range(clips)]
    names = [f"{n}.{KINDS[n % 4].lower()}" for n in range(clips)]
    labels = [n % 3 for n in range(clips)]
    parts = {
        "train-00000-of-00002": slice(0, 4),
        "train-00001-of-00002": slice(4, 8),
        "test-00000-of-00001": slice(8, 12),
    }
    for name, part in parts.items():
        sound_table(folder / "data" / f"{name}.parquet", sounds[part], labels=labels[part], paths=names[part])
    return folder


def test_table__is_a_list_of_sounds_whose_numbers_are_those_of_files(tmp_path: Path) -> None:
    sounds = [encoded("low", seed=n, kind=KINDS[n % 4]) for n in range(12)]
    path = sound_table(tmp_path / "a.parquet", sounds, labels=[0, 1, 2, -1] * 3)
    clips = read_source(path).clips
    assert clips[5].file == f"{path}#5/5.wav"
    assert clips[5].id == "a.parquet#5/5.wav"
    assert [clip.labels for clip in clips[:4]] == [("high",), ("low",), ("middle",), ()]
    for order in (range(12), [11, 3, 4, 3, 0]):  # forwards, and anyhow
        for number in order:
            (tmp_path / "file").write_bytes(sounds[number])
            expected, rate = read(tmp_path / "file")
            found, same = read(clips[number].file)
            assert (same, rate) == (RATE, RATE)
            np.testing.assert_array_equal(found, expected)
            blocks = list(stream(clips[number].file, sample_rate=5000, block=0.1, start=0.05))
            np.testing.assert_array_equal(
                np.concatenate(blocks),
                np.concatenate(list(stream(tmp_path / "file", sample_rate=5000, block=0.1, start=0.05))),
            )
            assert info(clips[number].file) == info(tmp_path / "file")


def test_table__several_labels_and_parts_of_one_sound(tmp_path: Path) -> None:
    path = sound_table(
        tmp_path / "a.parquet",
        [encoded("low", seconds=2)] * 3,
        labels=[[0, 2], [1], []],
        start_time=pa.array([0.0, 0.5, 1.0]),
        end_time=pa.array([0.5, 1.0, 2.0]),
        filepath=pa.array(["x/1.ogg"] * 3),
        lat=pa.array([1.0] * 3),
    )
    table = read_table(path)
    assert table.columns == ("file", "start", "end", "label")
    assert table.ignored == ("filepath", "lat")
    clips = read_source(path).clips
    assert [(clip.start, clip.end, clip.labels) for clip in clips] == [
        (0.0, 0.5, ("high", "middle")),
        (0.5, 1.0, ("low",)),
        (1.0, 2.0, ()),
    ]
    waveform, _ = read(clips[1].file, start=0.5, end=1.0)
    np.testing.assert_allclose(waveform, tone("low", seconds=2)[RATE // 2 : RATE], atol=1e-4)


def test_folder__of_tables_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dataset(tmp_path / "birds")
    listing = read_source(folder)
    assert [clip.split for clip in listing.clips] == ["test"] * 4 + ["train"] * 8
    made = tymbal.prepare(folder, tmp_path / "store", **SMALL)
    assert made.failures == []
    # The same bytes as files give the same store.
    for clip in listing.clips:
        place = tmp_path / "files" / str(clip.split) / clip.labels[0] / Path(clip.file).name
        place.parent.mkdir(parents=True, exist_ok=True)
        with embedded.open_bytes(Path(clip.file)) as opened:
            place.write_bytes(opened.read())
    tymbal.prepare(tmp_path / "files", tmp_path / "same", **SMALL)
    one, two = (
        {
            Path(row["file"]).name: (row["labels"], np.asarray(values).tobytes())
            for row, values in zip(store.index.to_pylist(), store.gather(np.arange(len(store.index))), strict=True)
        }
        for store in (Store.open(tmp_path / "store"), Store.open(tmp_path / "same"))
    )
    assert one == two
    assert len(one) == 12
    found = scan(folder, tmp_path / "manifest.csv", workers=1)
    assert len(found.manifest) == 12
    again = tymbal.prepare(tmp_path / "manifest.csv", tmp_path / "scanned", **SMALL)
    assert again.failures == []
    model = small_model(tmp_path / "model", labels=("owl", "wren"), pooling="mean")
    table = folder / "data" / "test-00000-of-00001.parquet"
    assert len(find_recordings(table)[0]) == 4
    monkeypatch.chdir(tmp_path)
    (first, *_), _ = find_recordings(table.relative_to(tmp_path))  # as a user names it
    assert first.path == Path(f"{table}#0/8.wav")
    assert tymbal.predict(model, table, tmp_path / "scores.csv", device="cpu").files == 4


def test_rows__without_sound_or_with_damage_are_named(tmp_path: Path) -> None:
    good = encoded("low")
    path = sound_table(tmp_path / "a.parquet", [good, None, b"", good[:2000], b"<html>", good], labels=[0] * 6)
    made = tymbal.prepare(path, tmp_path / "store", **SMALL)
    reasons = {Path(failure.file).name: failure.reason for failure in made.failures}
    assert set(reasons) == {"1.wav", "2.wav", "3.wav", "4.wav"}
    assert reasons["1.wav"].startswith("missing")
    assert reasons["2.wav"].startswith("empty")
    assert reasons["3.wav"].startswith("truncated")
    assert "web page" in reasons["4.wav"]
    assert len(Store.open(tmp_path / "store").index) == 2
    with pytest.raises(AudioError, match="missing"):
        read(f"{path}#6/x.wav")
    with pytest.raises(AudioError, match="missing"):
        read(f"{tmp_path}/none.parquet#0/x.wav")
    pq.write_table(pa.table({"file": ["a.wav"]}), tmp_path / "plain.parquet")
    with pytest.raises(AudioError, match="no column of it holds sounds"):
        read(f"{tmp_path}/plain.parquet#0/x.wav")


def test_table__that_is_damaged_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = sound_table(tmp_path / "a.parquet", [encoded("low")] * 3)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError, match=r"a\.parquet: it is no Parquet file"):
        read_source(path)


def test_table__is_read_by_the_row_group(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 1 << 17), dtype=np.uint8)
    path = sound_table(tmp_path / "a.parquet", [row.tobytes() for row in noise], group_rows=8)
    embedded._kept.cache_clear()
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    most = 0
    for number in range(64):
        with embedded.open_bytes(Path(f"{path}#{number}/x")) as opened:
            assert opened.read() == noise[number].tobytes()
        most = max(most, pa.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 8_000_000
    assert most < 4_000_000
    assert python < 3_000_000


def test_failures__travel_between_processes(tmp_path: Path) -> None:
    with pytest.raises(AudioError) as caught:
        read(f"{tmp_path}/none.parquet#0/x.wav")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
