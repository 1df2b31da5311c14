from __future__ import annotations

import numpy as np
import pytest

from tymbal.features.normalisation import Moments


def test_moments__equal_numpy_over_pieces_of_any_size() -> None:
    values = np.random.default_rng(0).normal(-7, 4, (1000, 16)).astype(np.float16)
    merged = Moments()
    for piece in np.split(values, [1, 10, 11, 500]):
        merged = merged.merge(Moments.of(piece))
    assert merged.count == values.size
    assert merged.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)
    assert merged.std == pytest.approx(values.astype(np.float64).std(), rel=1e-12)


def test_moments__keep_their_digits_far_from_zero() -> None:
    values = 1e8 + np.arange(100.0)
    merged = Moments.of(values[:30]).merge(Moments.of(values[30:]))
    assert merged.std == pytest.approx(np.arange(100.0).std(), rel=1e-9)


def test_moments__nothing_changes_nothing() -> None:
    some = Moments.of(np.array([1.0, 2.0, 4.0]))
    assert some.merge(Moments()) == some
    assert Moments().merge(some) == some
    assert Moments().merge(Moments.of(np.empty((0, 128)))) == Moments()
    assert Moments().std == 0.0
