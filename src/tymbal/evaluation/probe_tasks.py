"""Probes of several sets of features of the same clips, side by side, also over folds and with few clips a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.linear import fit_logistic, fit_ridge, neighbour_scores, quality

__all__ = ["READERS", "ProbeRow", "ProbeTask", "aggregate", "draw_shots", "table"]

READERS = ("ridge", "logistic", "knn", "attentive")
"""What can read, in the order of the table."""


_NESTED = ("figures", "chosen_from", "layer_weights", "each", "scores", "truth", "marks", "asked")
"""Fields of a row that no single cell of a table holds."""


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One row of the table: a set of features and the reader that classifies them.

    Attributes:
        features: `baseline`, `plain` (the best plain line), `random` (the encoder with random weights), `teacher` or
            `model`, and `random+plain` and `model+plain`, side by side.
        pooling: How the tokens were pooled; for the baseline `moments`, for an attentive probe `tokens`. What was
            chosen stands behind: `grid:4` is a grid of four parts of the time; `grid:4/2` where folds or draws chose
            differently, the most frequent first.
        dimensions: Length of a feature vector; for an attentive probe of a token.
        reader: `logistic`, `ridge`, `knn` or `attentive`.
        strength: scikit-learn's C, for ridge its penalty, chosen inside the training clips; None for knn.
        figures: Accuracy, balanced accuracy and F1, or mAP and ROC AUC where clips have several labels.
        layer: Blocks that the tokens went through; None is all and the final norm, `both` the middle and that side by
            side, `mix` a learned sum of all.
        layer_weights: What each layer weighs in that sum, from the embedded patches to the last one; empty for others.
        shots: Clips of each class that were learned from; None is all.
        repeats: Folds or draws that the figures are means of.
        spread: Standard deviation of the leading figure over these; None for one.
        chosen_from: Accuracy or mAP of each description inside the clips to learn from, by a ridge regression; empty
            where there was no choice.
        each: The leading figure of each of the repeats.
        scores: Scores of the readable validation clips, [clips, classes]; None for means.
        truth: Which of these clips has which label, bool [clips, classes]; None for means.
        marks: Whether each clip that was asked was read right, of all folds, [clips]; None where clips have several
            labels or were drawn.
        asked: Which clips these are: places among all clips of the probe, [clips]; None where they were drawn.
    """

    features: str
    pooling: str
    dimensions: int
    reader: str
    strength: float | None
    figures: dict[str, float]
    layer: int | str | None = None
    layer_weights: tuple[float, ...] = ()
    shots: int | None = None
    repeats: int = 1
    spread: float | None = None
    chosen_from: Mapping[str, float] = field(default_factory=dict)
    each: tuple[float, ...] = ()
    scores: NDArray[np.floating[Any]] | None = field(default=None, compare=False, repr=False)
    truth: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    marks: NDArray[np.floating[Any]] | None = field(default=None, compare=False, repr=False)
    asked: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)

    @property
    def is_grid(self) -> bool:
        """Whether it was pooled by a grid whose parts were chosen."""
        return self.pooling.startswith("grid:")

    def flat(self) -> dict[str, Any]:
        """As one row of a table."""
        row = asdict(self)
        return {**{key: value for key, value in row.items() if key not in _NESTED}, **self.figures}

    def nested(self) -> dict[str, Any]:
        """As `flat`, with what was chosen from, and what layers weigh."""
        weights = {"layer_weights": list(self.layer_weights)} if self.layer_weights else {}
        return {**self.flat(), **({"chosen_from": dict(self.chosen_from)} if self.chosen_from else {}), **weights}


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
        """Reads features [clips, dimensions], those to learn from first, by all readers but the attentive one."""
        known, queries = np.split(features.astype(np.float64), [len(self.train)])
        rows: list[ProbeRow] = []
        if "ridge" in readers:
            fitted = fit_ridge(known, self.train, multilabel=self.multilabel, groups=self.groups, seed=self.seed)
            scores = fitted.scores(queries)
            rows.append(self.row(scores, name=name, pooling=pooling, reader="ridge", strength=fitted.strength))
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
        figures = quality(scores, self.validation, multilabel=self.multilabel)
        marks = None if self.multilabel else (scores.argmax(1) == self.validation.argmax(1)).astype(np.float64)
        return ProbeRow(
            features=name,
            pooling=pooling,
            dimensions=dimensions,
            reader=reader,
            strength=strength,
            figures=figures,
            each=(figures["mAP" if self.multilabel else "accuracy"],),
            scores=scores,
            truth=self.validation,
            marks=marks,
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
    named = max(10, *(len(row.features) + 2 for row in rows))
    pooled = max(10, *(len(row.pooling) + 2 for row in rows))
    head = f"{'features':<{named}}{'pooling':<{pooled}}{extra}{'dimensions':>{dimensions_wide}}  "
    lines = [f"{head}{''.join(f'{reader:>{wide}}' for reader in readers)}   ({figure}, %)"]
    cells_of: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        value = f"{100 * row.figures[figure]:.1f}"
        if row.spread is not None:
            value += f" ± {100 * row.spread:.1f}"
        place = (row.features, row.pooling, row.layer, row.shots, row.dimensions)
        cells_of.setdefault(place, {})[row.reader] = value
    for (features, pooling, layer, shots, dimensions), by in cells_of.items():
        last = "-" if features in ("baseline", "plain") else "last"
        cells = f"{last if layer is None else layer:>6}" * with_layer
        cells += f"{'all' if shots is None else shots:>6}" * with_shots
        begin = f"{features:<{named}}{pooling:<{pooled}}{cells}{dimensions:>{dimensions_wide}}  "
        lines.append(begin + "".join(f"{by.get(reader, '-'):>{wide}}" for reader in readers))
    return "\n".join(lines)


def draw_shots(truth: NDArray[np.bool_], shots: int, *, seed: int) -> NDArray[np.int64]:
    """Clips of which every class has `shots`, or all that it has: places in `truth` [clips, classes], ascending."""
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(column))[:shots] for column in truth.T]
    return np.unique(np.concatenate(chosen)).astype(np.int64)


