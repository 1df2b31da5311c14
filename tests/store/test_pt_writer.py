"""A store written as `.pt` files and lists, and read back the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import FRAMES, MELS, small_store, spectrogram

from tymbal.settings import FeatureSettings
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store
from tymbal.store.pt.pt_folder import open_pt
from tymbal.store.pt.pt_writer import write_pt


def same(one, other) -> None:
    """Whether two stores have the same spectrograms with the same names, in whatever order."""
    places = {id_: row for row, id_ in enumerate(other.index["id"].to_pylist())}
    order = np.array([places[id_] for id_ in one.index["id"].to_pylist()])
    np.testing.assert_array_equal(one.gather(one.rows()), other.gather(order))
    for column in ("file", "start", "end", "frames", "labels", "group", "split"):
        assert one.index[column].to_pylist() == other.index[column].take(order).to_pylist(), column
    for name in ("frames", "mels", "features", "mean", "std", "labels", "padding"):
        assert getattr(one, name) == getattr(other, name), name


def test_write_pt__comes_back_as_the_same_store(store: Store, tmp_path: Path):
    write_pt(tmp_path / "pt", store)
    same(store, open_pt(tmp_path / "pt", padding=None))
    names = {path.name for path in (tmp_path / "pt").iterdir()}
    assert names == {"train.json", "train", "validation.json", "validation", "labels.csv"}
    value = torch.load(tmp_path / "pt" / "train" / "clip7.pt", weights_only=True)
    assert value.dtype == torch.float16
    np.testing.assert_array_equal(value.numpy(), spectrogram(7).astype(np.float16))
    assert value.untyped_storage().nbytes() == value.numel() * 2


def test_write_pt__lists_are_those_of_ssast(store: Store, tmp_path: Path):
    write_pt(tmp_path / "pt", store)
    data = json.loads((tmp_path / "pt" / "train.json").read_text())["data"]
    assert len(data) == 18
    assert data[0]["wav"] == "/sound/clip1.wav"
    assert data[0]["labels"] == "cicada"
    table = (tmp_path / "pt" / "labels.csv").read_text().splitlines()
    assert table == ["index,mid,display_name", "0,cicada,cicada", "1,frog,frog"]


def awkward(path: Path) -> Store:
    """Two files of one name, parts of one file, labels with commas, no splits, several labels, unknown features."""
    clips = [
        Entry(id="rain/a.wav", file="/sound/rain/a.wav", start=0, end=None, frames=0, labels=("Rain, heavy", "label1")),
        Entry(id="snow/A.wav", file="/sound/snow/A.wav", start=0, end=None, frames=0, labels=("label1",)),
        Entry(id="n.wav#0-1", file="C:\\sound\\n.wav", start=0, end=1.0, frames=0),
        Entry(id="n.wav#1-2", file="C:\\sound\\n.wav", start=1.0, end=2.0, frames=0, group="night"),
        Entry(id="snow_A.wav", file="snow_A.wav.flac", start=0, end=None, frames=0, labels=("b",)),
        Entry(id="x" * 300, file="/y/n.wav", start=0, end=None, frames=0),
    ]
    values = [(spectrogram(number), clip) for number, clip in enumerate(clips)]
    return write_store(path, values, features=None, mels=MELS, frames=FRAMES, padding=0.0, statistics=(-1.5, 2.5))


def test_write_pt__names_that_do_not_fit_are_mended_and_come_back(tmp_path: Path):
    store = awkward(tmp_path / "store")
    assert (store.features, store.mean, store.std, store.padding) == (None, -1.5, 2.5, 0.0)
    write_pt(tmp_path / "pt", store)
    same(store, open_pt(tmp_path / "pt", padding=None))
    same(store, open_pt(tmp_path / "pt" / "spectrograms.json", padding=None))
    files = sorted(path.stem for path in (tmp_path / "pt" / "spectrograms").iterdir())
    assert files[1:] == ["n.wav_0-1", "n.wav_1-2", "rain_a.wav", "snow_A.wav", "snow_A.wav_2"]
    assert len(files[0]) < 180
    assert len({name.lower() for name in files}) == 6
    data = json.loads((tmp_path / "pt" / "spectrograms.json").read_text())["data"]
    assert [entry.get("labels") for entry in data] == ["label0,label1", "label1", None, None, "b", None]
    assert data[2]["wav"] == "C:\\sound\\n.wav_0-1.wav"


def test_write_pt__whole_or_not_at_all(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_pt(tmp_path / "pt", store)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_store__says_its_padding_and_features(tmp_path: Path):
    store = small_store(tmp_path / "store")
    assert json.loads((store.path / "store.json").read_text())["padding"] == store.padding < -15
    other = Store.open(awkward(tmp_path / "other").path)
    assert (other.features, other.padding, other.mels) == (None, 0.0, MELS)
    assert (other.gather([0])[0, 1:] == 0).all()
    with pytest.raises(ValueError, match="mels is needed"):
        write_store(tmp_path / "x", [], features=None, frames=FRAMES)
    assert FeatureSettings(mel_bins=MELS) == store.features
