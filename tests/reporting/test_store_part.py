"""What a report says of a store: balance, lengths, examples, copies, and what was left out."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from damaged import delete, pt_store
from tones import FEATURES, tone_store
from tymbal.pages.page import NotShownError
from tymbal.pages.players import Sounds
from tymbal.reporting.drawn_clips import Clips
from tymbal.reporting.store_part import balance, copies, examples, left_out, lengths, store_tiles
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store


def store_of(folder: Path, *clips: tuple[float, tuple[str, ...], str | None], frames: int = 16) -> Store:
    """A store whose clips are of one value each: value, labels, split."""
    entries = [
        (
            np.full((frames, 16), value, np.float32),
            Entry(id=str(n), file=f"/clips/{n}.wav", start=0.0, end=1.0, frames=0, labels=labels, split=split),
        )
        for n, (value, labels, split) in enumerate(clips)
    ]
    return write_store(folder / "store", entries, features=FEATURES, frames=frames)


def clips_of(store: Store) -> Clips:
    return Clips(store, Sounds(most=0, seconds=1.0, beside=store.path, numbers=count(1)))


def test_store_tiles__are_the_figures_of_the_store(tmp_path: Path) -> None:
    assert store_tiles(tone_store(tmp_path / "store", clips=4)) == {
        "clips": "12",
        "of sound": "0.1 min",
        "with a label": "12",
        "labels": "3",
        "spectrogram": "32 x 16",
        "sample rate": "8 kHz",
    }


def test_balance__counts_by_label_and_split(tmp_path: Path) -> None:
    clips = [(0, ("a",), "train"), (1, ("a",), "validation"), (2, ("a",), None), (3, ("b",), "validation")]
    store = store_of(tmp_path, *clips, (4, (), "train"))
    text = balance(store)
    assert "Clips: 2 train, 2 validation, 1 without a split." in text
    assert "The commonest label has 3.0 times as many as the rarest." in text
    assert "Labels that no training clip has: b." in text
    bars = re.findall(r'title="([^"]*)">(.*?)</div>', text)
    assert [said for said, _ in bars] == ["train 1, validation 1, other 1", "train 0, validation 1, other 0"]
    assert re.findall(r'class="(b\d)" style="width:([\d.]+)%', bars[0][1]) == [
        ("b0", "33.33"), ("b1", "33.33"), ("b2", "33.33"),
    ]  # fmt: skip
    assert re.findall(r'class="(b\d)" style="width:([\d.]+)%', bars[1][1]) == [("b1", "33.33")]
    with pytest.raises(NotShownError, match=r"no clip has a label \(1 train\)"):
        balance(store_of(tmp_path / "bare", (0, (), "train")))


def test_lengths__leave_out_the_padding(tmp_path: Path) -> None:
    text = lengths(tone_store(tmp_path / "store", clips=6))
    assert "Spectrograms are 0.32 s long; 33% of the clips are shorter and padded." in text
    assert "They come from 18 files in 4 groups." in text
    assert text.count("<rect") == 24
    even = lengths(store_of(tmp_path, (0, (), None), (1, (), None)))
    assert "all clips 0.16 s. They come from 2 files; none belongs to a group." in even
    assert "<rect" not in even


def test_examples__are_of_all_labels_first(tmp_path: Path) -> None:
    clips = clips_of(tone_store(tmp_path / "store", clips=5))
    titles = re.findall(r"<strong>(\w+)</strong>", examples(clips, most=4, seed=0))
    assert len(titles) == 4
    assert set(titles) == {"high", "low", "middle"}
    assert titles == sorted(titles)
    assert examples(clips, most=4, seed=0) == examples(clips, most=4, seed=0)


def test_copies__across_the_split_and_with_other_labels_are_named(tmp_path: Path) -> None:
    clips = [(1, ("a",), "train"), (1, ("a",), "validation"), (2, ("a",), "train"), (2, ("b",), "train")]
    store = store_of(tmp_path, *clips, (3, (), None))
    text = copies(clips_of(store))
    assert "4 clips have the same spectrogram as another one, in 2 groups." in text
    assert "1 of these groups lie on both sides of the split" in text
    assert "1 of these groups have different labels" in text
    assert "clips/<wbr>0.<wbr>wav = clips/<wbr>1.<wbr>wav" in text
    alone = store_of(tmp_path / "alone", (1, (), None), (2, (), None))
    assert copies(clips_of(alone)) == "<p>No two clips have the same spectrogram.</p>"


def test_left_out__counts_by_kind(tmp_path: Path) -> None:
    with pytest.raises(NotShownError, match=r"no failures\.csv"):
        left_out(tmp_path / "failures.csv")
    (tmp_path / "failures.csv").write_text("file,reason,advice\n")
    assert left_out(tmp_path / "failures.csv") == "<p>Nothing was left out.</p>"
    rows = ["a.wav,unreadable: it is text,Leave it out.", "b.wav,unreadable: torn,", "c.wav,empty: 0 s,"]
    (tmp_path / "failures.csv").write_text("\n".join(["file,reason,advice", *rows]) + "\n")
    text = left_out(tmp_path / "failures.csv")
    assert "<td>unreadable</td><td class=n>2</td>" in text
    assert "<td>empty</td><td class=n>1</td>" in text
    assert "Leave it out." in text


def test_copies__of_the_clips_that_can_be_read(tmp_path: Path) -> None:
    store = pt_store(tmp_path)
    delete(store, 3, 20)
    clips = Clips(store, Sounds(most=0, seconds=1.0, beside=tmp_path, numbers=count()))
    assert "No two clips have the same spectrogram." in copies(clips)
