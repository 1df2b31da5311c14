from __future__ import annotations

import numpy as np
import pytest

from tymbal.exploring.downsample import Downsampler


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100, 1013])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_downsampler__columns_are_those_of_all_rows_at_once(how: str, rows: int, chunk: int) -> None:
    values = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    downsampler = Downsampler(4, 3, how)
    for start in range(0, rows, chunk):
        downsampler.add(values[start : start + chunk])
        assert len(downsampler.values) <= 2 * 4 + 1
    assert downsampler.rows == rows
    assert downsampler.rows_per_column & (downsampler.rows_per_column - 1) == 0
    groups = [
        values[start : start + downsampler.rows_per_column] for start in range(0, rows, downsampler.rows_per_column)
    ]
    expected = np.stack([group.mean(0) if how == "mean" else group.max(0) for group in groups])
    np.testing.assert_allclose(downsampler.values, expected, atol=1e-5)


def test_downsampler__few_rows_stay_as_they_are() -> None:
    downsampler = Downsampler(4, 2, "mean")
    assert downsampler.values.shape == (0, 2)
    downsampler.add(np.arange(16).reshape(8, 2))
    assert downsampler.rows_per_column == 1
    assert downsampler.values.tolist() == np.arange(16).reshape(8, 2).tolist()
