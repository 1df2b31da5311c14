"""Clips of a store as cards with one scale of brightness, and on maps: which, where, and in what colour."""

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
from tymbal.pages.page import NotShownError
from tymbal.pages.players import Sounds
from tymbal.reporting.drawn_clips import Clips, choose_rows, clip_name, embedding_map
from tymbal.settings import ReportSettings
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store


def clips_of(folder: Path, store: Store | None = None) -> Clips:
    sounds = Sounds(most=9, seconds=5.0, beside=folder, numbers=count(1))
    return Clips(store or tone_store(folder / "store", clips=4), sounds)


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


def test_choose_rows__takes_those_with_a_label_first(tmp_path: Path) -> None:
    entries = [
        Entry(id=str(n), file="", start=0.0, end=1.0, frames=0, labels=("a",) if n % 3 == 0 else ()) for n in range(30)
    ]
    values = np.zeros((8, 16), np.float32)
    clips = clips_of(
        tmp_path, write_store(tmp_path / "s", [(values, entry) for entry in entries], features=FEATURES, frames=8)
    )
    few, more = (choose_rows(clips, most=most, seed=1).tolist() for most in (8, 15))
    assert len(few) == 8
    assert all(row % 3 == 0 for row in few)
    assert few == sorted(few)
    assert {row for row in more if row % 3 == 0} == set(range(0, 30, 3))
    assert len(more) == 15
    assert choose_rows(clips, most=8, seed=1).tolist() == few


def test_embedding_map__groups_lie_apart_in_their_own_colours(tmp_path: Path) -> None:
    clips, rows = clips_of(tmp_path), np.arange(12)
    vectors = np.zeros((12, 3))
    vectors[:, :2] = (np.repeat([0.0, 10.0, 20.0], 4) + 0.1 * np.arange(12))[:, None]
    vectors[:, 2] = 0.01 * (-1.0) ** np.arange(12)
    text = embedding_map({"Numbers": vectors}, clips, rows, ReportSettings(map="pca", sounds=0))
    assert "12 of 12 clips, laid out by the two principal components." in text
    assert "Numbers. 100% of the clips have a nearest neighbour of their label." in text
    across = {}
    for group in range(3):
        inside = text.split(f'<g data-group="{group}"')[1].split("</g>")[0]
        middles = re.findall(r'cx="([^"]*)"|points="([^,]*),', inside)
        across[group] = sorted(float(circle or corner) for circle, corner in middles)
        assert len(across[group]) == 4
        assert inside.count(f'class="f{group}"') == 4
    ordered = sorted(across.values())
    assert ordered[0][-1] < ordered[1][0] <= ordered[1][-1] < ordered[2][0]
    assert "rim" not in text  # nothing plays


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_embedding_map__is_the_same_each_time(tmp_path: Path, method: str) -> None:
    clips, vectors = clips_of(tmp_path), np.random.default_rng(0).normal(size=(12, 5))
    drawn = [embedding_map({"": vectors}, clips, np.arange(12), ReportSettings(map=method)) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_embedding_map__of_too_few_clips_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(NotShownError, match="7 clips are too few"):
        embedding_map({"": np.zeros((7, 3))}, clips_of(tmp_path), np.arange(7), ReportSettings())


def test_embedding_map__vectors_that_are_all_the_same_lie_on_one_place(tmp_path: Path) -> None:
    text = embedding_map({"": np.ones((9, 3))}, clips_of(tmp_path), np.arange(9), ReportSettings())
    assert "nan" not in text
