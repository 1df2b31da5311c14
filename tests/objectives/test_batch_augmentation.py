from __future__ import annotations

import numpy as np
import torch

from tymbal.features.kaldi import KaldiFbank
from tymbal.objectives.batch_augmentation import Augmentation, mixing_shares
from tymbal.randomness import fold
from tymbal.settings import FeatureSettings

FRAMES = torch.tensor([8, 8, 4, 8])


def keys(count: int) -> torch.Tensor:
    return fold(1, torch.arange(count))


def test_mixing_shares__are_from_beta_10_10():
    shares = mixing_shares(keys(20_000)).numpy()
    assert abs(shares.mean() - 0.5) < 0.002
    assert abs(shares.var() - 1 / 84) < 3e-4  # a b / ((a + b)^2 (a + b + 1))
    drawn = np.random.default_rng(0).beta(10, 10, 200_000)
    points = [0.05, 0.25, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(shares, points), np.quantile(drawn, points), atol=0.005)


def test_mix__clips_and_labels_by_the_same_share():
    x = torch.full((4, 8, 2), -6.0) + torch.arange(4.0)[:, None, None]
    mixed, frames, target = Augmentation(mixup=1.0).mix(x.half(), FRAMES, torch.eye(4), keys(4))
    share = target.diagonal()
    assert ((share > 0.1) & (share < 0.9)).all()
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    torch.testing.assert_close(target[2, 1], 1 - share[2])
    torch.testing.assert_close(mixed[2, 0, 0], share[2] * x[2, 0, 0] + (1 - share[2]) * x[1, 0, 0])
    assert frames.tolist() == [8, 8, 8, 8]


def test_mix__energies_add_and_silence_adds_nothing():
    x = torch.zeros(4, 8, 2)  # 0 is loud; behind the end of the third clip it is padding
    mixed, _, target = Augmentation(mixup=1.0, mixup_of="energy").mix(x, FRAMES, torch.eye(4), keys(4))
    share = target.diagonal()[2]
    both, one = share.square() + (1 - share).square(), (1 - share).square()
    torch.testing.assert_close(mixed[2, 3, 0], both.log())
    torch.testing.assert_close(mixed[2, 4, 0], one.log())


def test_mix__waveforms_as_if_they_had_been_recorded_together():
    fbank = KaldiFbank(FeatureSettings(sample_rate=8000, mel_bins=16))
    sound = 0.1 * torch.randn(4, 1600, generator=torch.Generator().manual_seed(0)) + 0.02
    x = fbank(sound)
    frames = torch.full((4,), x.shape[1])
    augmentation = Augmentation(mixup=1.0, mixup_of="waveform")
    mixed, _, target = augmentation.mix(x, frames, torch.eye(4), keys(4), waveform=sound, fbank=fbank)
    share = target.diagonal()[2]
    torch.testing.assert_close(mixed[2], fbank(share * sound[2] + (1 - share) * sound[1]), atol=1e-4, rtol=0)


def test_mix__only_a_part_of_the_clips():
    x, many = torch.randn(1, 2, 2).expand(4000, 2, 2), torch.full((4000,), 2)
    _, frames, target = Augmentation(mixup=0.3).mix(x, many, torch.eye(4000, 4000), keys(4000))
    assert abs((target.diagonal() < 1).float().mean() - 0.3) < 0.02
    assert frames.equal(many)


def test_disturb__noise_is_low_and_a_clips_own():
    x = torch.zeros(6, 16, 8)
    noisy = Augmentation(noise=0.1).disturb(x, torch.full((6,), 16), keys(6))
    height = noisy.amax(dim=(1, 2))
    assert (noisy >= 0).all()
    assert height.max() < 0.1
    assert height.std() > 0.01
    again = Augmentation(noise=0.1).disturb(x[3:4], torch.tensor([16]), keys(6)[3:4])
    assert again[0].equal(noisy[3])


def test_disturb__shifts_around_the_end():
    x = torch.arange(16.0)[None, :, None].expand(300, 16, 2)
    shifted = Augmentation(roll=2).disturb(x, torch.full((300,), 16), keys(300))
    shifts = ((x[:, 0, 0] - shifted[:, 0, 0] + 8) % 16 - 8).long()
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}
    for clip, shift in zip(shifted, shifts.tolist(), strict=True):
        assert clip.equal(x[0].roll(shift, dims=0))
