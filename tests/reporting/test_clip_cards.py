"""Clips of a store as cards, with names, labels and one scale of brightness."""

from __future__ import annotations

import base64
import io
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tones import FEATURES, tone_store
from tymbal.pages.players import Sounds
from tymbal.reporting.clip_cards import Clips, clip_name
from tymbal.store.packed.writer import Entry, write_store


def clips_of(folder: Path) -> Clips:
    store = tone_store(folder / "store", clips=4)
    return Clips(store, Sounds(most=9, seconds=5.0, beside=folder, numbers=count(1)))


@pytest.mark.parametrize(
    ("file", "start", "name"),
    [
        ("/a/b/c.wav", 0.0, "b/c.wav"),
        ("/a/b/c.wav", 1.25, "b/c.wav, from 1.2 s"),
        ("D:\\b\\c.wav", 0.0, "b/c.wav"),
        ("", 0, ""),
    ],
)
def test_clip_name__is_the_end_of_its_path(file: str, start: float, name: str) -> None:
    assert clip_name(file, start) == name


def test_card__has_the_frames_that_are_sound(tmp_path: Path) -> None:
    clips = clips_of(tmp_path)
    text = clips.card(4, title="<low>", text="one")
    code = re.search(r'base64,([^"]*)"', text)
    assert code
    assert Image.open(io.BytesIO(base64.b64decode(code[1]))).size == (int(clips.store.real_frames[4]), 16)
    assert "<strong>&lt;low&gt;</strong><div>one</div>" in text
    assert 'alt="Spectrogram of &lt;low&gt;: low/0.wav"' in text
    assert "<audio" not in text  # the store's sounds are gone
    assert clips.labels(4) == ["low"]
    assert "sounds could not be had" in clips.sounds.remark()


def test_card__plays_its_part_of_the_recording(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16_000)), 8000)
    entry = Entry(id="a", file=str(tmp_path / "a.wav"), start=0.5, end=1.25, frames=0, labels=())
    values = np.zeros((16, 16), np.float32)
    store = write_store(tmp_path / "store", [(values, entry)], features=FEATURES, frames=16)
    clips = Clips(store, Sounds(most=1, seconds=5.0, beside=tmp_path, numbers=count(1)))
    name, player = clips.sound(0)
    assert name == "sound-1"
    code = re.search(r'flac;base64,([^"]*)"', player)
    assert code
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(code[1])))
    assert len(wave) / rate == 0.75
    assert clips.labels(0) == []
    assert clips.name(0).endswith("a.wav, from 0.5 s")


def test_between__is_that_of_the_store_without_padding(tmp_path: Path) -> None:
    clips = clips_of(tmp_path)
    sound = np.concatenate(
        [clips.store.gather(np.array([row]))[0][: clips.store.real_frames[row]].ravel() for row in range(12)]
    )
    low, high = clips.between
    assert low == pytest.approx(np.percentile(sound, 5), abs=1e-3)
    assert high == pytest.approx(np.percentile(sound, 99.8), abs=1e-3)
