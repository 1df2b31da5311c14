"""Kept vectors: read as written, filled row by row, and never taken for others."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from training_setup import make_store
from tymbal.errors import StoreError
from tymbal.store.dataset import StoreDataset
from tymbal.store.vectors import RowVectors

NONE = np.empty(0, np.int64)


def filled(folder: Path, *, rows: int = 6) -> RowVectors:
    """Vectors of rows 0, 2 and 5, nothing for 1, of which 3 and 4 are still to come."""
    vectors = RowVectors.begin(folder, count=rows, parts=2, width=3, facts={"teacher": "t"})
    vectors.add(np.array([5, 0, 2]), values(), np.array([1]))
    return vectors


def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 2, 3)).astype(np.float32)


def test_vectors__are_read_as_they_were_written(tmp_path: Path):
    filled(tmp_path / "kept")
    opened = RowVectors.open(tmp_path / "kept")
    assert (opened.count, opened.parts, opened.width, opened.facts) == (6, 2, 3, {"teacher": "t"})
    assert np.array_equal(opened.gather(np.array([0, 5, 2, 0])), values()[[1, 0, 2, 1]])
    assert opened.known(np.arange(6)).tolist() == [True, False, True, False, False, True]
    assert opened.pending(np.arange(6)).tolist() == [3, 4]
    again = pickle.loads(pickle.dumps(opened))
    assert np.array_equal(again.gather(np.array([2])), values()[[2]])


def test_vectors__are_gone_on_with(tmp_path: Path):
    filled(tmp_path / "kept")
    more = RowVectors.begin(tmp_path / "kept", count=6, parts=2, width=3, facts={})
    more.add(np.array([3]), np.ones((1, 2, 3), np.float32), np.array([4]))
    assert more.pending(np.arange(6)).tolist() == []
    assert more.gather(np.array([3])).tolist() == np.ones((1, 2, 3)).tolist()
    with pytest.raises(StoreError, match="vectors of other clips"):
        RowVectors.begin(tmp_path / "kept", count=7, parts=2, width=3, facts={})


@pytest.mark.parametrize("name", ["vectors.bin", "marks.bin"])
def test_vectors__that_are_cut_while_they_are_open_are_an_error(name: str, tmp_path: Path):
    vectors = filled(tmp_path / "kept")
    vectors.gather(np.array([5]))
    os.truncate(tmp_path / "kept" / name, 4)
    with pytest.raises(StoreError, match="cut short"):
        vectors.gather(np.array([5]))


def test_vectors__of_zeros_count_as_known(tmp_path: Path):
    vectors = RowVectors.begin(tmp_path / "kept", count=2, parts=1, width=0x10, facts={})
    vectors.add(np.array([0]), np.zeros((1, 1, 16), np.float32), NONE)
    assert vectors.known(np.arange(2)).tolist() == [True, False]


def test_moments__are_those_of_each_number(tmp_path: Path):
    vectors = RowVectors.begin(tmp_path / "kept", count=9000, parts=1, width=2, facts={})
    drawn = (np.random.default_rng(1).normal(size=(9000, 1, 2)) * [2, 30] + [100, -5]).astype(np.float32)
    vectors.add(np.arange(9000), drawn, NONE)
    mean, deviation = vectors.moments(np.arange(9000))
    assert np.allclose(mean, drawn.mean(0, dtype=np.float64), rtol=1e-9)
    assert np.allclose(deviation, drawn.std(0, dtype=np.float64), rtol=1e-6)


def test_vectors__that_have_changed_on_the_disk_are_noticed(tmp_path: Path):
    filled(tmp_path / "kept")
    file = tmp_path / "kept" / "vectors.bin"
    content = bytearray(file.read_bytes())
    content[2 * 24 + 5] ^= 1
    file.write_bytes(content)
    opened = RowVectors.open(tmp_path / "kept")
    opened.gather(np.array([0, 5]))
    with pytest.raises(StoreError, match="row 2 has other vectors than were written"):
        opened.gather(np.array([2]))
    with pytest.raises(StoreError, match="row 3 has no vectors"):
        opened.gather(np.array([3]))
    file.write_bytes(content[:-1])
    with pytest.raises(StoreError, match="cut short"):
        RowVectors.open(tmp_path / "kept")
    (tmp_path / "kept" / "vectors.json").write_text("{}")
    with pytest.raises(StoreError, match="cannot be read"):
        RowVectors.open(tmp_path / "kept")


def test_dataset__gives_the_vectors_of_its_rows(tmp_path: Path):
    store = make_store(tmp_path / "store", train=6, validation=0)
    store.taught = filled(tmp_path / "kept")
    batch = StoreDataset(store, np.array([5, 0])).__getitems__([1, 0])
    assert batch["row"].tolist() == [0, 5]
    assert np.array_equal(batch["target"].numpy(), values()[[1, 0]])
    assert "target" not in StoreDataset(store, np.array([0, 1])).__getitems__([0])  # not all of them are known


def test_filling__is_for_one_process(tmp_path: Path):
    vectors = filled(tmp_path / "kept")
    with (
        vectors.filling(),
        pytest.raises(StoreError, match="another process computes these vectors"),
        RowVectors.open(tmp_path / "kept").filling(),
    ):
        pass
    with vectors.filling():
        vectors.add(np.array([3]), np.ones((1, 2, 3), np.float32), NONE)
    assert vectors.known(np.array([3])).all()
