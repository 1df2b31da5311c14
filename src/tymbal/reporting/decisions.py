"""What is decided of each label where a clip may have several: no matrix can say what is taken for what.

Instead: of each class its hits, misses and false alarms, F1 and average precision; curves of precision over recall; and
which labels are wrongly said of clips that have another one, the nearest thing to a confusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from tymbal.reporting.charts import Line, lines
from tymbal.reporting.page import table

__all__ = ["DECIDED", "decisions"]

DECIDED = 0.5
"""The score from which on a label counts as said."""

_MOST_CURVES = 15
_TOGETHER = 5  # curves a chart: more colours than that nobody tells apart

Matrix = Callable[[NDArray[np.int64], NDArray[np.int64]], str]


def decisions(
    classes: Sequence[str], truth: NDArray[np.bool_], scores: NDArray[np.float32], matrix: Matrix, *, most: int
) -> str:
    """All of it.

    Args:
        classes: Names of the classes.
        truth: Which clip is of which class, bool [clips, classes].
        scores: Probabilities, [clips, classes].
        matrix: Draws counts [classes, classes] of some classes.
        most: Classes of the matrix at most.
    """
    average = _average_precisions(truth, scores)
    order = np.argsort(average, kind="stable")  # without clips: last, as nan
    text = f"Decisions about {len(truth):,} validation clips, of which one may have several labels; a label is said "
    text += f"where its score reaches {DECIDED:g}. The hardest classes come first."
    said = scores >= DECIDED
    rows = [_row(classes[place], truth[:, place], said[:, place], average[place]) for place in order]
    head = ("class", "clips", "hits", "misses", "false alarms", "F1", "average precision")
    listed = table(head, rows, numbers=range(1, 7))
    return (
        f"<p>{escape(text)}</p>{listed}{_curves(classes, truth, scores, order)}"
        f"{_together(truth, said, matrix, most=most)}"
    )


def _row(name: str, true: NDArray[np.bool_], told: NDArray[np.bool_], average: float) -> tuple[str, ...]:
    hits, misses, alarms = int((true & told).sum()), int((true & ~told).sum()), int((~true & told).sum())
    f1 = "-" if not hits + misses else f"{200 * hits / (2 * hits + misses + alarms):.0f} %"
    shown = "-" if np.isnan(average) else f"{100 * average:.0f} %"
    return (name, f"{hits + misses:,}", f"{hits:,}", f"{misses:,}", f"{alarms:,}", f1, shown)


def _average_precisions(truth: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    from sklearn.metrics import average_precision_score

    return np.array(
        [
            average_precision_score(truth[:, place], scores[:, place]) if truth[:, place].any() else np.nan
            for place in range(truth.shape[1])
        ]
    )


def _curves(
    classes: Sequence[str], truth: NDArray[np.bool_], scores: NDArray[np.float32], order: NDArray[np.int64]
) -> str:
    from sklearn.metrics import precision_recall_curve

    known = [place for place in order.tolist() if truth[:, place].any()][:_MOST_CURVES]
    drawn: list[Line] = []
    for place in known:
        precision, recall, _ = precision_recall_curve(truth[:, place], scores[:, place])
        drawn.append(Line(classes[place], recall[::-1].tolist(), precision[::-1].tolist()))
    groups = [drawn[start : start + _TOGETHER] for start in range(0, len(drawn), _TOGETHER)]
    charts = "".join(
        lines(group, title="precision over recall", x_label="recall", bounds=(0.0, 1.0)) for group in groups
    )
    rest = f", of the {len(known)} hardest classes" if len(known) < truth.any(axis=0).sum() else ""
    text = f"Each point is a threshold: how much of the class is found, and how much of what is said is right{rest}."
    return f'<h4>Thresholds</h4><p>{escape(text)}</p><div class="grid">{charts}</div>' if drawn else ""


def _together(truth: NDArray[np.bool_], said: NDArray[np.bool_], matrix: Matrix, *, most: int) -> str:
    counts = truth.astype(np.int64).T @ (said & ~truth).astype(np.int64)
    np.fill_diagonal(counts, (truth & said).sum(axis=0))
    wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    order = np.sort(np.argsort(-wrong, kind="stable")[:most])
    text = "Rows are labels that clips have. In the diagonal, how often they are found; in the other columns, how "
    text += "often a label is said of these clips that they do not have."
    if len(order) < len(counts):
        text += f" Shown are the {most} of {len(counts)} classes with most of that."
    return f"<h4>Said of clips that have another label</h4><p>{escape(text)}</p>{matrix(counts, order)}"
