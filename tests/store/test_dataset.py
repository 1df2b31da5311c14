from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import small_store
from torch.utils.data import DataLoader

from tymbal.errors import StoreError
from tymbal.store.dataset import StoreDataset, whole_batch
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
