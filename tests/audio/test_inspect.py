import hashlib

import numpy as np
import pytest
from made_sounds import cut, tone

import tymbal.audio.inspect as module
from tymbal.audio.inspect import inspect


def test_inspect__good_file(write):
    path = write("a.flac", np.stack([tone(1.5, 22_050)] * 2, axis=1), 22_050)
    report = inspect(path)
    assert report.problem is None
    assert report.failure is None
    assert (report.info.frames, report.info.sample_rate, report.info.channels) == (33_075, 22_050, 2)
    assert report.hash == hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    assert report.peak == pytest.approx(np.abs(tone(1.5, 22_050)).max(), abs=1e-4)


def test_inspect__long_file_is_read_in_pieces(write, monkeypatch):
    path = write("a.wav", tone(3.0, 16_000))
    whole = inspect(path)
    monkeypatch.setattr(module, "_PIECE", 777)
    assert inspect(path) == whole


def test_inspect__real_files(shared):
    for path in sorted((shared / "data" / "esc10" / "rain").glob("*.ogg"))[:5]:
        report = inspect(path)
        assert (report.problem, report.info.sample_rate) == (None, 44_100)
        assert 3 < report.info.duration < 8


@pytest.mark.parametrize(
    ("wave", "kind"),
    [
        (np.zeros(16_000), "silent"),
        (np.full(16_000, 0.25), "silent"),
        (tone(0.02, 16_000), "too short"),
        (np.array([0.1, np.nan] * 8000), "not finite"),
        (np.empty(0), "empty"),
    ],
)
def test_inspect__kinds(write, wave, kind):
    path = write("a.wav", wave.astype(np.float32), subtype="FLOAT")
    report = inspect(path)
    assert report.failure.kind == kind
    assert report.failure.file == str(path)
    assert report.advice
    assert report.hash


def test_inspect__silence_is_a_setting(write):
    path = write("a.wav", 1e-3 * tone(1.0, 16_000), subtype="FLOAT")
    assert inspect(path).problem is None
    assert inspect(path, silence_db=-60).problem == "silent: its peak is -70 dB"


def test_inspect__truncated_and_missing_and_folder(write, tmp_path):
    assert inspect(cut(write("a.ogg"))).failure.kind == "truncated"
    assert inspect(tmp_path / "none.wav").failure.kind == "missing"
    assert inspect(tmp_path).failure.kind == "unreadable"
