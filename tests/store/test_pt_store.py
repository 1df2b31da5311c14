"""A folder of `.pt` files as a store: what is left out, what is computed, and what happens to files afterwards."""

from __future__ import annotations

import csv
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from digits import digit_files, write_digits, write_list
from tymbal.store.base import DamagedRowsError
from tymbal.store.dataset import StoreDataset
from tymbal.store.pt import pt_store
from tymbal.store.pt.pt_folder import open_pt


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.fixture
def digits(shared: Path, tmp_path: Path):
    """SSAST's list with 40 digits, `train/` with a file each, and what is in them."""
    files = digit_files(shared)
    values = write_digits(tmp_path / "train", files)
    return write_list(tmp_path / "train.json", files), values


def test_gather__damage_after_the_opening_is_named_once_and_left_out(digits, tmp_path, capsys):
    source, values = digits
    failures = tmp_path / "failures.csv"
    store = open_pt(source, failures_to=failures)
    folder = tmp_path / "train"
    (folder / "0_george_1.pt").unlink()
    (folder / "1_george_0.pt").write_bytes(b"damaged")
    torch.save(values["1_george_1"][:9], folder / "1_george_1.pt")
    with pytest.raises(DamagedRowsError, match=r"0_george_1.pt: missing") as raised:
        store.gather([0, 1, 4, 5, 6])
    assert raised.value.rows == (1, 4, 5)
    dataset = StoreDataset(store, [0, 1, 4, 5, 6])
    for _ in range(2):
        batch = dataset.__getitems__([0, 5 + 1, 2, 3, 4])
        assert batch["row"].tolist() == [0, 6]
        assert batch["epoch"].tolist() == [0, 0]
        assert batch["frames"].tolist() == [len(values["0_george_0"]), len(values["1_jackson_0"])]
        np.testing.assert_array_equal(batch["spectrogram"].numpy(), store.gather([0, 6]))
    assert dataset.__getitems__([1, 2])["spectrogram"].shape == (0, store.frames, 128)
    assert capsys.readouterr().err.count("Left out from now on") == 3
    with failures.open(newline="") as file:
        reasons = {Path(row["file"]).stem: row["reason"] for row in csv.DictReader(file)}
    assert reasons.keys() == {"0_george_1", "1_george_0", "1_george_1"}
    assert reasons["1_george_1"].startswith("wrong shape: it holds 9 frames, and held")
    # Another process names them for itself, and not again in the file.
    sent = pickle.loads(pickle.dumps(store))
    with pytest.raises(DamagedRowsError):
        sent.gather([1, 4, 5])
    assert failures.read_text().count("\n") == 4
    # A file that is there again is used again.
    torch.save(values["0_george_1"], folder / "0_george_1.pt")
    assert dataset.__getitems__([1])["row"].tolist() == [1]


def test_gather__reads_a_file_that_was_written_again(digits, tmp_path):
    source, values = digits
    store = open_pt(source)
    torch.save({"fbank": (values["0_george_0"] + 1).T.contiguous()}, tmp_path / "train" / "0_george_0.pt")
    real = len(values["0_george_0"])
    np.testing.assert_array_equal(store.gather([0])[0, :real], (values["0_george_0"] + 1).numpy())


def test_gather__rows_out_of_range_and_given_memory(digits):
    store = open_pt(digits[0])
    out = np.empty((2, store.frames, 128), np.float16)
    assert store.gather([7, 7], out=out) is out
    assert store.gather([]).shape == (0, store.frames, 128)
    with pytest.raises(IndexError, match="store of 40"):
        store.gather([40])


def test_spectrogram__is_what_the_file_holds(tmp_path):
    value = torch.randn(20, 128)
    torch.save({"fbank": value.T[None]}, tmp_path / "a.pt")
    store = open_pt(tmp_path)
    assert store.spectrogram(0).equal(value)
    np.testing.assert_array_equal(store.gather([0])[0, :20], value.half().numpy())


def test_announce__asks_for_all_files_if_some_are_not_cached(digits, monkeypatch):
    store = open_pt(digits[0])
    fetched: list[str] = []
    monkeypatch.setattr(pt_store, "_fetch", fetched.append)
    monkeypatch.setattr(pt_store, "_cached", lambda path: True)
    store.announce([1, 2, 3])
    assert fetched == []
    monkeypatch.setattr(pt_store, "_cached", lambda path: False)
    store.announce([1, 2, 3])
    store._threads.shutdown()
    assert sorted(fetched) == sorted(store.paths[row] for row in (1, 2, 3))


def test_announce__of_files_that_are_gone_is_no_error(digits, tmp_path):
    store = open_pt(digits[0])
    for file in (tmp_path / "train").iterdir():
        file.unlink()
    store.announce([0, 1])
    pt_store._fetch(store.paths[0])


def test_store__travels_to_other_processes(digits):
    store = open_pt(digits[0])
    store.gather([0])
    sent = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(sent.gather([9]), store.gather([9]))
    assert (sent.mean, sent.labels) == (store.mean, store.labels)
