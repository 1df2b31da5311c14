"""Linear probes and nearest neighbours on several sets of features of the same clips, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    """

    features: str
    pooling: str
    dimensions: int
    reader: str
    strength: float | None
    figures: dict[str, float]

    def flat(self) -> dict[str, Any]:
        """As one row of a table."""
        row = asdict(self)
        return {**{key: value for key, value in row.items() if key != "figures"}, **self.figures}


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
            )
            for reader, (strength, scores) in read.items()
        ]


def table(rows: Sequence[ProbeRow], *, multilabel: bool) -> str:
    """The rows as text, a line for each set of features, the leading figure of both readers in percent."""
    figure = "mAP" if multilabel else "accuracy"
    lines = [f"{'features':<10}{'pooling':<10}{'dimensions':>10}{'logistic':>12}{'knn':>10}   ({figure}, %)"]
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row.features, row.pooling, row.dimensions), {})[row.reader] = 100 * row.figures[figure]
    for (features, pooling, dimensions), by in found.items():
        lines.append(f"{features:<10}{pooling:<10}{dimensions:>10}{by['logistic']:>12.1f}{by['knn']:>10.1f}")
    return "\n".join(lines)
