from __future__ import annotations

import math

import pytest

from tymbal.features.bank import bin_at
from tymbal.settings import FeatureSettings


def test_bin_at__is_the_centre_of_a_kaldi_bin() -> None:
    features = FeatureSettings(sample_rate=16_000, mel_bins=128)
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, 8000))
    for number in (0, 5, 127):
        centre = low + (number + 1) * (high - low) / 129
        assert bin_at(features, 700 * (math.exp(centre / 1127) - 1)) == pytest.approx(number, abs=1e-6)


def test_bin_at__is_linear_to_one_kilohertz_with_librosa() -> None:
    features = FeatureSettings(filter_bank="librosa", sample_rate=22_050, mel_bins=128, low_freq=0)
    places = [bin_at(features, hertz) for hertz in (0, 500, 1000)]
    assert places[0] == -1
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])
