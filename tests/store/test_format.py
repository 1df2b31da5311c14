"""What lies in a store folder, and what may be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_store import FRAMES, MELS

from tymbal.errors import StoreError
from tymbal.files import with_checksum
from tymbal.store.packed.format import MappedShard
from tymbal.store.packed.packed_store import Store


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(with_checksum({**json.loads(path.read_text()), **values})))


def test_open__damaged_description(store: Store) -> None:
    file = store.path / "store.json"
    whole = file.read_text()
    change(file, schema=2)
    with pytest.raises(StoreError, match="schema 2, this version of Tymbal reads 1\n  Update"):
        Store.open(store.path)
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(store.path)
    file.write_text(whole)
    change(file, dtype="float32")
    with pytest.raises(StoreError, match="dtype is 'float32'"):
        Store.open(store.path)
    file.write_text(whole)
    change(file, features={"sample_rate": 16000, "bins": 3})
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(store.path)


def test_gather__shard_of_another_shape(store: Store) -> None:
    wrong = np.zeros((5, MELS, FRAMES), np.float16)
    np.save(store.path / "shards" / "00000.npy", wrong)
    with pytest.raises(StoreError, match=r"00000.npy: holds float16 \[5, 4, 8\]"):
        Store.open(store.path).gather([0])


def test_read__shard_that_became_shorter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store.open(store.path)
    opened.gather([20])
    (store.path / "shards" / "00004.npy").write_bytes(b"")
    monkeypatch.setattr(MappedShard, "cached", lambda self, row: False)
    with pytest.raises(StoreError, match="shorter since it was opened"):
        opened.gather([20])
