from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tymbal.errors import SettingsError
from tymbal.features.librosa import LibrosaMel
from tymbal.features.normalisation import LOG_FLOOR
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import (
    SPECTROGRAM,
    WAVEFORM,
    AugmentationSettings,
    Background,
    HighPass,
    PitchShift,
    Reverberation,
    Roll,
    Shift,
    SpectrogramAugmentations,
    Speed,
    TimeStretch,
    WaveformAugmentations,
)
from tymbal.views.draw import Draws, draw, view_keys
from tymbal.views.make import ViewMaker
from tymbal.views.spectrogram_ops import power_response
from tymbal.views.stft import Vocoder

RATE, SAMPLES = 22_050, 22_050
FEATURES = FeatureSettings(filter_bank="librosa", sample_rate=RATE, low_freq=0.0, mel_bins=64)
KALDI = FeatureSettings(sample_rate=16_000, mel_bins=32)
NONE = AugmentationSettings(num_waveform_augs=0, num_spectrogram_augs=0)


def sounds(count: int = 6, samples: int = SAMPLES, rate: int = RATE) -> torch.Tensor:
    """Chirps with a beat, in noise that comes and goes."""
    random = np.random.default_rng(1)
    time = np.arange(samples) / rate
    clips = []
    for number in range(count):
        chirp = np.sin(2 * np.pi * (300 + 150 * number + 400 * time) * time) * (1 + np.sin(2 * np.pi * 3 * time))
        noise = random.normal(0, 0.05, samples) * (1 + np.cos(2 * np.pi * 2 * time))
        clips.append(0.15 * chirp + noise)
    return torch.from_numpy(np.stack(clips).astype(np.float32))


def only(name: str, augmentation: object | None = None) -> AugmentationSettings:
    """Settings that draw one augmentation."""
    base = AugmentationSettings()
    kind, cls = ("waveform", WaveformAugmentations) if name in WAVEFORM else ("spectrogram", SpectrogramAugmentations)
    group = cls(**{name: augmentation or getattr(getattr(base, kind), name)})
    return replace(NONE, **{kind: group, f"num_{kind}_augs": 1})


def both(
    settings: AugmentationSettings, clips: torch.Tensor, features: FeatureSettings = FEATURES
) -> list[torch.Tensor]:
    """Views of the same draws in spectral and in exact mode."""
    count = len(clips)
    draws = draw(settings, view_keys(0, torch.arange(count), torch.zeros(count, dtype=torch.int64)), [0] * 2 * count)
    clip = torch.arange(count).repeat_interleave(2)
    maker = ViewMaker(settings, features, clips.shape[1])
    transformed = maker.transform(clips)
    partners = transformed.mel[clip.flip(0)]
    return [maker.views(which, clip, draws, partners) for which in (transformed, clips)]


def views(settings: AugmentationSettings, clips: torch.Tensor, **more: object) -> torch.Tensor:
    return both(settings, clips, **more)[0]


@pytest.mark.parametrize("mode", [0, 1])
def test_views__without_augmentation_are_the_spectrogram(mode: int) -> None:
    clips = sounds()
    expected = LibrosaMel(FEATURES)(clips).repeat_interleave(2, dim=0)
    torch.testing.assert_close(both(NONE, clips)[mode], expected, atol=2e-3, rtol=0)


_CLOSE = {
    "noise": 0.001,
    "speed": 0.3,
    "pitch_shift": 0.7,
    "time_stretch": 0.7,
    "shift": 0.3,
    "high_pass": 0.05,
    "low_pass": 0.05,
    "band_pass": 0.05,
    "reverberation": 0.6,
    "gain": 0.001,
    "polarity": 0.001,
}


