"""The same question several times: over folds, or with a few clips of each class drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.probe import ProbeRow

__all__ = ["draw_shots", "together"]


def draw_shots(truth: NDArray[np.bool_], shots: int, *, seed: int) -> NDArray[np.int64]:
    """Clips of which every class has `shots`, or all that it has: places in `truth` [clips, classes], ascending."""
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(column))[:shots] for column in truth.T]
    return np.unique(np.concatenate(chosen)).astype(np.int64)


def together(repeats: Sequence[Sequence[ProbeRow]]) -> list[ProbeRow]:
    """Means of the figures of rows at the same place, and the spread (standard deviation) of the leading one."""
    found: list[ProbeRow] = []
    for rows in zip(*repeats, strict=True):
        names = list(rows[0].figures)
        means = {name: float(np.mean([row.figures[name] for row in rows])) for name in names}
        leading = "mAP" if "mAP" in means else "accuracy"
        spread = float(np.std([row.figures[leading] for row in rows], ddof=1)) if len(rows) > 1 else None
        same = len({row.strength for row in rows}) == 1
        found.append(
            replace(
                rows[0],
                figures=means,
                repeats=len(rows),
                spread=spread,
                strength=rows[0].strength if same else None,
                scores=None,
            )
        )
    return found
