"""Sounds of pages, as another library decodes them."""

from __future__ import annotations

import base64
import io
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tymbal.pages.players import Sounds, flac, player


def decoded(text: str) -> tuple[np.ndarray, int]:
    code = re.search(r'src="data:audio/flac;base64,([^"]*)"', text)
    assert code
    return soundfile.read(io.BytesIO(base64.b64decode(code[1])))


def tone(path: Path, *, rate: int = 8000, seconds: float = 1.0, level: float = 0.1, offset: float = 0.0) -> Path:
    time = np.arange(round(rate * seconds)) / rate
    soundfile.write(path, level * np.sin(2 * np.pi * 440 * time) + offset, rate)
    return path


def sounds(folder: Path, **settings: object) -> Sounds:
    return Sounds(**{"most": 9, "seconds": 5.0, "beside": folder, "numbers": count(3), **settings})


def test_flac__is_the_waveform_to_16_bits() -> None:
    wave = np.random.default_rng(0).uniform(-0.9, 0.9, 4000).astype(np.float32)
    found, rate = decoded(player(flac(wave, 8000)))
    assert rate == 8000
    np.testing.assert_allclose(found, wave, atol=2**-15)
    assert 'id="' not in player(b"")
    assert player(b"", name="one").startswith('<audio id="one" controls')


def test_sounds__are_evened_out_and_named_one_after_the_other(tmp_path: Path) -> None:
    file, given = tone(tmp_path / "a.wav", offset=0.2), sounds(tmp_path)
    name, text = given.named(str(file), 0.25, 0.75)
    wave, rate = decoded(text)
    assert (name, rate, len(wave)) == ("sound-3", 8000, 4000)
    assert float(np.abs(wave).max()) == pytest.approx(0.7, abs=1e-3)
    assert float(wave.mean()) == pytest.approx(0, abs=1e-3)
    assert given.named(str(file))[0] == "sound-4"
    assert given.remark() == "Loudness of the sounds is evened out."


def test_sounds__no_longer_and_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    file = str(tone(tmp_path / "a.wav", seconds=3))
    assert len(decoded(sounds(tmp_path, seconds=0.5).of(file))[0]) == 4000
    few = sounds(tmp_path, most=1)
    assert few.of(file)
    assert few.of(file) == ""
    small = sounds(tmp_path, room=10)
    assert small.of(file)  # the first that is over the edge is the last
    assert small.named(file) == ("", "")


def test_sounds__ultrasound_is_played_slower(tmp_path: Path) -> None:
    file, given = tone(tmp_path / "bat.wav", rate=192_000), sounds(tmp_path, seconds=2.0)
    wave, rate = decoded(given.of(str(file)))
    assert rate == 19_200
    assert len(wave) / rate == pytest.approx(2.0)  # 0.2 s of the recording
    assert "Ultrasound is played 10 times slower." in given.remark()


def test_sounds__what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    given = sounds(tmp_path)
    assert given.remark() == ""
    assert given.of("gone.wav") == given.of("also.wav") == ""
    assert given.remark().startswith("2 sounds could not be had; the first: gone.wav: ")


def test_sounds__files_are_looked_for_where_the_page_is_about(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    beside, given = tone(tmp_path / "a.wav"), sounds(tmp_path / "store")
    assert given.locate("a.wav") == beside
    inside = tone(tmp_path / "store" / "b.wav")
    assert given.locate("/elsewhere/b.wav") == inside
    assert given.locate("/elsewhere/c.wav") == Path("/elsewhere/c.wav")
