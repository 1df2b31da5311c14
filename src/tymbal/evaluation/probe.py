"""Linear probes and nearest neighbours on several sets of features of the same clips, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.linear import fit_logistic, neighbour_scores, quality

__all__ = ["ProbeRow", "Question", "table"]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One line of the table: a set of features and what reads them.

    Attributes:
        features: `baseline`, `random` (the encoder with random weights) or `model`.
        pooling: How the tokens were pooled; for the baseline `moments`.
        dimensions: Length of a feature vector.
        reader: `logistic` or `knn`.
        strength: scikit-learn's C, chosen inside the training clips; None for knn.
        figures: Accuracy, balanced accuracy and F1, or mAP and ROC AUC where clips have several labels.
        layer: Blocks that the tokens went through; None is all and the final norm.
        shots: Clips of each class that were learned from; None is all.
        repeats: Folds or draws that the figures are means of.
        spread: Standard deviation of the leading figure over these; None for one.
        scores: Of the clips that were asked, [clips, classes]; None for means.
    """

    features: str
    pooling: str
    dimensions: int
    reader: str
    strength: float | None
    figures: dict[str, float]
    layer: int | None = None
    shots: int | None = None
    repeats: int = 1
    spread: float | None = None
    scores: NDArray[np.floating[Any]] | None = field(default=None, compare=False, repr=False)

    def flat(self) -> dict[str, Any]:
        """As one row of a table."""
        row = asdict(self)
        return {**{key: value for key, value in row.items() if key not in ("figures", "scores")}, **self.figures}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every set of features.

    Attributes:
        train: Labels of the clips to learn from, bool [clips, classes].
        validation: Labels of the clips to be asked, bool [clips, classes].
        groups: Groups of the clips to learn from, where they have them.
        multilabel: Whether a clip may have several labels.
        neighbours: Neighbours that vote.
        seed: Seed of the inner split.
    """

    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    groups: Sequence[str] | None
    multilabel: bool
    neighbours: int
    seed: int

    def ask(self, features: NDArray[np.floating[Any]], *, name: str, pooling: str) -> list[ProbeRow]:
        """Reads features [clips, dimensions], those to learn from first, in both ways."""
        known, asked = np.split(features.astype(np.float64), [len(self.train)])
        fitted = fit_logistic(known, self.train, multilabel=self.multilabel, groups=self.groups, seed=self.seed)
        votes = neighbour_scores(known, self.train, asked, neighbours=self.neighbours)
        read = {"logistic": (fitted.strength, fitted.scores(asked)), "knn": (None, votes)}
        return [
            ProbeRow(
                features=name,
                pooling=pooling,
                dimensions=features.shape[1],
                reader=reader,
                strength=strength,
                figures=quality(scores, self.validation, multilabel=self.multilabel),
                scores=scores,
            )
            for reader, (strength, scores) in read.items()
        ]


def table(rows: Sequence[ProbeRow], *, multilabel: bool) -> str:
    """The rows as text, a line for each set of features, the leading figure of both readers in percent.

    Layers and shots have a column where there are any, and means stand with their spread.
    """
    figure = "mAP" if multilabel else "accuracy"
    with_layer = any(row.layer is not None for row in rows)
    with_shots = any(row.shots is not None for row in rows)
    with_spread = any(row.spread is not None for row in rows)
    wide = 14 if with_spread else 10
    extra = f"{'layer':>6}" * with_layer + f"{'shots':>6}" * with_shots
    dimensions_wide = 12 if extra else 10
    head = f"{'features':<10}{'pooling':<10}{extra}{'dimensions':>{dimensions_wide}}"
    lines = [f"{head}{'logistic':>{wide + 2}}{'knn':>{wide}}   ({figure}, %)"]
    found: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        value = f"{100 * row.figures[figure]:.1f}"
        if row.spread is not None:
            value += f" ± {100 * row.spread:.1f}"
        place = (row.features, row.pooling, row.layer, row.shots, row.dimensions)
        found.setdefault(place, {})[row.reader] = value
    for (features, pooling, layer, shots, dimensions), by in found.items():
        last = "-" if features == "baseline" else "last"
        cells = f"{last if layer is None else layer:>6}" * with_layer
        cells += f"{'all' if shots is None else shots:>6}" * with_shots
        begin = f"{features:<10}{pooling:<10}{cells}{dimensions:>{dimensions_wide}}"
        lines.append(f"{begin}{by['logistic']:>{wide + 2}}{by['knn']:>{wide}}")
    return "\n".join(lines)
