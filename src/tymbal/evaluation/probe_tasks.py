"""Probes of several sets of features of the same clips, side by side, also over folds and with few clips a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.linear import fit_logistic, neighbour_scores, quality

__all__ = ["READERS", "ProbeRow", "ProbeTask", "aggregate", "draw_shots", "table"]

READERS = ("logistic", "knn", "attentive")
"""What can read, in the order of the table."""


_NESTED = ("figures", "scores", "truth")
"""Fields of a row that no single cell of a table holds."""


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One row of the table: a set of features and the reader that classifies them.

    Attributes:
        features: `baseline`, `random` (the encoder with random weights) or `model`.
        pooling: How the tokens were pooled; for the baseline `moments`, for an attentive probe `tokens`.
        dimensions: Length of a feature vector; for an attentive probe of a token.
        reader: `logistic`, `knn` or `attentive`.
        strength: scikit-learn's C, chosen inside the training clips; None for knn.
        figures: Accuracy, balanced accuracy and F1, or mAP and ROC AUC where clips have several labels.
        layer: Blocks that the tokens went through; None is all and the final norm.
        shots: Clips of each class that were learned from; None is all.
        repeats: Folds or draws that the figures are means of.
        spread: Standard deviation of the leading figure over these; None for one.
        scores: Scores of the readable validation clips, [clips, classes]; None for means.
        truth: Which of these clips has which label, bool [clips, classes]; None for means.
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
    truth: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)

    def flat(self) -> dict[str, Any]:
        """As one row of a table."""
        row = asdict(self)
        return {**{key: value for key, value in row.items() if key not in _NESTED}, **self.figures}


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """A task that every set of features is measured by.

    Attributes:
        train: Labels of the clips to learn from, bool [clips, classes].
        validation: Labels of the clips to score, bool [clips, classes].
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

    def run(
        self,
        features: NDArray[np.floating[Any]],
        *,
        name: str,
        pooling: str,
        readers: Sequence[str] = ("logistic", "knn"),
    ) -> list[ProbeRow]:
        """Reads features [clips, dimensions], those to learn from first, by logistic regression and neighbours."""
        known, queries = np.split(features.astype(np.float64), [len(self.train)])
        rows: list[ProbeRow] = []
        if "logistic" in readers:
            fitted = fit_logistic(known, self.train, multilabel=self.multilabel, groups=self.groups, seed=self.seed)
            scores = fitted.scores(queries)
            rows.append(self.row(scores, name=name, pooling=pooling, reader="logistic", strength=fitted.strength))
        if "knn" in readers:
            votes = neighbour_scores(known, self.train, queries, neighbours=self.neighbours)
            rows.append(self.row(votes, name=name, pooling=pooling, reader="knn"))
        return [replace(row, dimensions=features.shape[1]) for row in rows]

    def row(
        self,
        scores: NDArray[np.floating[Any]],
        *,
        name: str,
        pooling: str,
        reader: str,
        dimensions: int = 0,
        strength: float | None = None,
    ) -> ProbeRow:
        """Evaluates a reader's scores [clips, classes] of the validation clips."""
        return ProbeRow(
            features=name,
            pooling=pooling,
            dimensions=dimensions,
            reader=reader,
            strength=strength,
            figures=quality(scores, self.validation, multilabel=self.multilabel),
            scores=scores,
            truth=self.validation,
        )


def table(rows: Sequence[ProbeRow], *, multilabel: bool) -> str:
    """The rows as text, a line for each set of features, the leading figure of each reader in percent.

    Layers and shots have a column if any row has them; means are followed by their spread.
    """
    figure = "mAP" if multilabel else "accuracy"
    readers = [reader for reader in READERS if any(row.reader == reader for row in rows)]
    with_layer = any(row.layer is not None for row in rows)
    with_shots = any(row.shots is not None for row in rows)
    wide = 14 if any(row.spread is not None for row in rows) else 10
    extra = f"{'layer':>6}" * with_layer + f"{'shots':>6}" * with_shots
    dimensions_wide = 12 if extra else 10
    head = f"{'features':<10}{'pooling':<10}{extra}{'dimensions':>{dimensions_wide}}  "
    lines = [f"{head}{''.join(f'{reader:>{wide}}' for reader in readers)}   ({figure}, %)"]
    cells_of: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        value = f"{100 * row.figures[figure]:.1f}"
        if row.spread is not None:
            value += f" ± {100 * row.spread:.1f}"
        place = (row.features, row.pooling, row.layer, row.shots, row.dimensions)
        cells_of.setdefault(place, {})[row.reader] = value
    for (features, pooling, layer, shots, dimensions), by in cells_of.items():
        last = "-" if features == "baseline" else "last"
        cells = f"{last if layer is None else layer:>6}" * with_layer
        cells += f"{'all' if shots is None else shots:>6}" * with_shots
        begin = f"{features:<10}{pooling:<10}{cells}{dimensions:>{dimensions_wide}}  "
        lines.append(begin + "".join(f"{by.get(reader, '-'):>{wide}}" for reader in readers))
    return "\n".join(lines)


def draw_shots(truth: NDArray[np.bool_], shots: int, *, seed: int) -> NDArray[np.int64]:
    """Clips of which every class has `shots`, or all that it has: places in `truth` [clips, classes], ascending."""
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(column))[:shots] for column in truth.T]
    return np.unique(np.concatenate(chosen)).astype(np.int64)


def aggregate(repeats: Sequence[Sequence[ProbeRow]]) -> list[ProbeRow]:
    """Means of the figures of rows at the same place, and the spread (standard deviation) of the leading one."""
    aggregated: list[ProbeRow] = []
    for rows in zip(*repeats, strict=True):
        names = list(rows[0].figures)
        means = {name: float(np.mean([row.figures[name] for row in rows])) for name in names}
        leading = "mAP" if "mAP" in means else "accuracy"
        spread = float(np.std([row.figures[leading] for row in rows], ddof=1)) if len(rows) > 1 else None
        same = len({row.strength for row in rows}) == 1
        aggregated.append(
            replace(
                rows[0],
                figures=means,
                repeats=len(rows),
                spread=spread,
                strength=rows[0].strength if same else None,
                scores=None,
                truth=None,
            )
        )
    return aggregated
