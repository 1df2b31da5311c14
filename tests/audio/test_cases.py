"""Every file of `../shared/cases`, with the right values of its README: sound and tables that lost something once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tymbal import prepare, scan
from tymbal.audio.decode import info, read
from tymbal.audio.inspect import inspect
from tymbal.audio.sources import read_source
from tymbal.errors import ManifestError


@pytest.fixture(scope="module")
def cases(shared: Path) -> Path:
    if not (shared / "cases").is_dir():
        pytest.skip(f"needs the cases in {shared / 'cases'}")
    return shared / "cases"


SOUND = {
    "three_joined.mp3": (268_463, 44_100),
    "three_chained.ogg": (264_856, 44_100),
    "xing_bytes_and_frames_short.mp3": (74_970, 44_100),
    "xing_frames_half.mp3": (74_970, 44_100),
    "id3_before_riff.wav": (32_000, 8_000),
    "wav_data_size_zero.wav": (37_485, 22_050),
    "au_data_size_zero.au": (37_485, 22_050),
    "mp3_in_wav.wav": (77_184, 44_100),
    "antiphase.wav": (37_485, 22_050),
}


def test_cases__are_all_here(cases):
    assert {path.name for path in (cases / "sound").iterdir()} == SOUND.keys()


@pytest.mark.parametrize("name", SOUND)
def test_sound__is_read_to_its_end_by_all(cases, name):
    samples, rate = SOUND[name]
    wave, read_rate = read(cases / "sound" / name)
    assert read_rate == rate
    assert abs(len(wave) - samples) <= 1024  # a codec's frame
    report = inspect(cases / "sound" / name)
    assert report.problem is None
    assert report.info.frames == info(cases / "sound" / name).frames == len(wave)


@pytest.mark.parametrize("name", ["three_joined.mp3", "three_chained.ogg"])
def test_sound__all_three_tones(cases, name):
    for start, frequency in ((0.2, 600), (2.3, 1200), (4.4, 1800)):
        part, rate = read(cases / "sound" / name, start=start, end=start + 1.5)
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        assert np.argmax(spectrum) * rate / len(part) == pytest.approx(frequency, abs=5)


def test_sound__channels_that_cancel_are_said(cases):
    report = inspect(cases / "sound" / "antiphase.wav")
    assert report.peak > 0.1
    assert any("cancel each other" in remark for remark in report.info.remarks)


def test_sound__a_scan_and_a_store_of_its_manifest_have_all_of_it(cases, tmp_path):
    result = scan(cases / "sound", tmp_path / "manifest.csv", labels="none", workers=1)
    assert result.failures == []
    lengths = {Path(clip.file).name: clip.duration for clip in result.manifest}
    assert lengths == {name: pytest.approx(samples / rate, abs=1024 / rate) for name, (samples, rate) in SOUND.items()}
    store = prepare(tmp_path / "manifest.csv", tmp_path / "store", window=8.0, workers=1).store
    rows = {Path(row["file"]).name: row["end"] for row in store.index.to_pylist()}
    assert rows == {name: pytest.approx(seconds, abs=0.001) for name, seconds in lengths.items()}


def test_tables__labels_as_bytes(cases):
    listing = read_source(cases / "tables" / "labels_as_bytes.parquet")
    assert {clip.labels for clip in listing.clips} == {("owl",), ("wren",)}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("two_label_columns.csv", "the columns 'label' and 'label' have one meaning"),
        ("blank_lines.csv", "start in row 4 is 'x'"),
    ],
)
def test_tables__errors_that_say_where(cases, name, says):
    with pytest.raises(ManifestError, match=says) as caught:
        read_source(cases / "tables" / name)
    assert len(str(caught.value)) < 600


def test_tables__raven_selections(cases):
    (clip,) = read_source(cases / "tables" / "raven_as_list.txt").clips
    assert (clip.id, clip.labels) == ("a.wav#0.1-0.5", ("rain",))


def test_tables__sounds_in_a_parquet_table(cases):
    clips = read_source(cases / "tables" / "huggingface_audio.parquet").clips
    assert clips
    assert all("huggingface_audio.parquet#" in clip.file for clip in clips)
