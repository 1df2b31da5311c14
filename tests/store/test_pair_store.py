"""Pairs of views in both forms: one dataset reads them, one converts into the other, damage is left out and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tymbal
from pairs import FEATURES, FRAMES, pair_store
from tymbal.compat import PreGeneratedSpectrogramDataset
from tymbal.errors import SettingsError, StoreError
from tymbal.store.dataset import StoreDataset
from tymbal.store.packed.packed_store import PairStore, open_store
from tymbal.store.pairs.pair_store import PairFileStore


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    return pair_store(tmp_path / "store")


@pytest.fixture
def folder(store: PairStore, tmp_path: Path) -> Path:
    assert "12 files" in tymbal.convert(store.path, tmp_path / "files").summary()
    return tmp_path / "files"


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


def test_convert__there_and_back_loses_nothing(store: PairStore, folder: Path, tmp_path: Path) -> None:
    tymbal.convert(folder, tmp_path / "back")
    back = open_store(tmp_path / "back")
    assert isinstance(back, PairStore)
    order = [back.index["id"].to_pylist().index(name) for name in store.index["id"].to_pylist()]
    np.testing.assert_array_equal(back.gather(order), store.gather(store.rows()))
    assert (back.mean, back.std, back.features) == (store.mean, store.std, FEATURES)
    for column in ("id", "file", "labels", "split", "version", "frames", "start", "end"):
        assert back.index[column].take(order).to_pylist() == store.index[column].to_pylist()
    assert back.description.settings == store.description.settings
    with pytest.raises(SettingsError, match="cannot become a model"):
        tymbal.convert(store.path, tmp_path / "model", to="hf")


def test_dataset__gives_the_same_from_either_form(store: PairStore, folder: Path) -> None:
    packed = PreGeneratedSpectrogramDataset(store.path, split="train")
    files = PreGeneratedSpectrogramDataset(metadata(folder)["train"])
    assert len(packed) == len(files) == 10
    for index in (0, 9):
        for one, other in zip(packed[index], files[index], strict=True):
            assert one.shape == (1, 4, FRAMES)
            assert one.dtype == torch.float32
            assert one.equal(other)
    np.testing.assert_array_equal(packed[0][1][0].T.numpy(), store.gather([0])[0, 1].astype(np.float32))
    assert len(PreGeneratedSpectrogramDataset(folder, split="val")) == 2
    view1, view2 = next(iter(DataLoader(packed, batch_size=4)))
    assert view1.shape == view2.shape == (4, 1, 4, FRAMES)


def test_damage__is_left_out_and_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    entries = metadata(folder)["train"]
    Path(entries[1]["file"]).unlink()
    dataset = PreGeneratedSpectrogramDataset(entries)
    assert len(dataset) == 9
    bad = Path(entries[2]["file"])
    bad.write_bytes(bad.read_bytes()[:200])
    other = torch.load(entries[3]["file"], weights_only=True)
    short = {name: other[name][..., :3] for name in ("view1", "view2")}
    torch.save({**other, **short}, entries[3]["file"])
    (view1, _), *rest = list(DataLoader(dataset, batch_size=5))
    assert len(view1) == 3  # of 5: two are damaged, and no other clip stands in for them
    assert sum(len(view1) for view1, _ in [*rest]) == 4
    kinds = [failure.reason.partition(":")[0] for failure in dataset.failures]
    assert kinds == ["missing", "unreadable", "wrong shape"]
    assert bad.name in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(StoreError, match="cannot be read"):
        dataset[1]
    packed = tymbal.convert(folder, tmp_path / "packed")
    assert "9 packed pairs" in packed.summary()


def test_store_dataset__leaves_damaged_pairs_out_of_a_batch(folder: Path) -> None:
    source = PairFileStore(folder)
    dataset = StoreDataset(source, source.rows("train"))
    Path(source.files[2]).write_bytes(b"no tensors")
    batch = dataset.__getitems__([0, 1, 2, 3])
    assert batch["spectrogram"].shape == (3, 2, FRAMES, 4)
    assert batch["row"].tolist() == [0, 1, 3]


def test_nothing__is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no pairs"):
        PreGeneratedSpectrogramDataset(tmp_path)
    (tmp_path / "metadata.json").write_text("{]")
    with pytest.raises(StoreError, match="is damaged"):
        PreGeneratedSpectrogramDataset(tmp_path)
