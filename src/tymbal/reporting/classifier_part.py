"""What a classifier answers about labelled clips: what it confuses or decides, and where it is wrong and sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.scoring import LabelledScores
from tymbal.pages.charts import Line, lines
from tymbal.pages.page import NotShownError, cards, table, words
from tymbal.reporting.clip_cards import Clips

__all__ = ["DECIDED", "Answers", "confusion_matrix", "decisions"]

_MOST_CLASSES = 20
_MOST_PAIRS = 10


class Answers(LabelledScores):
    """Scores of clips beside their labels, to be drawn."""

    def confusion(self) -> str:
        """The confusion matrix, or the worst of it where there are many classes; with several labels, decisions."""
        if self.multilabel:
            return decisions(self.classes, self.truth, self.scores, self._matrix, most=_MOST_CLASSES)
        counts = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(counts, (self.truth.argmax(1), self.scores.argmax(1)), 1)
        return confusion_matrix(counts, self.classes)

    def _matrix(self, counts: NDArray[np.int64], order: NDArray[np.int64]) -> str:
        return _matrix(counts, order, self.classes)

    def by_class(self) -> str:
        """How well each class is told."""
        from sklearn.metrics import average_precision_score

        said = self.scores >= DECIDED if self.multilabel else self.scores == self.scores.max(1, keepdims=True)
        rows: list[tuple[float, tuple[str, ...]]] = []
        for place, name in enumerate(self.classes):
            true, told = self.truth[:, place], said[:, place]
            hits = float((true & told).sum())
            precision = hits / told.sum() if told.any() else np.nan
            average = average_precision_score(true, self.scores[:, place]) if true.any() else np.nan
            recall = hits / true.sum() if true.any() else np.nan
            cells = (name, f"{true.sum():,}", _percent(recall), _percent(precision), _percent(average))
            rows.append((float(np.nan_to_num(average, nan=2.0)), cells))
        head = ("class", "clips", "found (recall)", "right (precision)", "average precision")
        return table(head, [cells for _, cells in sorted(rows)], numbers=range(1, 5))

    def mistakes(self, clips: Clips, *, most: int) -> str:
        """The clips about which the model is wrong and most sure, each with its spectrogram and sound.

        Raises:
            NotShownError: It is wrong about none.
        """
        claimed = np.where(self.truth, -1.0, self.scores)
        if not self.multilabel:  # only what it says first is a claim
            claimed = np.where(self.scores == self.scores.max(1, keepdims=True), claimed, -1.0)
        best = claimed.max(1)
        order = [place for place in np.argsort(-best, kind="stable")[:most].tolist() if best[place] > 0]
        if self.multilabel:
            order = [place for place in order if best[place] >= DECIDED]
        if not order:
            raise NotShownError("the model is wrong about none of the validation clips")
        drawn = []
        for place in order:
            said = int(claimed[place].argmax())
            true = [name for name, is_one in zip(self.classes, self.truth[place], strict=True) if is_one]
            text = f"is {', '.join(true) or 'none of the classes'}"
            if true:
                text += f" ({self.scores[place][self.truth[place]].max():.0%})"
            title = f"{self.classes[said]} ({best[place]:.0%})"
            drawn.append(clips.card(int(self.rows[place]), title=f"“{title}”", text=text))
        lead = (
            "What the model says, with its score; below, what the clip is. Mistakes about which it is sure are often "
        )
        lead += "wrong labels, or two sounds in one clip."
        return f"<p>{escape(lead)}</p>{cards(drawn)}"


def confusion_matrix(counts: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Counts [truth, said] as a matrix, or the worst of it, and the pairs that are confused most often."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.arange(len(classes))
    text = f"Rows are what {counts.sum():,} validation clips are, columns what the model says; counts."
    if len(classes) > _MOST_CLASSES:
        order = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST_CLASSES])
        text += f" Shown are the {_MOST_CLASSES} of {len(classes)} classes that are confused most."
    pairs = [(int(wrong[pair]), *pair) for pair in zip(*np.nonzero(wrong), strict=True)]
    worst = sorted(pairs, key=lambda pair: -pair[0])[:_MOST_PAIRS]
    rows = [(classes[true], classes[said], f"{count:,}") for count, true, said in worst]
    listed = table(("is", "is taken for", "clips"), rows, numbers=[2]) if rows else "<p>No clip is confused.</p>"
    return f"<p>{escape(text)}</p>{_matrix(counts, order, classes)}<h4>Confused most often</h4>{listed}"


def _matrix(counts: NDArray[np.int64], order: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    heads = "".join(f'<th scope="col"><span>{escape(classes[place])}</span></th>' for place in order)
    lines: list[str] = []
    for row in order:
        total = max(int(counts[row].sum()), 1)
        cells = "".join(_cell(int(counts[row, column]), total, right=row == column) for column in order)
        lines.append(f'<tr><th scope="row">{words(classes[row])}</th>{cells}</tr>')
    inner = f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="confusion">{inner}</table></div>'


def _cell(count: int, total: int, *, right: bool) -> str:
    if not count:
        return '<td class="soft">·</td>'
    colour = "--cell" if right else "--wrong"
    # Never so strong that the figure in it could not be read, in light or dark.
    return f'<td style="background:rgba(var({colour}),{0.08 + 0.42 * count / total:.2f})">{count:,}</td>'


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.0f} %"


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
