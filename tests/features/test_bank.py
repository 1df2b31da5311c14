from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import tymbal
from other_package import install
from tones import tone_folder
from tymbal.errors import AudioError, SettingsError
from tymbal.features.bank import FilterBank, KaldiBank, LibrosaBank, filter_bank
from tymbal.features.kaldi import KaldiFbank
from tymbal.features.librosa import LibrosaMel
from tymbal.settings import FeatureSettings, PrepareSettings
from tymbal.store.packed.packed_store import Store
from tymbal.views.stft import Spectrum

KALDI = FeatureSettings(mel_bins=32)
LIBROSA = FeatureSettings(filter_bank="librosa", sample_rate=22_050, low_freq=0.0, mel_bins=64)

LINEAR = """
import torch
from tymbal.features.bank import FilterBank

class LinearBank(FilterBank):
    "Equal parts of the spectrum."
    window_samples = property(lambda self: 256)
    shift_samples = property(lambda self: 128)

    def mel_of(self, hertz):
        return hertz

    def mel_weights(self):
        return torch.eye(self.settings.mel_bins).repeat_interleave(128 // self.settings.mel_bins, 1).roll(1, 1)

    def spectra(self, waveforms):
        return torch.fft.rfft(waveforms.unfold(1, 256, 128))[..., :128]

class NoBank:
    "Something else."
"""


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureSettings:
    """Settings of a filter bank that another package brings along."""
    points = {
        "linear": "other_package_module:LinearBank",
        "none": "other_package_module:NoBank",
        "gone": "other_package_module:Gone",
    }
    install(tmp_path / "site", monkeypatch, "tymbal.filter_banks", points, LINEAR)
    return FeatureSettings(filter_bank="linear", sample_rate=8000, mel_bins=16)


@pytest.mark.parametrize(
    ("settings", "bank", "transform"), [(KALDI, KaldiBank, KaldiFbank), (LIBROSA, LibrosaBank, LibrosaMel)]
)
def test_filter_bank__is_that_of_the_settings(
    settings: FeatureSettings, bank: type[FilterBank], transform: type[KaldiFbank | LibrosaMel]
) -> None:
    found = filter_bank(settings)
    assert isinstance(found, bank)
    sound = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) / 10
    expected = transform(settings)(sound)
    assert torch.equal(found(sound), expected)
    assert torch.equal(pickle.loads(pickle.dumps(found))(sound), expected)
    assert expected.shape[1] == found.frames_of(20_000) == settings.frames_of(20_000)
    assert found.mel_weights().shape == (settings.mel_bins, found.spectra(sound).shape[2])
    # The contract's own way gives the same where nothing is done to single frames.
    other = FilterBank.__call__(found, sound)
    assert (other - expected).abs().mean() < (1e-4 if bank is LibrosaBank else 0.1)
    assert torch.equal(FilterBank.__call__(found, sound[0]), other[0])


def test_filter_bank__of_a_later_stage_keeps_features_only() -> None:
    assert filter_bank(PrepareSettings(mel_bins=40)).settings == FeatureSettings(mel_bins=40)


@pytest.mark.parametrize("settings", [KALDI, LIBROSA])
def test_frames_of__is_undone_by_samples_of(settings: FeatureSettings) -> None:
    bank = filter_bank(settings)
    assert bank.frames_of(0) == 0
    for frames in (1, 2, 130):
        least = bank.samples_of(frames)
        assert bank.frames_of(least) == frames
        assert bank.frames_of(least - 1) == frames - 1


def test_frames_of__imports_no_torch() -> None:
    script = (
        "import sys; from tymbal.settings import FeatureSettings as F;"
        "print(F().frames_of(16000), F(filter_bank='librosa').samples_of(2), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["98", "512", "False"]


def test_bin_at__is_the_centre_of_a_kaldi_bin() -> None:
    features = FeatureSettings(sample_rate=16_000, mel_bins=128)
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, 8000))
    for number in (0, 5, 127):
        centre = low + (number + 1) * (high - low) / 129
        assert filter_bank(features).bin_at(700 * (math.exp(centre / 1127) - 1)) == pytest.approx(number, abs=1e-6)


@pytest.mark.parametrize("name", ["kaldi", "librosa"])
def test_hertz_at__is_the_inverse_of_bin_at(name: str) -> None:
    bank = filter_bank(FeatureSettings(filter_bank=name, sample_rate=16_000))
    for hertz in (25.0, 440.0, 7_900.0):
        assert bank.hertz_at(bank.bin_at(hertz)) == pytest.approx(hertz, abs=1e-6)
    assert bank.hertz_at(-50) == pytest.approx(0, abs=1e-6)
    assert bank.hertz_at(1000) == pytest.approx(8000, abs=1e-6)