@pytest.mark.parametrize("name", [name for name in WAVEFORM if name != "background"])
def test_spectral__agrees_with_exact(name: str) -> None:
    """The loud part (40 dB) of view by view, in nepers of energy: no bias, small distances, the same spread."""
    spectral, exact = both(only(name), sounds())
    loudest = torch.maximum(spectral, exact).amax((1, 2), keepdim=True)
    loud = torch.maximum(spectral, exact) > loudest - 9.2
    difference = (spectral - exact)[loud]
    assert abs(float(difference.mean())) < 0.2
    assert float(difference.abs().mean()) < _CLOSE[name]
    assert 0.8 < float(spectral[loud].std() / exact[loud].std()) < 1.25


def test_spectral__agrees_with_exact_where_everything_is_drawn() -> None:
    spectral, exact = both(replace(AugmentationSettings(), num_waveform_augs=3), sounds(24))
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        one, other = (torch.quantile(which.flatten()[::5], quantile) for which in (spectral, exact))
        assert abs(float(one - other)) < 0.35
    assert abs(float((spectral.mean((0, 1)) - exact.mean((0, 1))).mean())) < 0.2


def test_spectral__works_on_kaldis_filter_bank() -> None:
    clips = sounds(4, 16_000, 16_000)
    spectral, exact = both(replace(AugmentationSettings(), num_spectrogram_augs=0), clips, KALDI)
    assert spectral.shape == (8, KALDI.frames_of(16_000), 32)
    loud = exact > exact.amax((1, 2), keepdim=True) - 7
    assert abs(float((spectral - exact)[loud].mean())) < 0.4


