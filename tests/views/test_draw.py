from __future__ import annotations

import torch

from tymbal.settings.augmentation import (
    SPECTROGRAM,
    WAVEFORM,
    AugmentationSettings,
    Gain,
    Noise,
    Strategy,
    WaveformAugmentations,
)
from tymbal.views.draw import clip_key, draw, view_keys


def keys(count: int = 500, *, seed: int = 0) -> torch.Tensor:
    return view_keys(seed, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def test_draw__as_many_as_wanted_without_repetition_and_all_alike() -> None:
    draws = draw(AugmentationSettings(), keys(), [0] * 1000)
    waveform, spectrogram = draws.active[:, : len(WAVEFORM)], draws.active[:, len(WAVEFORM) :]
    assert (waveform.sum(1) == 3).all()
    assert (spectrogram.sum(1) == 2).all()
    share = waveform.float().mean(0)
    assert share[WAVEFORM.index("background")] == 0
    others = share[[place for place, name in enumerate(WAVEFORM) if name != "background"]]
    assert ((others - 3 / 11).abs() < 0.05).all()
    assert ((spectrogram.float().mean(0) - 2 / len(SPECTROGRAM)).abs() < 0.05).all()


def test_draw__is_a_function_of_seed_clip_version_and_view_alone() -> None:
    settings = AugmentationSettings()
    clips, versions = torch.tensor([7, 8, 9]), torch.tensor([0, 1, 2])
    together = view_keys(3, clips, versions)
    for place in range(3):
        alone = view_keys(3, clips[place : place + 1], versions[place : place + 1])
        assert alone.equal(together[2 * place : 2 * place + 2])
        one = draw(settings, alone, [place] * 2)
        part = draw(settings, together, [0, 0, 1, 1, 2, 2]).part(2 * place, 2 * place + 2)
        assert one.active.equal(part.active)
        assert one.values.equal(part.values)
    everything = [view_keys(s, torch.tensor([c]), torch.tensor([v])) for s in (0, 1) for c in (0, 1) for v in (0, 1)]
    assert len(set(torch.cat(everything).tolist())) == 16


def test_draw__ranges_probabilities_and_neutral_values() -> None:
    settings = AugmentationSettings(
        num_waveform_augs=2,
        num_spectrogram_augs=0,
        waveform=WaveformAugmentations(gain=Gain(probability=0.25, db=(-6.0, 2.0)), noise=Noise(snr=(10.0, 20.0))),
    )
    draws = draw(settings, keys(), [0] * 1000)
    louder = draws.views("gain")
    assert 0.2 < len(louder) / 1000 < 0.3
    assert len(draws.views("noise")) == 1000
    db = draws.value("gain", "db")
    assert (db[~draws.active[:, WAVEFORM.index("gain")]] == 0).all()
    assert -6 <= db[louder].min() < -5.5
    assert 1.5 < db[louder].max() < 2


def test_draw__versions_have_strategies_of_their_own() -> None:
    settings = AugmentationSettings(
        strategies=(Strategy(), Strategy(num_waveform_augs=1, waveform=("gain", "noise"), num_spectrogram_augs=0))
    )
    draws = draw(settings, keys(300), [0, 1, 2] * 200)
    one, other = draws.active[1::3], draws.active[0::3]
    assert (one.sum(1) == 1).all()
    assert set(one.any(0).nonzero().flatten().tolist()) == {WAVEFORM.index("gain"), WAVEFORM.index("noise")}
    assert (other.sum(1) == 5).all()
    assert (draws.active[2::3].sum(1) == 5).all()


def test_clip_key__fits_a_signed_integer() -> None:
    assert clip_key("a") != clip_key("b")
    assert 0 <= clip_key("a") < 2**63
