from __future__ import annotations

import numpy as np

from tymbal.evaluation.probe_tasks import draw_shots


def test_draw_shots__takes_so_many_of_each_class() -> None:
    truth = np.eye(3, dtype=bool)[np.array([0] * 7 + [1] * 2 + [2] * 5)]
    assert truth[draw_shots(truth, 3, seed=0)].sum(axis=0).tolist() == [3, 2, 3]
    assert draw_shots(truth, 3, seed=0).tolist() != draw_shots(truth, 3, seed=1).tolist()
