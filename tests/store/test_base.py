"""What every store has: splits, labels, clips, and one spectrogram of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_store import small_store

import tymbal
from pairs import CLIPS, pair_store
from tones import FEATURES, tone_folder
from tymbal.config import to_keywords
from tymbal.errors import StoreError
from tymbal.store.packed.packed_store import Store, open_store


def test_rows__of_a_split(store: Store) -> None:
    np.testing.assert_array_equal(store.rows("validation"), [0, 5, 10, 15, 20])
    assert len(store.rows("train")) == 18
    np.testing.assert_array_equal(store.rows(), np.arange(23))
    with pytest.raises(StoreError, match="no split 'test'\n  Its splits are: train, validation"):
        store.rows("test")


def test_labels__one_a_row(store: Store) -> None:
    assert store.labels == ["cicada", "frog"]
    assert not store.multilabel
    np.testing.assert_array_equal(store.label_indices([0, 1, 2, 3]), [-1, 0, 1, -1])
    np.testing.assert_array_equal(store.label_matrix([2, 0, 1]), [[0, 1], [0, 0], [1, 0]])


def test_labels__several_a_row(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", several=True)
    assert store.multilabel
    np.testing.assert_array_equal(store.label_matrix([1, 2, 0]), [[1, 1], [0, 1], [0, 0]])
    with pytest.raises(StoreError, match="several labels"):
        store.label_indices([0])


def test_splits__are_those_of_any_row(store: Store) -> None:
    assert store.splits == {"train", "validation"}


def test_singles__of_spectrograms_are_the_store_itself(store: Store) -> None:
    assert store.singles() is store


def test_singles__of_pairs_are_the_first_views_of_each_clip(tmp_path: Path) -> None:
    pairs = pair_store(tmp_path / "pairs")
    singles = pairs.singles()
    firsts = [row for row, version in enumerate(pairs.index["version"].to_pylist()) if version == 0]
    assert len(singles) == CLIPS == len(firsts)
    assert singles.index["id"].to_pylist() == pairs.index["id"].take(firsts).to_pylist()
    np.testing.assert_array_equal(singles.gather(singles.rows()), pairs.gather(firsts)[:, 0])
    np.testing.assert_array_equal(singles.gather([4, 1]), pairs.gather([firsts[4], firsts[1]])[:, 0])
    assert singles.real_frames.tolist() == [pairs.frames] * CLIPS
    assert (singles.mean, singles.features, singles.labels) == (pairs.mean, pairs.features, pairs.labels)
    out = np.empty((2, singles.frames, singles.mels), np.float16)
    assert singles.gather([0, 2], out) is out
    np.testing.assert_array_equal(out, pairs.gather([firsts[0], firsts[2]])[:, 0])
    with pytest.raises(IndexError):
        singles.gather([CLIPS])


def test_singles__of_waveforms_are_their_spectrograms(tmp_path: Path) -> None:
    sound = tone_folder(tmp_path / "sound", clips=2)
    how = {**to_keywords(FEATURES), "window": 0.5, "workers": 1}
    tymbal.prepare(sound, tmp_path / "waves", views=1, write="waveforms", **how)
    waves = open_store(tmp_path / "waves")
    singles = waves.singles()
    assert singles.gather([0]).shape == (1, waves.frames, waves.mels)
    store = tymbal.prepare(sound, tmp_path / "store", **how).store
    places = store.index["id"].to_pylist()
    rows = [places.index(name.rpartition("@v")[0] or name) for name in singles.index["id"].to_pylist()]
    frames = int(store.real_frames.min())  # the frames behind have the end of the sound in them, or are padding
    assert frames >= 30
    np.testing.assert_allclose(
        singles.gather(singles.rows())[:, :frames].astype(np.float32),
        store.gather(rows)[:, :frames].astype(np.float32),
        atol=0.05,
    )


def test_waveforms__are_not_there_in_a_store_of_spectrograms(store: Store) -> None:
    assert store.samples is None
    with pytest.raises(StoreError, match="holds spectrograms, no waveforms"):
        store.waveforms([0])
