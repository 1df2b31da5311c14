"""Opening `.pt` files: what a first look finds, the record of it, and what a run keeps."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from digits import digit_files, spectrogram, write_digits, write_label_csv, write_list
from tymbal.errors import StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.store.pt import pt_folder
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


def spoil(folder: Path) -> dict[str, str]:
    """Spoils seven files in as many ways; gives kinds by stem."""
    (folder / "0_george_0.pt").unlink()
    whole = (folder / "1_george_0.pt").read_bytes()
    (folder / "1_george_0.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "2_george_0.pt").write_text("no torch file")
    torch.save(torch.zeros(30, 64), folder / "3_george_0.pt")
    torch.save(torch.ones(128, 128), folder / "4_george_0.pt")
    torch.save({"a": Evil()}, folder / "5_george_0.pt")
    torch.save(torch.full((30, 128), torch.nan), folder / "6_george_0.pt")
    kinds = ("missing", "unreadable", "unreadable", "wrong shape", "ambiguous", "unsafe", "not finite")
    return {f"{digit}_george_0": kind for digit, kind in enumerate(kinds)}


def test_open_pt__all_files_that_can_be_used(digits):
    source, values = digits
    store = open_pt(source)
    assert (len(store), store.mels, store.features, store.path) == (40, 128, None, source)
    longest = max(map(len, values.values()))
    assert store.frames == -(-longest // 16) * 16
    reals = [len(value) for value in values.values()]
    np.testing.assert_array_equal(store.real_frames, reals)
    gathered = store.gather([3, 0, 3])
    assert gathered.dtype == np.float16
    for row, given in zip([3, 0, 3], gathered, strict=True):
        value = list(values.values())[row].numpy()
        np.testing.assert_array_equal(given[: len(value)], value)
        assert (given[len(value) :] == 0).all()
    everything = torch.cat(list(values.values())).double()
    assert store.mean == pytest.approx(float(everything.mean()), rel=1e-6)
    assert store.std == pytest.approx(float(everything.std(correction=0)), rel=1e-6)
    assert store.index["id"][0].as_py() == "/cluster/audio/0_george_0.wav"
    assert repr(store).startswith("PtStore(")


def test_open_pt__what_cannot_be_used_is_left_out_counted_once_and_named(digits, tmp_path, capsys):
    source, values = digits
    kinds = spoil(tmp_path / "train")
    store = open_pt(source, failures_to=tmp_path / "failures.csv")
    assert len(store) == 40 - 7
    assert set(store.paths) == {str(tmp_path / "train" / f"{stem}.pt") for stem in values.keys() - kinds.keys()}
    err = capsys.readouterr().err
    assert err.count("left out") == 1
    assert "7 of 40 .pt files are left out (2 unreadable, 1 missing, 1 wrong shape" in err
    with (tmp_path / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["file"]).stem: row["reason"].partition(":")[0] for row in rows} == kinds
    assert all(row["advice"] for row in rows)
    assert len(store.failures) == 7
    np.testing.assert_array_equal(
        store.gather([len(store) - 1])[0, : len(values["9_jackson_1"])], values["9_jackson_1"].numpy()
    )


def test_open_pt__none_left_is_an_error(digits, tmp_path):
    source, _ = digits
    with pytest.raises(
        StoreError, match=r"not one of its 40 .pt files can be used \(40 wrong shape\)\n.*0_george_0.pt"
    ):
        open_pt(source, mel_bins=64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"\(40 missing\)"):
        open_pt(source, data_dir=tmp_path / "empty")


def test_open_pt__pads_or_cuts_to_the_target_length(digits, capsys):
    source, values = digits
    store = open_pt(source, target_length=40, padding=None, mean=-4.0, std=3.0)
    assert (store.frames, store.mean, store.std, store.padding) == (40, -4.0, 3.0, LOG_FLOOR)
    everything = store.gather(store.rows())
    for given, value in zip(everything, values.values(), strict=True):
        kept = min(len(value), 40)
        np.testing.assert_array_equal(given[:kept], value[:kept].numpy())
        assert (given[kept:] == np.float16(LOG_FLOOR)).all()
    assert store.real_frames.max() == 40


def test_open_pt__very_long_files_are_cut_and_that_is_said(tmp_path, capsys):
    torch.save(torch.randn(1100, 128), tmp_path / "a.pt")
    torch.save(torch.randn(30, 128), tmp_path / "b.pt")
    assert open_pt(tmp_path).frames == 1024
    assert "files are longer than 1024 frames and are cut" in capsys.readouterr().err


def test_open_pt__zeros_behind_the_sound_are_padding(shared, tmp_path):
    value = spectrogram(digit_files(shared)[0])
    padded = torch.zeros(128, 128).half()
    padded[: len(value)] = value
    torch.save(padded[:100], tmp_path / "a.pt")
    store = open_pt(tmp_path, target_length=112, padding=None)
    assert store.real_frames.tolist() == [len(value)]
    assert store.mean == pytest.approx(float(value.double().mean()), rel=1e-6)
    assert (store.gather([0])[0, len(value) :] == np.float16(LOG_FLOOR)).all()
    assert (open_pt(tmp_path, target_length=112).gather([0])[0, len(value) :] == 0).all()


def test_open_pt__labels_and_splits(digits, shared, tmp_path):
    source, _ = digits
    files = digit_files(shared)[:4]
    write_digits(tmp_path / "elsewhere", files)
    validation = write_list(tmp_path / "val.json", files)
    labels = write_label_csv(tmp_path / "labels.csv")
    store = open_pt(source, validation=validation, data_val_dir=tmp_path / "elsewhere", label_csv=labels)
    assert store.labels[:3] == ["zero", "one", "two"]
    assert not store.multilabel
    assert store.label_indices([0, 4, 39, 40]).tolist() == [0, 1, 9, 0]
    assert store.rows("validation").tolist() == [40, 41, 42, 43]
    assert store.label_matrix([4]).tolist() == [[0.0, 1.0] + [0.0] * 8]
    assert open_pt(write_list(tmp_path / "train.json", digit_files(shared), labels=False)).labels == []


def test_record__is_trusted_by_size_and_time(digits, tmp_path, monkeypatch):
    source, values = digits
    record = tmp_path / "run" / "record.parquet"
    first = open_pt(source, record=record)
    looked: list[str] = []
    examine = pt_folder.examine
    monkeypatch.setattr(
        pt_folder, "examine", lambda path, **more: looked.append(Path(path).stem) or examine(path, **more)
    )
    again = open_pt(source, record=record)
    assert looked == []
    assert (again.mean, again.std, again.frames, again.paths) == (first.mean, first.std, first.frames, first.paths)
    np.testing.assert_array_equal(again.gather(again.rows()), first.gather(first.rows()))
    folder = tmp_path / "train"
    (folder / "0_george_0.pt").unlink()
    torch.save(values["1_george_0"][:5], folder / "1_george_0.pt")
    assert len(open_pt(source, record=record)) == 39
    assert sorted(looked) == ["0_george_0", "1_george_0"]
    torch.save(values["0_george_0"], folder / "0_george_0.pt")
    assert len(open_pt(source, record=record)) == 40
    # Another number of mel bins is another look.
    with pytest.raises(StoreError, match="40 wrong shape"):
        open_pt(source, record=record, mel_bins=64)


def test_as_recorded__a_run_keeps_its_rows_whatever_became_of_them(digits, tmp_path):
    source, values = digits
    record, failures = tmp_path / "record.parquet", tmp_path / "failures.csv"
    folder = tmp_path / "train"
    (folder / "0_george_0.pt").unlink()
    first = open_pt(source, record=record, failures_to=failures)
    (folder / "1_george_0.pt").unlink()
    torch.save(values["0_george_0"], folder / "0_george_0.pt")
    again = open_pt(source, record=record, failures_to=failures, as_recorded=True)
    assert again.paths == first.paths
    assert (again.mean, again.std) == (first.mean, first.std)
    folder.rename(tmp_path / "moved")
    moved = open_pt(source, data_dir=tmp_path / "moved", record=record, as_recorded=True)
    np.testing.assert_array_equal(moved.gather([0])[0, : len(values["0_george_1"])], values["0_george_1"].numpy())
    source.write_text(json.dumps({"data": [{"wav": "2_george_0.wav"}]}))
    with pytest.raises(StoreError, match=r"begun with 40 other .pt files than the 1 that are listed now"):
        open_pt(source, data_dir=tmp_path / "moved", record=record, as_recorded=True)
