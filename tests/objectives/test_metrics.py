from __future__ import annotations

import pytest
import torch

from tymbal.objectives.metrics import RunningSums


def test_sums__of_any_shape_start_again_after_each_look():
    running = RunningSums()
    for count in (1, 2):
        running.add({"count": torch.tensor(count), "matrix": torch.full((2, 2), count), "flag": torch.tensor(True)})
    taken = running.take()
    assert taken["count"].item() == 3
    assert taken["matrix"].tolist() == [[3, 3], [3, 3]]
    assert taken["flag"].item() == 2
    assert running.take() == {}


def test_sums__stay_exact_over_many_batches():
    running = RunningSums()
    for _ in range(1000):
        running.add({"sum": torch.tensor(16_777_217.0, dtype=torch.float64).float() + 0, "count": torch.tensor(2**40)})
    taken = running.take()
    assert taken["sum"].dtype == torch.float64
    assert taken["sum"].item() == 1000 * 16_777_216.0
    assert taken["count"].item() == 1000 * 2**40


def test_sums__do_not_touch_what_was_added():
    running, value = RunningSums(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    running.add({"sum": value})
    running.add({"sum": value})
    assert running.take()["sum"].item() == pytest.approx(2.0)
    assert value.item() == 1.0