def test_bin_at__is_linear_to_one_kilohertz_with_librosa() -> None:
    features = FeatureSettings(filter_bank="librosa", sample_rate=22_050, mel_bins=128, low_freq=0)
    places = [filter_bank(features).bin_at(hertz) for hertz in (0, 500, 1000)]
    assert places[0] == -1
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])


def test_filter_bank__a_name_that_nobody_has_is_an_error_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"'libroza'.* not one of kaldi, librosa\n  Did you mean librosa\?"):
        FeatureSettings(filter_bank="libroza")
    with pytest.raises(SettingsError, match="Install the package that has this filter bank"):
        PrepareSettings(filter_bank="xyz")


def test_filter_bank__what_another_package_brings_along_must_be_one(linear: FeatureSettings) -> None:
    with pytest.raises(SettingsError, match=r"'linearr'.*kaldi, librosa, gone, linear, none\n  Did you mean linear"):
        FeatureSettings(filter_bank="linearr")
    with pytest.raises(SettingsError, match="no class derived from FilterBank"):
        filter_bank(FeatureSettings(filter_bank="none"))
    with pytest.raises(SettingsError, match=r"cannot be imported from other_package_module:Gone"):
        filter_bank(FeatureSettings(filter_bank="gone"))


def test_filter_bank__another_packages_prepares_a_store_that_all_can_use(
    linear: FeatureSettings, tmp_path: Path
) -> None:
    folder = tone_folder(tmp_path / "sound")
    chosen = {"filter_bank": "linear", "sample_rate": 8000, "mel_bins": 16}
    made = tymbal.prepare(folder, tmp_path / "store", **chosen, low_freq=20.0, workers=2)
    assert made.failures == []
    store = Store.open(tmp_path / "store")
    assert store.features == linear
    sound, _ = soundfile.read(store.index["file"][0].as_py(), dtype="float32")
    expected = filter_bank(linear)(torch.from_numpy(sound)).numpy()
    assert linear.frames_of(len(sound)) == len(expected) == 1 + (len(sound) - 256) // 128
    np.testing.assert_array_equal(store.gather(np.array([0]))[0][: len(expected)], expected.astype(np.float16))
    pairs = tymbal.prepare(folder, tmp_path / "pairs", **chosen, views=1, window=0.3, workers=1)
    assert pairs.failures == []
    assert torch.equal(Spectrum(linear).frequencies, torch.arange(128) * (8000 / 254))
    with pytest.raises(AudioError, match=r"255 samples .* shorter than one frame, which takes 256"):
        filter_bank(linear)(torch.zeros(255))


def test_trial__is_the_spectrogram_of_noise() -> None:
    assert filter_bank(KALDI).trial(10.0)().shape == (998, 32)
    assert filter_bank(LIBROSA).trial(1.0)().shape == (44, 64)


def test_other_programs__compute_what_is_said() -> None:
    assert filter_bank(LIBROSA).convolution() is None
    assert filter_bank(LIBROSA).extractor()["filter_bank"] == "librosa"
    assert filter_bank(KALDI).extractor() == {
        "frame_length": 400, "frame_shift": 160, "low_frequency": 20.0, "high_frequency": 8000.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "rate", "constant", "fits"),
    [
        (FeatureSettings(), 2000, 83, "--sample-rate 2000 --mel-bins 80 --frame-length 0.05"),
        (FeatureSettings(), 8000, 30, "--sample-rate 8000 --mel-bins 80"),
        (FeatureSettings(), 44_100, 0, None),
        (FeatureSettings(filter_bank="librosa", sample_rate=22_050), 8000, 37, "--sample-rate 8000 --mel-bins 128"),
    ],
)
def test_remark_on__settings_that_fill_all_bins(
    settings: FeatureSettings, rate: int, constant: int, fits: str | None
) -> None:
    weights = filter_bank(settings).mel_weights()
    filled = weights[:, : int(rate / settings.sample_rate * (weights.shape[1] - 1)) + 1].sum(dim=1) > 0
    assert settings.constant_bins(rate) == int((weights.sum(dim=1) > 0).sum() - filled.sum()) == constant
    remark = settings.remark_on([rate, rate, 48_000])
    assert (remark is None) == (fits is None)
    if remark is not None and fits is not None:
        assert f"{constant} of 128 mel bins are constant" in remark
        assert remark.endswith(f"{fits} would fill all")
        words = fits.split()
        given = dict(zip(words[::2], words[1::2], strict=True))
        fitting = replace(
            settings,
            sample_rate=rate,
            mel_bins=int(given["--mel-bins"]),
            frame_length=float(given.get("--frame-length", settings.frame_length)),
        )
        assert (filter_bank(fitting).mel_weights().sum(dim=1) > 0).all()
