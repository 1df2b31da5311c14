from __future__ import annotations

import pytest
import torch

from tymbal.features.normalisation import Normalisation, NormalizeBy, loudest


def test_dataset__subtracts_the_mean_and_puts_the_models_padding_behind_the_sound() -> None:
    normalisation = Normalisation(mean=-5.0, std=2.0, padding=-7.0)
    x = normalisation(torch.full((1, 4, 2), -3.0).half(), torch.tensor([3]))
    assert x[0, :, 0].tolist() == [0.5, 0.5, 0.5, -0.5]
    assert x.dtype == torch.float32


def test_clip__has_mean_0_and_deviation_a_half_over_its_own_sound() -> None:
    values = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0)) * 3 - 6
    frames = torch.tensor([40, 25, 1])
    x = Normalisation(mean=-5.0, std=2.0, padding=-7.0, by="clip")(values, frames)
    for clip, real in zip(x, frames.tolist(), strict=True):
        assert clip[:real].mean() == pytest.approx(0, abs=1e-5)
        assert clip[:real].std(correction=0) == pytest.approx(0.5, abs=1e-5)
        assert (clip[real:] == -0.5).all()


def test_clip__does_not_hear_how_loud_a_clip_is() -> None:
    values = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([40, 30])
    normalisation = Normalisation(mean=-5.0, std=2.0, padding=-15.9, by="clip")
    torch.testing.assert_close(normalisation(values, frames), normalisation(values - 4.5, frames), atol=1e-5, rtol=0)


def test_clip__masked_cells_have_no_part_in_mean_and_deviation() -> None:
    values = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0)) * 3 - 6
    padding = torch.arange(40) >= torch.tensor([[40], [25]])
    masked = torch.zeros(2, 40, 8, dtype=torch.bool)
    masked[0, 5:9] = masked[1, :, 2:4] = True
    normalisation = Normalisation(mean=-5.0, std=2.0, padding=-7.0, by="clip")
    x = normalisation.without(values.masked_fill(masked, -15.9), padding, masked=masked)
    for clip, behind in zip(x, padding.unsqueeze(2) | masked, strict=True):
        assert clip[~behind].mean() == pytest.approx(0, abs=1e-5)
        assert clip[~behind].std(correction=0) == pytest.approx(0.5, abs=1e-5)
        assert (clip[behind] == -0.5).all()


def test_clip__silence_stays_silence() -> None:
    x = Normalisation(mean=-5.0, std=2.0, padding=-15.9, by="clip")(torch.full((1, 4, 2), -15.9), torch.tensor([4]))
    assert x.abs().max() < 1e-4


def test_without__takes_padding_anywhere() -> None:
    values = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)) - 5
    normalisation = Normalisation(mean=-5.0, std=2.0, padding=-15.9, by="clip")
    behind = normalisation(values, torch.tensor([4, 4]))
    moved = normalisation.without(values.roll(2, 1), torch.tensor([[True, True, False, False, False, False]] * 2))
    torch.testing.assert_close(moved, behind.roll(2, 1))


def test_loudest__is_of_the_real_frames() -> None:
    spectrogram = torch.full((2, 4, 3), -5.0)
    spectrogram[0, 1, 2], spectrogram[0, 3, 0], spectrogram[1, 3, 1] = 2.0, 9.0, 4.0
    assert loudest(spectrogram.half(), torch.tensor([3, 4])).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("by", ["dataset", "clip"])
def test_normalisation__gradients_reach_what_it_normalises(by: NormalizeBy) -> None:
    x = torch.randn(2, 20, 8, requires_grad=True)
    Normalisation(mean=-8.0, std=4.0, padding=-15.9, by=by)(x, torch.tensor([20, 9])).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad[:, :9].abs().sum() > 0)
    assert not x.grad[1, 9:].any()
