from __future__ import annotations

import numpy as np
import pytest

from tymbal.exploring.downsample import Course


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100, 1013])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_course__columns_are_those_of_all_rows_at_once(how: str, rows: int, chunk: int) -> None:
    values = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    course = Course(4, 3, how)
    for start in range(0, rows, chunk):
        course.add(values[start : start + chunk])
        assert len(course.values) <= 2 * 4 + 1
    assert course.rows == rows
    assert course.per & (course.per - 1) == 0
    groups = [values[start : start + course.per] for start in range(0, rows, course.per)]
    expected = np.stack([group.mean(0) if how == "mean" else group.max(0) for group in groups])
    np.testing.assert_allclose(course.values, expected, atol=1e-5)


def test_course__few_rows_stay_as_they_are() -> None:
    course = Course(4, 2, "mean")
    assert course.values.shape == (0, 2)
    course.add(np.arange(16).reshape(8, 2))
    assert course.per == 1
    assert course.values.tolist() == np.arange(16).reshape(8, 2).tolist()
