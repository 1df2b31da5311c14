"""Whether pretraining has paid: the model's line beside the best of plain line and random weights, with a margin.

The lines are not picked by the figures that they reach on the clips that are asked: the model is read by the first
reader, by the grid where there is one, from both layers where both were read or else the last one; random weights in
the same way; the plain line was chosen inside the clips to learn from. Only the better of the two others is picked by
its figure, which is to the model's disadvantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tymbal.evaluation.probe_tasks import ProbeRow
from tymbal.evaluation.selection import Margin, margin_of_figures, margin_of_marks, margin_of_scores

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The model beside the best of plain line and random weights.

    Attributes:
        figure: Name of the figure, `accuracy` or `mAP`.
        reader: What reads both.
        pooling: How the model was pooled.
        model: Its figure.
        against: What it is compared with: `plain` or `random`.
        against_pooling: How that was pooled.
        best: Figure of that.
        margin: Half the width of the 95 % interval of the difference.
        groups: Groups whose spread the margin is; None where it takes clips (or folds) as independent.
    """

    figure: str
    reader: str
    pooling: str
    model: float
    against: str
    against_pooling: str
    best: float
    margin: float
    groups: int | None

    @property
    def pays(self) -> bool:
        """Whether the model is above the other beyond the margin."""
        return self.model - self.best > self.margin

    def text(self) -> str:
        """The verdict as a sentence."""
        difference = self.model - self.best
        said = "Pretraining pays here"
        if not self.pays:
            said = "Pretraining does not pay here" if difference < -self.margin else "No clear gain by pretraining here"
        other = "random weights" if self.against == "random" else "the plain line"
        kind = "clips as independent" if self.groups is None else f"{self.groups} groups"
        return (
            f"{said}: the model reads {100 * self.model:.1f} % ({self.pooling}, {self.reader}), the best of plain line "
            f"and random weights {100 * self.best:.1f} % ({other}, {self.against_pooling}): {100 * difference:+.1f} "
            f"points, 95 % margin ± {100 * self.margin:.1f} ({kind})."
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "pays": self.pays, "text": self.text()}


def judge(
    rows: Sequence[ProbeRow], *, groups: Sequence[str] | None, multilabel: bool, readers: Sequence[str]
) -> Verdict | None:
    """Compares the lines of a probe.

    Args:
        rows: The lines.
        groups: The group of each clip of the probe, by the places in `ProbeRow.asked`.
        multilabel: Whether clips have several labels.
        readers: All readers, in the order in which they are preferred.

    Returns:
        The verdict; None where there is nothing to compare the model with, or no clip that both were asked about.
    """
    for reader in readers:
        model = _line(rows, "model", reader)
        if model is None:
            continue
        others = [_line(rows, name, reader) for name in ("plain", "random")]
        known = [row for row in others if row is not None]
        if not known:
            return None
        figure = "mAP" if multilabel else "accuracy"
        best = max(known, key=lambda row: row.figures[figure])
        margin = _margin(model, best, groups)
        if margin is None:
            return None
        return Verdict(
            figure=figure,
            reader=reader,
            pooling=model.pooling,
            model=model.figures[figure],
            against=best.features,
            against_pooling=best.pooling,
            best=best.figures[figure],
            margin=margin.half,
            groups=margin.groups,
        )
    return None


def _line(rows: Sequence[ProbeRow], features: str, reader: str) -> ProbeRow | None:
    """The line of features that stands for them, without a look at its figure."""
    among = [row for row in rows if row.features == features and row.reader == reader and row.shots is None]
    return max(among, key=lambda row: (row.is_grid, row.layer == "both", row.layer is None), default=None)


def _margin(model: ProbeRow, other: ProbeRow, groups: Sequence[str] | None) -> Margin | None:
    if model.asked is None or other.asked is None:
        return None
    common, here, there = np.intersect1d(model.asked, other.asked, return_indices=True)
    if not len(common):
        return None
    asked = None if groups is None else [groups[place] for place in common.tolist()]
    if model.marks is not None and other.marks is not None:
        return margin_of_marks(model.marks[here] - other.marks[there], asked)
    if model.scores is not None and other.scores is not None and model.truth is not None:
        return margin_of_scores(model.scores[here], other.scores[there], model.truth[here], asked)
    if len(model.each) > 1 and len(model.each) == len(other.each):
        return margin_of_figures(np.array(model.each) - np.array(other.each))
    return None
