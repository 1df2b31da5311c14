from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import small_store
from torch.utils.data import DataLoader

from damaged import delete, pt_store
from tymbal.errors import StoreError
from tymbal.features.normalisation import Normalisation
from tymbal.store.base import DamagedRowsError
from tymbal.store.dataset import StoreDataset, normalised_batches, readable_batches, whole_batch
from tymbal.store.packed.packed_store import Store


def test_getitems__is_a_whole_batch(store: Store) -> None:
    dataset = StoreDataset(store, store.rows("validation"), labels=True)
    assert len(dataset) == 5
    batch = dataset.__getitems__([3 * 5 + 4, 7 * 5 + 0])
    assert batch["row"].tolist() == [20, 0]
    assert batch["epoch"].tolist() == [3, 7]
    assert batch["frames"].tolist() == [5, 1]
    assert batch["labels"].tolist() == [1, -1]
    assert batch["spectrogram"].dtype == torch.float16
    np.testing.assert_array_equal(batch["spectrogram"].numpy(), store.gather([20, 0]))


def test_getitems__several_labels_are_ones_and_zeros(tmp_path: Path) -> None:
    dataset = StoreDataset(small_store(tmp_path / "store", several=True), [1, 2], labels=True)
    assert dataset.__getitems__([0, 1])["labels"].tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert "labels" not in StoreDataset(dataset.store, [1]).__getitems__([0])


@pytest.mark.parametrize("workers", [0, 1])
def test_getitems__under_a_plain_dataloader(store: Store, workers: int) -> None:
    dataset = StoreDataset(store, np.arange(23))
    order = np.random.default_rng(1).permutation(23).reshape(-1)[:20].reshape(5, 4).tolist()
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=whole_batch,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    batches = list(loader)
    assert [batch["row"].tolist() for batch in batches] == order
    for batch, rows in zip(batches, order, strict=True):
        np.testing.assert_array_equal(batch["spectrogram"].numpy(), store.gather(rows))


def test_announce__takes_the_indices_of_any_epoch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[list[int]] = []
    monkeypatch.setattr(Store, "announce", lambda self, rows: announced.append(rows.tolist()))
    StoreDataset(store, [4, 9, 14]).announce([0, 4, 8])
    assert announced == [[4, 9, 14]]


def test_dataset__without_labels_says_so(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", rows=1)
    with pytest.raises(StoreError, match="has no labels"):
        StoreDataset(store, [0], labels=True)


ROWS = np.array([20, 3, 7, 0, 12, 21, 1])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_normalised_batches__are_rows_in_their_order_whatever_the_size(tmp_path: Path, batch_size: int) -> None:
    store = pt_store(tmp_path)
    normalisation = Normalisation(mean=-6.0, std=3.0, padding=-15.9, by="clip")
    batches = list(normalised_batches(store, ROWS, normalisation=normalisation, batch_size=batch_size))
    assert np.concatenate([batch.rows for batch in batches]).tolist() == ROWS.tolist()
    assert {len(batch.rows) for batch in batches[:-1]} <= {batch_size}
    frames = torch.from_numpy(store.real_frames[ROWS].astype(np.int64))
    expected = normalisation(torch.from_numpy(store.gather(ROWS)), frames)
    assert torch.equal(torch.cat([batch.x for batch in batches]), expected)
    assert torch.equal(torch.cat([batch.frames for batch in batches]), frames)


def test_normalised_batches__processes_share_the_batches(tmp_path: Path) -> None:
    store = pt_store(tmp_path)
    normalisation = Normalisation(mean=-6.0, std=3.0, padding=-15.9)
    shares = [
        [
            batch.rows.tolist()
            for batch in normalised_batches(
                store, ROWS, normalisation=normalisation, batch_size=2, rank=rank, processes=2
            )
        ]
        for rank in range(2)
    ]
    assert shares == [[[20, 3], [12, 21]], [[7, 0], [1]]]


def test_readable_batches__leave_out_what_has_become_unreadable(tmp_path: Path, capsys) -> None:
    store = pt_store(tmp_path)
    expected = store.gather([20, 0, 12, 1])
    delete(store, 3, 7, 21)
    batches = list(readable_batches(store, ROWS, batch_size=3))
    assert [rows.tolist() for rows, _ in batches] == [[20], [0, 12], [1]]
    np.testing.assert_array_equal(np.concatenate([values for _, values in batches]), expected)
    delete(store, 20, 0, 12)
    assert [rows.tolist() for rows, _ in readable_batches(store, ROWS, batch_size=3)] == [[1]]  # no empty batch
    assert capsys.readouterr().err.count("Left out from now on") == 6  # each once
    dataset = StoreDataset(store, ROWS)
    assert dataset.__getitems__(range(7))["row"].tolist() == [1]


def test_readable_batches__announce_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pt_store(tmp_path)
    told: list[list[int]] = []
    monkeypatch.setattr(store, "announce", lambda rows: told.append(rows.tolist()))
    for rows, _ in readable_batches(store, ROWS, batch_size=3):
        told.append([-1, *rows.tolist()])
    assert told == [[0, 12, 21], [-1, 20, 3, 7], [1], [-1, 0, 12, 21], [], [-1, 1]]


def test_readable_batches__of_no_rows_are_none(tmp_path: Path) -> None:
    store = pt_store(tmp_path)
    assert list(readable_batches(store, ROWS[:0], batch_size=3)) == []
    assert list(readable_batches(store, ROWS, batch_size=7, rank=1, processes=2)) == []  # one batch, for the other one


def test_readable_batches__a_store_that_names_no_rows_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pt_store(tmp_path)

    def fail(rows: object) -> None:
        raise DamagedRowsError("cannot be read", path=store.path)

    monkeypatch.setattr(store, "gather", fail)
    with pytest.raises(StoreError, match="cannot be read"):
        list(readable_batches(store, ROWS, batch_size=3))
