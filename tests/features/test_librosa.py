from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from tymbal.errors import AudioError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.features.librosa import LibrosaMel, mel_filters
from tymbal.settings import FeatureSettings

SETTINGS = FeatureSettings(filter_bank="librosa", sample_rate=22_050, low_freq=0.0)


def sound(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 22_050)) / 22_050
    return (0.4 * np.sin(2 * np.pi * (300 + 900 * time) * time) + random.normal(0, 0.01, len(time))).astype(np.float32)


@pytest.mark.parametrize(
    ("low", "high", "mels", "rate"), [(0.0, 0.0, 128, 22_050), (50.0, 8000.0, 64, 22_050), (0.0, 0.0, 40, 8000)]
)
def test_mel_filters__are_slaneys(low: float, high: float, mels: int, rate: int) -> None:
    settings = FeatureSettings(
        filter_bank="librosa", sample_rate=rate, low_freq=low, high_freq=high, mel_bins=mels, n_fft=1024
    )
    expected = mel_filter_bank(
        num_frequency_bins=513,
        num_mel_filters=mels,
        min_frequency=low,
        max_frequency=high or rate / 2,
        sampling_rate=rate,
        norm="slaney",
        mel_scale="slaney",
    )
    np.testing.assert_allclose(mel_filters(settings), expected.T, atol=1e-7)


def test_librosa_mel__equals_the_definition() -> None:
    waveform = sound()
    expected = spectrogram(
        waveform.astype(np.float64),
        window_function(2048, "hann"),
        frame_length=2048,
        hop_length=512,
        center=True,
        pad_mode="constant",
        power=2.0,
        mel_filters=mel_filters(SETTINGS).T.astype(np.float64),
        mel_floor=1.1920929e-07,
    )
    result = LibrosaMel(SETTINGS)(torch.from_numpy(waveform))
    assert result.shape == (130, 128) == (SETTINGS.frames_of(len(waveform)), 128)
    np.testing.assert_allclose(result.numpy(), np.log(expected).T, atol=2e-4)


def test_librosa_mel__a_batch_is_its_clips() -> None:
    clips = torch.from_numpy(np.stack([sound(seed=1), sound(seed=2)]))
    bank = LibrosaMel(SETTINGS)
    torch.testing.assert_close(bank(clips), torch.stack([bank(clip) for clip in clips]), atol=1e-5, rtol=0)


def test_librosa_mel__silence_is_the_floor() -> None:
    assert (LibrosaMel(SETTINGS)(torch.zeros(100)) == LOG_FLOOR).all()
    with pytest.raises(AudioError, match="floating point"):
        LibrosaMel(SETTINGS)(torch.zeros(5, dtype=torch.int16))


def test_settings__frames_are_centred() -> None:
    assert SETTINGS.frames_of(3 * 22_050) == 130
    assert SETTINGS.frames_of(SETTINGS.samples_of(130)) == 130
    assert SETTINGS.frames_of(SETTINGS.samples_of(130) - 1) == 129
