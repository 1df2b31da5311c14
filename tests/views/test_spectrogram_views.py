from __future__ import annotations

import pytest
import torch

from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.randomness import fold
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.views import spectrogram_views as module
from tymbal.views.spectrogram_views import Patches, spectrogram_views

NOTHING = SpectrogramViews(pitch=0, frequency_shift=0, tempo=0, equaliser=0, gain=0, mix=0)
KEYS = fold(5, torch.arange(16))


def clips(count: int = 16, frames: int = 40, mels: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(10, frames + 1, (count,), generator=generator)
    x = torch.randn(count, frames, mels, generator=generator).cumsum(1) * 0.1
    x[torch.arange(frames) >= real[:, None]] = -1.5
    return x, real


def views(settings: SpectrogramViews, keys: torch.Tensor = KEYS) -> tuple[torch.Tensor, torch.Tensor]:
    x, real = clips()
    return spectrogram_views(x, real, keys, settings, padding=-1.5, scale=9.0)


def test_views__of_no_strength_are_the_clips() -> None:
    x, real = clips()
    drawn, ends = views(NOTHING)
    assert torch.allclose(drawn, x, atol=1e-6)
    assert torch.equal(ends, real)


def test_views__depend_on_their_own_keys_alone_but_for_mixing() -> None:
    still = SpectrogramViews(mix=0)
    everything, _ = views(still)
    x, real = clips()
    alone, _ = spectrogram_views(x[3:4], real[3:4], KEYS[3:4], still, padding=-1.5, scale=9.0)
    assert torch.equal(alone[0], everything[3])
    twice, _ = views(still, torch.cat([KEYS, fold(KEYS, 1)]))
    assert torch.equal(twice[:16], everything)
    assert not torch.allclose(twice[16:], everything, atol=0.1)


def test_views__pad_behind_the_stretched_end() -> None:
    drawn, ends = views(SpectrogramViews(tempo=0.5))
    _, real = clips()
    behind = torch.arange(40) >= ends[:, None]
    assert (drawn[behind] == -1.5).all()
    assert (ends != real).any()
    assert (ends <= (real * 1.5).round().clamp(max=40)).all() and (ends >= (real / 1.5).floor()).all()


def test_tempo__moves_what_is_heard_in_time() -> None:
    x = torch.zeros(1, 40, 8)
    x[:, 20] = 1.0
    for key in range(20):
        drawn, _ = spectrogram_views(
            x, torch.tensor([40]), fold(key, torch.zeros(1)), replace_tempo(0.3), padding=0.0, scale=9.0
        )
        peak = int(drawn[0, :, 0].argmax())
        assert 20.5 / 1.3 - 1 <= peak <= 20.5 * 1.3


def replace_tempo(tempo: float) -> SpectrogramViews:
    return SpectrogramViews(pitch=0, frequency_shift=0, tempo=tempo, equaliser=0, gain=0, mix=0)


def test_frequency__is_shifted_and_scaled_about_the_middle() -> None:
    x = torch.arange(32.0).expand(8, 10, 32)
    frames = torch.full((8,), 10)
    keys = fold(1, torch.arange(8))
    shift = SpectrogramViews(pitch=0, frequency_shift=0.2, tempo=0, equaliser=0, gain=0, mix=0)
    moved, _ = spectrogram_views(x, frames, keys, shift, padding=0.0, scale=9.0)
    steps = moved[:, 0, 10] - 10
    assert steps.abs().max() <= 0.2 * 32 + 1e-4 and steps.abs().max() > 1
    assert torch.allclose(moved[:, 0, 15] - 15, steps, atol=1e-4)
    pitch = SpectrogramViews(pitch=0.2, frequency_shift=0, tempo=0, equaliser=0, gain=0, mix=0)
    scaled, _ = spectrogram_views(x, frames, keys, pitch, padding=0.0, scale=9.0)
    middle = (scaled[:, 0, 15] + scaled[:, 0, 16]) / 2
    assert torch.allclose(middle, torch.full((8,), 15.5), atol=1e-4)


@pytest.mark.parametrize("levels", [False, True])
def test_mixing__adds_energy_or_averages_levels_where_both_clips_sound(*, levels: bool) -> None:
    x, real = clips()
    mix = SpectrogramViews(pitch=0, frequency_shift=0, tempo=0, equaliser=0, gain=0, mix=0.9)
    mixed, ends = spectrogram_views(x, real, KEYS, mix, padding=-1.5, scale=None if levels else 1.0)
    assert torch.equal(ends, real)
    for clip in range(16):
        fits = []
        for other in set(range(16)) - {clip}:
            both = min(int(real[clip]), int(real[other]))
            own, added, made = (each[:both].double() for each in (x[clip], x[other], mixed[clip]))
            if not levels:
                own, added, made = own.exp(), added.exp(), made.exp()
            share = ((made - own) * (added - own)).sum() / (added - own).square().sum()
            fits.append(float((made - own - share * (added - own)).abs().max()))
        assert min(fits) < 1e-4
    assert torch.allclose(mixed[0, int(real[0]) :], torch.tensor(-1.5))


def test_times__scales_strengths() -> None:
    half = SpectrogramViews().times(0.5)
    assert (half.pitch, half.mix, half.knots) == (0.05, 0.15, 5)
    assert SpectrogramViews().times(100).mix == 0.95


@pytest.mark.parametrize("scale", [None, 9.0])
@pytest.mark.parametrize("patch", [(32, 4), (8, 8), (5, 3), (32, 40)])
def test_patches__are_those_of_whole_views(patch: tuple[int, int], scale: float | None) -> None:
    config = EncoderConfig(width=8, depth=1, heads=1, mels=32, frames=40, patch=patch, stride=patch)
    grid = config.grid
    x, real = clips()
    keys = torch.cat([KEYS, fold(KEYS, 1)])
    given = (x, real, keys, SpectrogramViews(time_shift=0.2))
    whole, ends = spectrogram_views(*given, padding=-1.5, scale=scale)
    numbers = torch.rand(32, grid[0] * grid[1]).argsort(1)[:, : max(1, grid[0] * grid[1] // 3)]
    patches = Patches(patch, grid, numbers)
    drawn, same = spectrogram_views(*given, padding=-1.5, scale=scale, patches=patches)
    expected = SpectrogramEncoder(config).patchify(whole)
    torch.testing.assert_close(drawn, expected.gather(1, numbers.unsqueeze(2).expand(-1, -1, patch[0] * patch[1])))
    assert torch.equal(ends, same)


def test_weighted__is_the_same_on_devices_without_embedding_bags() -> None:
    table, rows, weights = torch.randn(9, 6), torch.randint(0, 9, (20, 4)), torch.rand(20, 4)
    torch.testing.assert_close(module._weighted(table, rows, weights), module._weighted_apart(table, rows, weights))


def test_frequency__of_a_single_bin_stays() -> None:
    x = torch.ones(2, 10, 1)
    drawn, _ = spectrogram_views(x, torch.tensor([10, 10]), KEYS[:2], NOTHING, padding=0.0, scale=None)
    torch.testing.assert_close(drawn, x)
