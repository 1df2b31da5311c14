from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_store import FRAMES, MELS, small_store, spectrogram

from tymbal.errors import StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.store.packed import packed_store as module
from tymbal.store.packed.format import ShardFile
from tymbal.store.packed.packed_store import Store


def padded(number: int) -> np.ndarray:
    result = np.full((FRAMES, MELS), LOG_FLOOR, np.float16)
    values = spectrogram(number)
    result[: len(values)] = values
    return result


def test_store__gives_back_what_was_written(store: Store) -> None:
    assert (len(store), store.frames, store.mels) == (23, FRAMES, MELS)
    assert len(store.description.shards) == 5
    rows = np.random.default_rng(0).permutation(23)
    gathered = store.gather(rows)
    assert gathered.dtype == np.float16
    np.testing.assert_array_equal(gathered, np.stack([padded(i) for i in rows]))
    assert store.index["id"].to_pylist() == [f"clip{i}" for i in range(23)]
    np.testing.assert_array_equal(store.real_frames, [1 + i % FRAMES for i in range(23)])


def test_store__shards_are_plain_npy_files(store: Store) -> None:
    shard = np.load(store.path / "shards" / "00004.npy")
    np.testing.assert_array_equal(shard, np.stack([padded(i) for i in (20, 21, 22)]))


def test_store__statistics_are_those_of_real_frames(store: Store) -> None:
    real = np.concatenate([spectrogram(i).astype(np.float16) for i in range(23)]).astype(np.float64)
    assert store.mean == pytest.approx(real.mean(), rel=1e-12)
    assert store.std == pytest.approx(real.std(), rel=1e-12)
    assert store.description.real_frames == len(real)


def test_gather__into_given_memory(store: Store) -> None:
    out = np.empty((2, FRAMES, MELS), np.float16)
    assert store.gather([7, 7], out=out) is out
    np.testing.assert_array_equal(out, np.stack([padded(7), padded(7)]))
    with pytest.raises(ValueError, match="not C-contiguous float16"):
        store.gather([7], out=out)


def test_gather__nothing(store: Store) -> None:
    assert store.gather([]).shape == (0, FRAMES, MELS)
    store.announce([])


@pytest.mark.parametrize("row", [-1, 23])
def test_gather__row_that_is_not_there(store: Store, row: int) -> None:
    with pytest.raises(IndexError, match="store of 23"):
        store.gather([0, row])


def test_gather__never_overwrites_a_result_that_is_in_use(store: Store) -> None:
    first = store.gather([1, 2])
    view = first[1:]
    del first
    store.gather([3, 4])
    store.gather([5, 6])
    np.testing.assert_array_equal(view[0], padded(2))


def test_gather__reads_past_the_map_what_is_not_cached(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[tuple[str, int]] = []
    monkeypatch.setattr(ShardFile, "cached", lambda self, row: False)
    monkeypatch.setattr(ShardFile, "announce", lambda self, row: announced.append((self.path.name, row)))
    np.testing.assert_array_equal(store.gather([22, 0, 6]), np.stack([padded(22), padded(0), padded(6)]))
    assert announced == [("00004.npy", 2), ("00000.npy", 0), ("00001.npy", 1)]


def test_announce__asks_only_a_few_rows_where_all_are_cached(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ShardFile, "cached", lambda self, row: asked.append(row) or True)
    monkeypatch.setattr(ShardFile, "announce", lambda self, row: pytest.fail("announced what is cached"))
    store.announce(np.arange(20))
    assert len(asked) == 2


def test_store__travels_as_its_path(store: Store) -> None:
    store.gather([0])
    sent = pickle.dumps(store)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent).gather([9]), store.gather([9]))


def test_open__no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"has no store\.json"):
        Store.open(tmp_path / "empty")
    (tmp_path / "half" / "work").mkdir(parents=True)
    with pytest.raises(StoreError, match="preparation has not finished\n  Run the same"):
        Store.open(tmp_path / "half")


def test_open__damaged_shards(store: Store) -> None:
    shard = store.path / "shards" / "00002.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=rf"00002.npy: has {len(whole) - 1} bytes, not {len(whole)}"):
        Store.open(store.path)
    shard.unlink()
    with pytest.raises(StoreError, match=r"00002.npy: is missing"):
        Store.open(store.path)


def test_open__damaged_index(store: Store, tmp_path: Path) -> None:
    index = store.path / "index.parquet"
    other = small_store(tmp_path / "other", rows=22)
    shutil.copy(other.path / "index.parquet", index)
    with pytest.raises(StoreError, match=r"index.parquet: is not what was written: its checksum differs"):
        Store.open(store.path)
    description = json.loads((store.path / "store.json").read_text())
    del description["checksum"], description["index_crc"]  # as earlier versions wrote it
    (store.path / "store.json").write_text(json.dumps(description))
    with pytest.raises(StoreError, match=r"index has 22 spectrograms, the shards 23, store.json 23"):
        Store.open(store.path)
    index.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"index.parquet: cannot be read"):
        Store.open(store.path)
    index.unlink()
    with pytest.raises(StoreError, match=r"index.parquet: is missing"):
        Store.open(store.path)


def test_store__says_what_it_is(store: Store) -> None:
    assert repr(store).endswith("23 spectrograms of 8 frames x 4 mel bins)")
    assert {"PairStore", "Store", "WaveStore", "open_store"} <= set(module.__all__)
