"""Fresh views: the same as generated ones but for the partners in mixup and the rounding of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

import tymbal
from training_setup import TINY
from tymbal.errors import StoreError
from tymbal.features.normalisation import LOG_FLOOR
from tymbal.models.folder import load_model
from tymbal.pretrain import pretrain
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.store.dataset import whole_batch
from tymbal.store.packed.packed_store import PairStore, WaveStore
from tymbal.views.augmentation_config import read_augmentation
from tymbal.views.make import FreshViewDataset, ViewMaker

RATE = 8000
SMALL: dict[str, Any] = {
    "sample_rate": RATE, "window": 0.5, "mel_bins": 16, "n_fft": 256, "hop_length": 128, "workers": 1
}  # fmt: skip
LEARN: dict[str, Any] = {**TINY, "patch": "4x8", "objective": "contrastive", "max_steps": 4, "batch_size": 6}
NO_MIXUP = """
num_spectrogram_augs: 1
spectrogram: {time_mask: {}, roll: {}}
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    time = np.arange(RATE // 2) / RATE
    for number in range(20):
        random = np.random.default_rng(number)
        clip = 0.3 * np.sin(2 * np.pi * random.uniform(200, 3000) * time) + random.normal(0, 0.02, len(time))
        soundfile.write(folder / f"{number:02d}.wav", clip, RATE, subtype="PCM_16")
    (folder / "no_mixup.yaml").write_text(NO_MIXUP)
    return folder


@pytest.fixture(scope="module")
def waves(sound: Path) -> WaveStore:
    store = tymbal.prepare(sound, sound.parent / "waves", views=1, write="waveforms", **SMALL).store
    assert isinstance(store, WaveStore)
    return store


def fresh(waves: WaveStore, settings: AugmentationSettings | None = None) -> FreshViewDataset:
    assert waves.features is not None
    maker = ViewMaker(settings or AugmentationSettings(), waves.features, waves.samples)
    return FreshViewDataset(waves, waves.rows(), maker, seed=42)


def test_waves__are_the_samples(waves: WaveStore, sound: Path) -> None:
    assert (len(waves), waves.samples, waves.frames, waves.mels) == (20, RATE // 2, 32, 16)
    batch = waves.waveforms([3, 0])
    assert batch.dtype == np.int16
    for row, samples in zip((3, 0), batch, strict=True):
        expected = soundfile.read(waves.index["file"][row].as_py(), dtype="float32")[0]
        np.testing.assert_allclose(samples / 32767, expected, atol=2e-5)
    shard = waves.path / waves.description.shards[0].file
    assert np.load(shard).dtype == np.int16
    with pytest.raises(StoreError, match="holds waveforms"):
        tymbal.Store.open(waves.path)


def test_fresh__epochs_are_versions(waves: WaveStore, sound: Path, tmp_path: Path) -> None:
    path = sound / "no_mixup.yaml"
    generated = tymbal.prepare(sound, tmp_path / "pairs", views=3, augmentations=str(path), **SMALL).store
    dataset = fresh(waves, read_augmentation(path))
    assert isinstance(generated, PairStore)
    names = generated.index["id"].to_pylist()
    for epoch in (0, 2):
        batch = dataset.__getitems__([epoch * 20 + place for place in range(20)])
        rows = [names.index(f"{name}@v{epoch}") for name in waves.index["id"].to_pylist()]
        difference = np.abs(generated.gather(rows).astype(np.float32) - batch["spectrogram"].float().numpy())
        # Only where there is next to nothing does the rounding of samples to 16 bits show.
        assert np.quantile(difference, 0.9) < 0.05
        assert batch["epoch"].eq(epoch).all()


def test_fresh__have_the_distribution_of_generated_views(waves: WaveStore, sound: Path, tmp_path: Path) -> None:
    generated = tymbal.prepare(sound, tmp_path / "pairs", views=10, **SMALL).store
    one = generated.gather(generated.rows()).astype(np.float32)
    dataset = fresh(waves)
    other = torch.cat([dataset.__getitems__([20 * e + i for i in range(20)])["spectrogram"] for e in range(10)]).numpy()
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert abs(np.quantile(one, quantile) - np.quantile(other, quantile)) < 0.4
    np.testing.assert_allclose(one.mean((0, 1, 2)), other.astype(np.float32).mean((0, 1, 2)), atol=0.8)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> WaveStore:
    """Noise of 0.1 to 0.4 s, in windows of 0.5 s."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "sound").mkdir()
    for number in range(12):
        clip = np.random.default_rng(number).normal(0, 0.1, RATE // 10 + 200 * number)
        soundfile.write(folder / "sound" / f"{number:02d}.wav", clip, RATE)
    store = tymbal.prepare(folder / "sound", folder / "waves", views=1, write="waveforms", **SMALL).store
    assert isinstance(store, WaveStore)
    return store


def carrying(waves: WaveStore, text: str, folder: Path, *, carries: bool = True) -> FreshViewDataset:
    (folder / "views.yaml").write_text(text)
    assert waves.features is not None
    maker = ViewMaker(read_augmentation(folder / "views.yaml"), waves.features, waves.samples)
    return FreshViewDataset(waves, waves.rows(), maker, seed=42, carries_padding=carries)


def batches(dataset: FreshViewDataset, epochs: int = 5) -> dict[str, torch.Tensor]:
    found = [dataset.__getitems__([12 * epoch + place for place in range(12)]) for epoch in range(epochs)]
    return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}


def test_fresh__carry_where_the_sound_of_a_clip_lies(short: WaveStore, tmp_path: Path) -> None:
    moving = """
num_waveform_augs: 2
num_spectrogram_augs: 1
waveform: {speed: {rate: [0.8, 1.2]}, shift: {fraction: [-0.5, 0.5]}}
spectrogram: {roll: {}, random_resized_crop: {scale: [0.7, 1.0]}}
"""
    batch = batches(carrying(short, moving, tmp_path))
    loud = (batch["spectrogram"].float() > -14).any(3)
    # Frames at the ends of a clip hold a part of it.
    assert (loud == batch["heard"]).float().mean() > 0.93
    lengths = torch.from_numpy(short.clip_frames())[batch["row"]]
    assert abs(float(batch["heard"].sum(2).float().mean() / lengths.float().mean()) - 1) < 0.15
    assert not batch["masked"].any()


def test_fresh__padding_under_noise_stays_padding(short: WaveStore, tmp_path: Path) -> None:
    noisy = "num_waveform_augs: 1\nnum_spectrogram_augs: 0\nwaveform: {noise: {snr: [10.0, 10.0]}}\n"
    batch = batches(carrying(short, noisy, tmp_path), epochs=1)
    assert (batch["spectrogram"].float() > -14).any(3).all()  # by its value, all of it is sound
    lengths = torch.from_numpy(short.clip_frames())[batch["row"]]
    assert batch["heard"].sum(2).equal(lengths[:, None].expand(-1, 2))
    assert "heard" not in carrying(short, noisy, tmp_path, carries=False).__getitems__([0])


def test_fresh__noise_is_below_the_sound_and_not_below_its_window(short: WaveStore, tmp_path: Path) -> None:
    noisy = "num_waveform_augs: 1\nnum_spectrogram_augs: 0\nwaveform: {noise: {snr: [10.0, 10.0]}}\n"
    row, energy = 0, {}
    frames = int(short.clip_frames()[row])
    assert frames < 10
    for carries in (True, False):
        views = carrying(short, noisy, tmp_path, carries=carries).__getitems__([row])["spectrogram"][0].float()
        energy[carries] = views[:, frames + 3 :].exp().mean(), views[:, : frames - 1].exp().mean()
    ratio = 10 * np.log10(float(energy[True][1] / energy[True][0]))
    assert abs(ratio - 10) < 1.5
    # A fifth of the window is sound: of the window's level, noise lay 7 dB lower.
    assert abs(10 * np.log10(float(energy[True][0] / energy[False][0])) - 10 * np.log10(4000 / 800)) < 0.1


def test_fresh__masked_cells_are_told(short: WaveStore, tmp_path: Path) -> None:
    masks = "num_waveform_augs: 0\nnum_spectrogram_augs: 2\nspectrogram: {time_mask: {}, frequency_mask: {}}\n"
    batch = batches(carrying(short, masks, tmp_path))
    at_floor = batch["spectrogram"].float() <= LOG_FLOOR + 0.01
    assert batch["masked"].any()
    assert at_floor[batch["masked"]].all()
    assert not (at_floor & ~batch["masked"] & batch["heard"].unsqueeze(3)).any()


def test_fresh__differ_by_epoch_and_repeat_by_seed(waves: WaveStore) -> None:
    dataset = fresh(waves)
    first, again, later = (dataset.__getitems__(indices)["spectrogram"] for indices in ([0, 1], [0, 1], [20, 21]))
    assert first.equal(again)
    assert not first.equal(later)
    loader = DataLoader(dataset, batch_sampler=[[0, 1], [22, 23]], collate_fn=whole_batch)
    assert [batch["row"].tolist() for batch in loader] == [[0, 1], [2, 3]]


def test_pretrain__on_waveforms_and_on_sound(waves: WaveStore, sound: Path, tmp_path: Path) -> None:
    run = pretrain(waves.path, tmp_path / "one", **LEARN)
    assert "eval_acc" in run.metrics
    assert load_model(run.model).description.features == waves.features
    again = pretrain(waves.path, tmp_path / "two", view_source="fresh", **LEARN)
    states = [load_model(result.model).module.state_dict() for result in (run, again)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    with pytest.raises(StoreError, match="holds no pairs of views"):
        pretrain(waves.path, tmp_path / "three", view_source="generated", **LEARN)


def test_pretrain__makes_waveforms_of_sound_first(sound: Path, tmp_path: Path) -> None:
    pretrain(sound, tmp_path / "run", **{**LEARN, "patch": "16x16", "max_steps": 1})
    assert len(WaveStore.open(tmp_path / "run" / "store")) == 20
    pairs = tymbal.prepare(sound, tmp_path / "pairs", views=1, **SMALL).path
    with pytest.raises(StoreError, match="not waveforms"):
        pretrain(pairs, tmp_path / "other", view_source="fresh", **LEARN)


@pytest.mark.parametrize("write", ["store", "pt"])
def test_pretrain__finds_the_views_that_were_generated_of_its_sound(
    write: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tymbal.prepare(sound, views=1, write=write, **SMALL)
    pretrain(sound, tmp_path / "run", **{**LEARN, "max_steps": 1})
    assert "Its generated views are taken" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run" / "store").exists()
    (tmp_path / "other").mkdir()
    soundfile.write(tmp_path / "other" / "a.wav", np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    with pytest.raises(StoreError, match="holds no pairs"):
        pretrain(tmp_path / "other", tmp_path / "run2", view_source="generated", **LEARN)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fresh__on_a_gpu_are_those_of_the_cpu(waves: WaveStore) -> None:
    assert waves.features is not None
    maker = ViewMaker(AugmentationSettings(), waves.features, waves.samples, device="cuda")
    there = FreshViewDataset(waves, waves.rows(), maker, seed=42, device="cuda").__getitems__(list(range(20)))
    here = fresh(waves).__getitems__(list(range(20)))
    difference = (there["spectrogram"].cpu().float() - here["spectrogram"].float()).abs()
    assert float(difference.quantile(0.99)) < 0.05
