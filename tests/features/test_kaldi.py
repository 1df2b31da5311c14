from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tymbal.errors import AudioError
from tymbal.features.kaldi import LOG_FLOOR, ConvolutionFbank, KaldiFbank, _tables, mel_filters
from tymbal.settings import FeatureSettings, PrepareSettings

RECORDED = ["chainsaw22k", "clock44k", "digit", "digit8k", "dog", "rain", "sea48k"]


def recorded(shared: Path, name: str) -> tuple[torch.Tensor, FeatureSettings, torch.Tensor]:
    with np.load(shared / "fixtures" / "kaldi_fbank_expected.npz") as file:
        waveform = torch.from_numpy(file[f"{name}_pcm16"].astype(np.float32) / 32768)
        settings = FeatureSettings(sample_rate=int(file[f"{name}_sr"]), mel_bins=int(file[f"{name}_bins"]))
        return waveform, settings, torch.from_numpy(file[f"{name}_fbank"])


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def float64_fbank(waveform: torch.Tensor, settings: FeatureSettings) -> torch.Tensor:
    """The definition, written down frame by frame."""
    length, shift = settings.window_samples, settings.shift_samples
    window = torch.hann_window(length, periodic=False, dtype=torch.float64)
    rows = []
    for start in range(0, len(waveform) - length + 1, shift):
        frame = waveform[start : start + length].double()
        frame = frame - frame.mean()
        frame = frame - 0.97 * torch.cat([frame[:1], frame[:-1]])
        power = torch.fft.rfft(frame * window, n=1 << (length - 1).bit_length()).abs() ** 2
        rows.append((power @ mel_filters(settings).double()).clamp(min=1.1920929e-07).log())
    return torch.stack(rows)


@pytest.mark.parametrize("name", RECORDED)
def test_fbank__equals_torchaudio(shared: Path, name: str) -> None:
    waveform, settings, expected = recorded(shared, name)
    result = KaldiFbank(settings)(waveform)
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    # The reference was recorded with MKL's FFT; another FFT differs in bins 90 dB below the frame's loudest.
    tolerance = 5e-4 if torch.backends.mkl.is_available() else 2e-3
    assert (result - expected).abs().max() < tolerance
    assert ((result - expected).abs() < 5e-4).float().mean() > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECORDED)
def test_fbank__equals_torchaudio_on_cuda(shared: Path, name: str) -> None:
    waveform, settings, expected = recorded(shared, name)
    fbank = KaldiFbank(settings)
    single = fbank(waveform.cuda())
    assert single.device.type == "cuda"
    difference = (single.cpu() - expected).abs()
    assert difference.max() < 2e-3
    assert (difference < 5e-4).float().mean() > 0.999
    torch.testing.assert_close(fbank(waveform.cuda().expand(3, -1))[2], single)


@pytest.mark.parametrize(
    "settings",
    [
        FeatureSettings(),
        FeatureSettings(mel_bins=5, sample_rate=8000),
        FeatureSettings(sample_rate=32_000, low_freq=1000, high_freq=12_000, frame_length=0.02, frame_shift=0.005),
    ],
)
def test_fbank__follows_the_definition(settings: FeatureSettings) -> None:
    waveform = noise(settings.sample_rate // 2)
    torch.testing.assert_close(
        KaldiFbank(settings)(waveform), float64_fbank(waveform, settings).float(), atol=1e-3, rtol=0
    )


def test_fbank__batch_path_of_other_devices_equals_the_clip_path() -> None:
    fbank = KaldiFbank()
    waveform = noise(32_000).view(2, -1)
    waveform = waveform - waveform.mean(-1, keepdim=True)
    batch = fbank._batch(waveform.unfold(-1, 400, 160), _tables(fbank.settings, waveform.device))
    torch.testing.assert_close(batch, fbank(waveform), atol=1e-4, rtol=0)


def test_fbank__clip_equals_the_same_clip_in_a_batch() -> None:
    fbank = KaldiFbank()
    clips = noise(3 * 20_000).view(3, -1)
    assert torch.equal(fbank(clips)[1], fbank(clips[1]))


def test_fbank__nothing_of_the_last_call_is_left_in_the_buffers() -> None:
    fbank = KaldiFbank()
    first = fbank(noise(16_000))
    fbank(1000 * noise(48_000, seed=1))
    assert torch.equal(fbank(noise(16_000)), first)


def test_fbank__silence_is_the_floor() -> None:
    assert torch.equal(KaldiFbank()(torch.zeros(16_000)), torch.full((98, 128), LOG_FLOOR))


def test_fbank__offset_makes_no_difference() -> None:
    fbank = KaldiFbank()
    torch.testing.assert_close(fbank(noise(16_000) + 0.5), fbank(noise(16_000)), atol=2e-3, rtol=0)


def test_fbank__tone_is_loudest_in_its_own_bin() -> None:
    settings = FeatureSettings(mel_bins=64)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)
    peak = int(KaldiFbank(settings)(tone).mean(0).argmax())
    centres = mel_filters(settings).argmax(0) * 16_000 / 512
    assert abs(float(centres[peak]) - 1000) < 50


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_fbank__too_short_says_how_short(samples: int) -> None:
    with pytest.raises(AudioError, match=rf"{samples} samples \(.* s\) are shorter than one frame, which takes 400"):
        KaldiFbank()(torch.zeros(samples))


def test_fbank__one_frame_is_enough() -> None:
    assert KaldiFbank()(noise(400)).shape == (1, 128)
    assert KaldiFbank()(noise(559)).shape == (1, 128)
    assert KaldiFbank()(noise(560)).shape == (2, 128)


def test_fbank__integers_are_refused() -> None:
    with pytest.raises(AudioError, match=r"must be floating point.* not int16"):
        KaldiFbank()(torch.zeros(16_000, dtype=torch.int16))


def test_fbank__travels_between_processes() -> None:
    fbank = KaldiFbank(FeatureSettings(mel_bins=32))
    before = fbank(noise(8000))
    assert torch.equal(pickle.loads(pickle.dumps(fbank))(noise(8000)), before)


def test_fbank__takes_the_settings_of_a_later_stage() -> None:
    assert KaldiFbank(PrepareSettings(mel_bins=40)).settings == FeatureSettings(mel_bins=40)


@pytest.mark.parametrize(
    "settings",
    [
        FeatureSettings(),
        FeatureSettings(sample_rate=8000, mel_bins=16),
        FeatureSettings(sample_rate=44_100, mel_bins=64, frame_length=0.03, low_freq=100, high_freq=15_000),
    ],
)
def test_fbank__as_a_convolution_agrees(settings: FeatureSettings) -> None:
    generator = torch.Generator().manual_seed(0)
    length = 2 * settings.sample_rate
    sound = torch.randn(2, length, generator=generator).cumsum(1) / 50  # strong in the bass, weak above
    expected = KaldiFbank(settings)(sound)
    found = ConvolutionFbank(settings)(sound)
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.mean() < 1e-4
    assert difference.max() < 0.02  # in bins 90 dB below the loudest, where float32 has few digits