def test_spectral__one_clip_is_as_in_a_batch() -> None:
    settings, clips = AugmentationSettings(), sounds(3)
    maker = ViewMaker(settings, FEATURES, SAMPLES)
    keys = view_keys(0, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    draws = draw(settings, keys, [0] * 6)
    transformed = maker.transform(clips)
    clip = torch.arange(3).repeat_interleave(2)
    together = maker.views(transformed, clip, draws, transformed.mel[clip])
    for number in range(3):
        alone = maker.transform(clips[number : number + 1])
        two = torch.zeros(2, dtype=torch.int64)
        part = maker.views(alone, two, draws.part(2 * number, 2 * number + 2), alone.mel[two])
        torch.testing.assert_close(part, together[2 * number : 2 * number + 2], atol=1e-3, rtol=1e-3)


def peak(spectrogram: torch.Tensor) -> int:
    return int(spectrogram.exp().mean(0).argmax())


@pytest.mark.parametrize("mode", [0, 1])
def test_pitch_and_speed__move_a_tone_where_they_should(mode: int) -> None:
    tone = 0.3 * torch.sin(2 * math.pi * 800 * torch.arange(SAMPLES) / RATE)[None]
    for settings, wanted in (
        (only("pitch_shift", PitchShift(semitones=(12.0, 12.0))), 1600),
        (only("pitch_shift", PitchShift(semitones=(-12.0, -12.0))), 400),
        (only("speed", Speed(rate=(1.25, 1.25))), 1000),
        (only("time_stretch", TimeStretch(rate=(1.25, 1.25))), 800),
    ):
        expected = 0.3 * torch.sin(2 * math.pi * wanted * torch.arange(SAMPLES) / RATE)
        assert abs(peak(both(settings, tone)[mode][0]) - peak(LibrosaMel(FEATURES)(expected))) <= 1


@pytest.mark.parametrize("mode", [0, 1])
def test_shift__turns_the_clip_around(mode: int) -> None:
    plain = both(NONE, sounds(1))[mode][0]
    later = both(only("shift", Shift(fraction=(0.5, 0.5))), sounds(1))[mode][0]
    half = len(plain) // 2
    assert float((later[half + 3 : -3] - plain[3 : half - 3]).abs().mean()) < 0.7
    assert float((later[3 : half - 3] - plain[half + 3 : -3]).abs().mean()) < 0.7


@pytest.mark.parametrize("mode", [0, 1])
def test_stretch__leaves_silence_behind(mode: int) -> None:
    faster = both(only("time_stretch", TimeStretch(rate=(2.0, 2.0))), sounds(1))[mode][0]
    half = len(faster) // 2
    assert float(faster[half + 5 :].max()) < -4
    assert float(faster[: half - 3].max()) > 2


@pytest.mark.parametrize("mode", [0, 1])
def test_reverberation__trails_and_adds_its_energy(mode: int) -> None:
    click = torch.zeros(1, SAMPLES)
    click[0, SAMPLES // 4] = 1.0
    view = both(only("reverberation", Reverberation(seconds=(0.5, 0.5), db=(0.0, 0.0))), click)[mode][0]
    energy = view.exp().sum(1)
    place = len(energy) // 4
    # 60 dB in 0.5 s are 2.8 dB, a factor of 1.9, a frame.
    fall = (energy[place + 6] / energy[place + 12]) ** (1 / 6)
    assert 1.7 < float(fall) < 2.1
    dry = LibrosaMel(FEATURES)(click)[0].exp().sum()
    assert 1.6 < float(energy.sum() / dry) < 2.4


def test_background__is_laid_over_at_its_ratio(tmp_path: Path) -> None:
    tone = 0.2 * np.sin(2 * np.pi * 5000 * np.arange(4000) / RATE)
    soundfile.write(tmp_path / "tone.wav", tone, RATE)
    settings = only("background", Background(folder=str(tmp_path), snr=(0.0, 0.0)))
    clips = sounds(2)
    spectral, exact = both(settings, clips)
    torch.testing.assert_close(spectral, exact, atol=1e-3, rtol=0)
    added = spectral.exp().sum((1, 2)) / LibrosaMel(FEATURES)(clips).exp().sum((1, 2)).repeat_interleave(2)
    assert (added > 1.05).all()
    with pytest.raises(SettingsError, match="no sound files"):
        ViewMaker(only("background", Background(folder=str(tmp_path / "none"))), FEATURES, SAMPLES)


def hidden(spectrogram: torch.Tensor, dim: int) -> torch.Tensor:
    return (spectrogram == LOG_FLOOR).all(dim)


def test_masks__hide_one_stretch_of_the_drawn_width() -> None:
    for name, dim, size in (("time_mask", 2, 44), ("frequency_mask", 1, 64)):
        stretch = hidden(views(only(name), sounds()), dim).int()
        width = stretch.sum(1)
        assert ((0.02 * size - 1 <= width) & (width <= 0.2 * size + 1)).all()
        assert (stretch.diff(dim=1).abs().sum(1) <= 2).all()
        assert len(set(width.tolist())) > 2


def test_roll__turns_and_loses_nothing() -> None:
    plain, rolled = views(NONE, sounds()), views(only("roll", Roll(fraction=(0.25, 0.25))), sounds())
    assert rolled.equal(plain.roll(11, dims=1))


def test_crop__keeps_shape_and_values_within_the_clip() -> None:
    plain, cropped = views(NONE, sounds()), views(only("random_resized_crop"), sounds())
    assert cropped.shape == plain.shape
    assert not torch.allclose(cropped, plain, atol=0.1)
    assert (cropped.amax((1, 2)) <= plain.amax((1, 2)) + 1e-4).all()


def test_mixup__adds_energies_by_share() -> None:
    clips = sounds()
    plain, mixed = views(NONE, clips).exp(), views(only("mixup"), clips).exp()
    partner = LibrosaMel(FEATURES)(clips).exp()[torch.arange(6).repeat_interleave(2).flip(0)]
    for own, other, result in zip(plain, partner, mixed, strict=True):
        share = float(((result - own) * (other - own)).sum() / (other - own).square().sum())
        assert 0.04 < share < 0.41
        torch.testing.assert_close(result, (1 - share) * own + share * other, rtol=1e-2, atol=1e-4)


def test_vocoder__keeps_pitch_and_level() -> None:
    tone = 0.3 * torch.sin(2 * math.pi * 1000 * torch.arange(SAMPLES) / RATE)
    for rate in (0.7, 1.0, 1.5):
        result = Vocoder(tone).stretched(rate)
        assert len(result) == round(SAMPLES / rate)
        assert float(result.square().mean() / tone.square().mean()) == pytest.approx(1, rel=1e-4)
        spectrum = torch.fft.rfft(result[2000:-2000]).abs()
        assert float(spectrum.argmax()) * RATE / (len(result) - 4000) == pytest.approx(1000, abs=5)
    torch.testing.assert_close(Vocoder(tone).stretched(1.0), tone, atol=2e-2, rtol=0)


def test_vocoder__a_part_is_the_beginning_of_the_whole() -> None:
    waveform = sounds(1)[0]
    vocoder = Vocoder(waveform)
    whole, part = vocoder.stretched(0.8), vocoder.stretched(0.8, 9000)
    assert len(part) == 9000
    level = float((part / whole[:9000]).median())
    assert 0.8 < level < 1.25
    torch.testing.assert_close(part, level * whole[:9000], atol=1e-5, rtol=1e-3)


def test_vocoder__silence_stays_silence_and_ends() -> None:
    assert not Vocoder(torch.zeros(SAMPLES)).stretched(1.3).any()
    waveform = sounds(1)[0]
    waveform[: SAMPLES // 2] = 0
    slower = Vocoder(waveform).stretched(0.5)
    assert float(slower[: SAMPLES - 4096].abs().max()) < 1e-3
    assert float(slower[SAMPLES:].square().mean() / waveform[SAMPLES // 2 :].square().mean()) == pytest.approx(
        1, abs=0.1
    )


@pytest.mark.parametrize("name", ["high_pass", "low_pass", "band_pass"])
def test_exact__filters_as_if_the_clip_stood_in_endless_silence(name: str) -> None:
    clips = sounds(3)
    settings = only(name)
    draws = draw(settings, view_keys(0, torch.arange(3), torch.zeros(3, dtype=torch.int64)), [0] * 6)
    clip = torch.arange(3).repeat_interleave(2)
    made = ViewMaker(settings, FEATURES, SAMPLES, mode="exact").waveforms(clips, clip, draws)
    size = 8 * SAMPLES
    response = power_response(draws, torch.fft.rfftfreq(size, 1 / RATE)).sqrt()
    expected = torch.fft.irfft(torch.fft.rfft(clips[clip], n=size) * response, n=size)[:, :SAMPLES]
    assert float((made - expected).square().mean() / expected.square().mean()) < 1e-5


def test_power_response__falls_by_three_decibels_at_its_edge_and_by_twelve_an_octave() -> None:
    settings = only("high_pass", HighPass(cutoff=(200.0, 200.0)))
    draws = draw(settings, view_keys(0, torch.arange(1), torch.zeros(1, dtype=torch.int64)), [0, 0])
    response = power_response(draws, torch.tensor([0.0, 50.0, 100.0, 200.0, 5000.0]))[0]
    torch.testing.assert_close(response, torch.tensor([0.0, 1 / 257, 1 / 17, 0.5, 1.0]), atol=1e-4, rtol=0)
    neither = draw(NONE, view_keys(0, torch.arange(1), torch.zeros(1, dtype=torch.int64)), [0, 0])
    assert power_response(neither, torch.tensor([0.0, 1e5])).equal(torch.ones(2, 2))


def test_all_augmentations__are_there() -> None:
    wanted = {
        "gain",
        "noise",
        "background",
        "pitch_shift",
        "time_stretch",
        "shift",
        "high_pass",
        "low_pass",
        "band_pass",
    }
    assert {*WAVEFORM} == wanted | {"polarity", "reverberation", "speed"}
    assert {*SPECTROGRAM} == {"time_mask", "frequency_mask", "random_resized_crop", "mixup", "roll"}
    assert isinstance(draw(AugmentationSettings(), view_keys(0, torch.arange(1), torch.arange(1)), [0, 0]), Draws)