def aggregate(repeats: Sequence[Sequence[ProbeRow]], *, folds: bool) -> list[ProbeRow]:
    """Means of the figures of rows at the same place, and the spread (standard deviation) of the leading one.

    Args:
        repeats: The rows of each fold or draw.
        folds: Whether each clip was asked once, so that marks of all clips can stand behind each other.
    """
    aggregated: list[ProbeRow] = []
    for rows in zip(*repeats, strict=True):
        names = list(rows[0].figures)
        means = {name: float(np.mean([row.figures[name] for row in rows])) for name in names}
        each = tuple(row.each[0] for row in rows)
        same = len({row.strength for row in rows}) == 1
        marks = [row.marks for row in rows if row.marks is not None]
        asked = [row.asked for row in rows if row.asked is not None]
        pooling, first = _common(rows)
        aggregated.append(
            replace(
                first,
                pooling=pooling,
                figures=means,
                repeats=len(rows),
                spread=float(np.std(each, ddof=1)) if len(rows) > 1 else None,
                strength=rows[0].strength if same else None,
                chosen_from=_mean_figures([row.chosen_from for row in rows]),
                each=each,
                layer_weights=tuple(np.mean([row.layer_weights for row in rows], axis=0).tolist()),
                scores=None,
                truth=None,
                marks=np.concatenate(marks) if folds and len(marks) == len(rows) else None,
                asked=np.concatenate(asked) if folds and len(asked) == len(rows) else None,
            )
        )
    return aggregated


def _common(rows: Sequence[ProbeRow]) -> tuple[str, ProbeRow]:
    """How the rows of one place were pooled, what most of them chose first; and the first row that was so."""
    chosen = [name for name, _ in Counter(row.pooling for row in rows).most_common()]
    first = next(row for row in rows if row.pooling == chosen[0])
    is_grid = first.is_grid and "+" not in first.pooling
    rest = [name.removeprefix("grid:") if is_grid else name for name in chosen[1:]]
    return "/".join([chosen[0], *rest]), first


def _mean_figures(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means by name over those of the repeats in which there was a choice."""
    made = [values for values in figures if values]
    return {name: float(np.mean([values[name] for values in made])) for name in made[0]} if made else {}
