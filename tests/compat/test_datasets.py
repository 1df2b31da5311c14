"""The dataset that SSAST's scripts import: shapes, normalisation, padding, labels and augmentation."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from digits import digit_files, write_digits, write_label_csv, write_list
from tymbal.compat import PrecomputedDataset
from tymbal.compat.datasets import _added, _masked
from tymbal.errors import StoreError
from tymbal.features.kaldi import LOG_FLOOR

AUDIOSET = {"num_mel_bins": 128, "target_length": 64, "mean": -4.2677393, "std": 4.5689974, "dataset": "audioset"}


@pytest.fixture
def digits(shared: Path, tmp_path: Path):
    files = digit_files(shared)
    values = write_digits(tmp_path / "precomputed", files)
    return write_list(tmp_path / "train.json", files), list(values.values())


def test_item__is_padded_with_zeros_or_cut_and_normalised(digits):
    source, values = digits
    dataset = PrecomputedDataset(source, AUDIOSET)
    assert len(dataset) == 40
    short = int(np.argmin([len(value) for value in values]))
    long = int(np.argmax([len(value) for value in values]))
    for row in (short, long):
        fbank, label = dataset[row]
        assert (fbank.dtype, fbank.shape, label.shape) == (torch.float32, (64, 128), (10,))
        kept = min(len(values[row]), 64)
        assert fbank[:kept].equal((values[row][:kept].float() + 4.2677393) / (2 * 4.5689974))
        # The padding of SSAST is 0 before the normalisation, which is louder than silence.
        assert torch.allclose(fbank[kept:], torch.tensor(4.2677393 / (2 * 4.5689974)))
    assert len(values[short]) < 64 < len(values[long])
    assert len(list(dataset)) == 40


def test_item__labels_by_the_label_table(digits, tmp_path):
    source, _ = digits
    dataset = PrecomputedDataset(str(source), AUDIOSET, str(write_label_csv(tmp_path / "labels.csv")))
    assert dataset.label_num == 10
    assert dataset.index_dict["/m/3"] == "3"
    assert dataset[4 * 3][1].tolist() == [0.0, 0.0, 0.0, 1.0] + [0.0] * 6
    data = json.loads(source.read_text())
    data["data"][0]["labels"] = "/m/7,/m/2"
    source.write_text(json.dumps(data))
    several = PrecomputedDataset(source, AUDIOSET, str(tmp_path / "labels.csv"))[0][1]
    assert several.nonzero().flatten().tolist() == [2, 7]


def test_item__labels_are_optional(digits, tmp_path):
    source, _ = digits
    files = [Path(entry["wav"]) for entry in json.loads(source.read_text())["data"]]
    dataset = PrecomputedDataset(write_list(tmp_path / "plain.json", files, labels=False), AUDIOSET, "")
    assert dataset[0][1].shape == (0,)
    assert dataset.label_num == 0


def test_settings__what_is_not_given_is_found_out(digits):
    source, values = digits
    dataset = PrecomputedDataset(source)
    everything = torch.cat(values).double()
    assert dataset.norm_mean == pytest.approx(float(everything.mean()), rel=1e-6)
    assert dataset.norm_std == pytest.approx(float(everything.std(correction=0)), rel=1e-6)
    assert dataset[0][0].shape == (-(-max(map(len, values)) // 16) * 16, 128)
    plain = PrecomputedDataset(source, {"skip_norm": True, "target_length": 16})[0][0]
    assert plain.equal(values[0][:16].float())


def test_settings__data_dir_in_either_place(digits, tmp_path, capsys):
    source, _ = digits
    (tmp_path / "precomputed").rename(tmp_path / "elsewhere")
    assert len(PrecomputedDataset(source, {**AUDIOSET, "data_dir": str(tmp_path / "elsewhere")})) == 40
    conf = {**AUDIOSET, "data_dir": "/nowhere", "sparkle": 3}
    assert len(PrecomputedDataset(source, conf, data_dir=tmp_path / "elsewhere")) == 40
    assert "audio_conf: not used here: sparkle" in capsys.readouterr().err
    with pytest.raises(StoreError, match="Give data_dir"):
        PrecomputedDataset(source, AUDIOSET)


def test_files__that_cannot_be_used_are_left_out_and_named(digits, tmp_path, capsys):
    source, values = digits
    (tmp_path / "precomputed" / "0_george_0.pt").unlink()
    (tmp_path / "precomputed" / "0_george_1.pt").write_bytes(b"damaged")
    dataset = PrecomputedDataset(source, AUDIOSET, failures_to=tmp_path / "failures.csv")
    assert len(dataset) == 38
    assert [Path(failure.file).stem for failure in dataset.failures] == ["0_george_0", "0_george_1"]
    assert (tmp_path / "failures.csv").read_text().count("\n") == 3
    assert capsys.readouterr().err.count("2 of 40 .pt files are left out (1 missing, 1 unreadable)") == 1
    kept = min(len(values[2]), 64)
    assert dataset[0][0][:kept].equal((values[2][:kept].float() + 4.2677393) / (2 * 4.5689974))
    (tmp_path / "precomputed" / "0_jackson_0.pt").unlink()
    with pytest.raises(StoreError, match=r"0_jackson_0.pt: missing"):
        _ = dataset[0]
    with pytest.raises(IndexError):
        _ = dataset[38]


def test_file__of_float32_keeps_its_digits(tmp_path):
    value = torch.randn(20, 128)
    torch.save(value, tmp_path / "a.pt")
    (tmp_path / "l.json").write_text('{"data": [{"wav": "a.wav"}]}')
    assert PrecomputedDataset(tmp_path / "l.json", {"skip_norm": True, "target_length": 20})[0][0].equal(value)


def test_train__masks_one_band_and_one_stretch_with_zeros(digits):
    source, values = digits
    conf = {**AUDIOSET, "skip_norm": True, "mode": "train", "freqm": 48, "timem": 20}
    torch.manual_seed(0)
    bands, stretches = [], []
    dataset = PrecomputedDataset(source, conf)
    row = next(i for i, value in enumerate(values) if len(value) < 50)
    real = len(values[row])
    for _ in range(40):
        hidden = (dataset[row][0][:real] == 0).all(dim=0), (dataset[row][0] == 0).all(dim=1)[:real]
        bands.append(int(hidden[0].sum()))
        stretches.append(int(hidden[1].sum()))
    assert 0 < np.mean(bands) < 48
    assert max(bands) <= 47
    assert 0 < np.mean(stretches) < 20
    plain = PrecomputedDataset(source, {**conf, "mode": "evaluation"})[row][0]
    assert plain[:real].equal(values[row].float())


def test_masked__draws_as_torchaudio_does():
    torch.manual_seed(3)
    width = float(torch.rand(1)) * 24
    start = int(float(torch.rand(1)) * (64 - width))
    torch.manual_seed(3)
    masked = _masked(torch.ones(30, 64), 24, axis=1)
    expected = torch.ones(30, 64)
    expected[:, start : start + int(width)] = 0
    assert masked.equal(expected)


def test_train__noise_is_added_and_rolled(digits):
    source, values = digits
    conf = {**AUDIOSET, "skip_norm": True, "noise": True}
    dataset = PrecomputedDataset(source, conf)
    row = next(i for i, value in enumerate(values) if len(value) >= 64)
    shifts = set()
    for _ in range(30):
        noisy = dataset[row][0]
        gaps = [(noisy - values[row][:64].float().roll(shift, 0)) for shift in range(-10, 10)]
        best = min(range(20), key=lambda i: float(gaps[i].abs().max()))
        shifts.add(best - 10)
        assert float(gaps[best].min()) >= -1e-6
        assert float(gaps[best].max()) <= 0.1 + 1e-6
    assert len(shifts) > 5
    assert min(shifts) >= -10


def test_train__mixup_adds_energies_and_shares_labels(digits, capsys):
    source, _ = digits
    dataset = PrecomputedDataset(source, {**AUDIOSET, "mixup": 1.0})
    assert "Mixup adds the energies of two spectrograms" in capsys.readouterr().err
    torch.manual_seed(0)
    labels = torch.stack([dataset[4 * 3][1] for _ in range(20)])
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(20))
    shares = labels[:, 3]
    assert 0.2 < float(shares[shares < 1].mean()) < 0.8
    assert len(PrecomputedDataset(source, {**AUDIOSET, "mixup": 1.0, "mode": "evaluation"})[0][1].nonzero()) == 1


def test_added__is_the_sum_of_the_waveforms_on_average():
    from tymbal.features.kaldi import KaldiFbank
    from tymbal.settings import FeatureSettings

    fbank = KaldiFbank(FeatureSettings(mel_bins=16))
    torch.manual_seed(0)
    one, other = 0.3 * torch.randn(80_000), 0.1 * torch.randn(40_000).cumsum(0).sin()
    padded = torch.cat([other, torch.zeros(40_000)])
    real = fbank(0.6 * one + 0.4 * padded)
    mixed = _added(fbank(one), fbank(other), 0.6)
    assert mixed.shape == real.shape
    assert float((real - mixed).mean().abs()) < 0.1
    alone = _added(torch.full((2, 4), -15.0), torch.full((9, 4), -15.0), 0.5)
    assert alone.shape == (2, 4)
    torch.testing.assert_close(alone, torch.full((2, 4), max(-15.0 + math.log(0.5), LOG_FLOOR)))


def test_dataset__under_a_dataloader_with_workers(digits):
    source, _ = digits
    dataset = PrecomputedDataset(source, {**AUDIOSET, "noise": True})
    assert len(pickle.loads(pickle.dumps(dataset))) == 40
    loader = DataLoader(dataset, batch_size=16, num_workers=1, multiprocessing_context="spawn")
    batches = [fbank.shape for fbank, _ in loader]
    assert batches == [(16, 64, 128), (16, 64, 128), (8, 64, 128)]
