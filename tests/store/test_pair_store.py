"""Pairs of views in both forms: one dataset reads them, one converts into the other, damage is left out and named."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tymbal
from pairs import FEATURES, FRAMES, pair_store
from tymbal.audio.failures import write_failures
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
    with pytest.raises(
        StoreError, match=rf"{bad.name}: unreadable: it is damaged, or holds no pair of views\n  Copy it"
    ):
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


def test_dataset__gives_float32_as_it_is_in_the_files(folder: Path) -> None:
    entries = metadata(folder)["train"]
    content = torch.load(entries[0]["file"], weights_only=True)
    exact = {name: content[name] + 1 / 3 for name in ("view1", "view2")}
    torch.save({**content, **exact}, entries[0]["file"])
    del entries[0]["tymbal"]
    view1, view2 = PreGeneratedSpectrogramDataset(entries)[0]
    assert torch.equal(view1, exact["view1"])
    assert torch.equal(view2, exact["view2"])


def test_pairs__a_byte_that_has_changed_is_noticed(folder: Path) -> None:
    source = PairFileStore(folder)
    data = bytearray(source.files[0].read_bytes())
    place = data.index(torch.load(source.files[0], weights_only=True)["view1"].numpy().tobytes()[:32])
    data[place] ^= 1  # the last bit of a number
    source.files[0].write_bytes(data)
    assert source.pair(0) is None
    assert source.failures[0].reason == "unreadable: it is not what was written: its checksum differs"


def test_pairs__what_is_damaged_in_the_middle_is_appended_to_a_table(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "failures.csv"
    source = PairFileStore(folder, failures_to=table)
    write_failures(table, source.failures)
    source.files[3].write_bytes(b"")
    source.files[4].write_bytes(source.files[4].read_bytes()[:300])
    dataset = StoreDataset(source, source.rows())
    for _ in range(2):
        assert len(dataset.__getitems__(list(range(12)))["row"]) == 10
    with table.open(newline="") as file:
        rows = [(Path(row["file"]), row["reason"]) for row in csv.DictReader(file)]
    assert rows == [
        (source.files[3], "empty: it has no bytes"),
        (source.files[4], "unreadable: it is damaged, or holds no pair of views"),
    ]
