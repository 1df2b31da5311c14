"""How a classifier decides about labelled clips: what it confuses, each class, and its surest mistakes.

With several labels a clip there is no confusion matrix: of each class its hits, misses and false alarms, F1 and average
precision; curves of precision over recall; and which labels are wrongly said of clips that have another one, the
nearest thing to a confusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.scoring import LabelledScores
from tymbal.pages.charts import Line, lines
from tymbal.pages.page import NotShownError, cards, table, words
from tymbal.reporting.drawn_clips import Clips

__all__ = ["DECIDED", "by_class", "confusion", "confusion_matrix", "mistakes"]

DECIDED = 0.5
"""The score from which on a label counts as said."""

_MOST_CLASSES = 20
_MOST_PAIRS = 10
_MOST_CURVES = 15
_TOGETHER = 5  # curves a chart: more colours are hard to distinguish


def confusion(scored: LabelledScores) -> str:
    """The confusion matrix, or the worst part of one with many classes; with several labels, the decisions."""
    if scored.multilabel:
        return _decisions(scored)
    counts = np.zeros((len(scored.classes),) * 2, np.int64)
    np.add.at(counts, (scored.truth.argmax(1), scored.scores.argmax(1)), 1)
    return confusion_matrix(counts, scored.classes)


def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Counts [truth, said] as a matrix, or the worst of it, and the pairs that are confused most often."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.arange(len(classes))
    text = f"Rows are what {counts.sum():,} validation clips are, columns what the model says; counts."
    if len(classes) > _MOST_CLASSES:
        order = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST_CLASSES])
        text += f" Shown are the {_MOST_CLASSES} of {len(classes)} classes that are confused most."
    pairs = [(int(wrong[pair]), *pair) for pair in zip(*np.nonzero(wrong), strict=True)]
    worst = sorted(pairs, key=lambda pair: -pair[0])[:_MOST_PAIRS]
    rows = [(classes[true], classes[predicted], f"{count:,}") for count, true, predicted in worst]
    listed = table(("is", "is taken for", "clips"), rows, numbers=[2]) if rows else "<p>No clip is confused.</p>"
    return f"<p>{escape(text)}</p>{_matrix(counts, order, classes)}<h4>Confused most often</h4>{listed}"


def by_class(scored: LabelledScores) -> str:
    """How well the model recognises each class, the hardest first."""
    first = scored.scores == scored.scores.max(1, keepdims=True)
    predicted = scored.scores >= DECIDED if scored.multilabel else first
    hits, misses, alarms = _counted(scored.truth, predicted)
    with np.errstate(invalid="ignore"):  # 0 / 0 is shown as -
        recall, precision = hits / (hits + misses), hits / (hits + alarms)
    average = _average_precisions(scored)
    rows = sorted(
        (
            float(np.nan_to_num(average[place], nan=2.0)),
            (
                name,
                f"{hits[place] + misses[place]:,}",
                *(_percent(values[place]) for values in (recall, precision, average)),
            ),
        )
        for place, name in enumerate(scored.classes)
    )
    head = ("class", "clips", "found (recall)", "right (precision)", "average precision")
    return table(head, [cells for _, cells in rows], numbers=range(1, 5))


def mistakes(scored: LabelledScores, clips: Clips, *, most: int) -> str:
    """The clips about which the model is wrong and most sure, each with its spectrogram and sound.

    Raises:
        NotShownError: It is wrong about none.
    """
    claimed = np.where(scored.truth, -1.0, scored.scores)
    if not scored.multilabel:  # only its best label counts as a prediction
        claimed = np.where(scored.scores == scored.scores.max(1, keepdims=True), claimed, -1.0)
    best = claimed.max(1)
    order = [place for place in np.argsort(-best, kind="stable")[:most].tolist() if best[place] > 0]
    if scored.multilabel:
        order = [place for place in order if best[place] >= DECIDED]
    if not order:
        raise NotShownError("the model is wrong about none of the validation clips")
    drawn = []
    for place in order:
        predicted = int(claimed[place].argmax())
        true = [name for name, is_one in zip(scored.classes, scored.truth[place], strict=True) if is_one]
        text = f"is {', '.join(true) or 'none of the classes'}"
        if true:
            text += f" ({scored.scores[place][scored.truth[place]].max():.0%})"
        title = f"{scored.classes[predicted]} ({best[place]:.0%})"
        drawn.append(clips.card(int(scored.rows[place]), title=f"“{title}”", text=text))
    lead = "What the model says, with its score; below, what the clip is. Mistakes about which it is sure are often "
    lead += "wrong labels, or two sounds in one clip."
    return f"<p>{escape(lead)}</p>{cards(drawn)}"


def _matrix(counts: NDArray[np.int64], order: NDArray[np.int64], classes: Sequence[str]) -> str:
    heads = "".join(f'<th scope="col"><span>{escape(classes[place])}</span></th>' for place in order)
    rows: list[str] = []
    for row in order:
        total = max(int(counts[row].sum()), 1)
        cells = "".join(_cell(int(counts[row, column]), total, right=row == column) for column in order)
        rows.append(f'<tr><th scope="row">{words(classes[row])}</th>{cells}</tr>')
    inner = f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="confusion">{inner}</table></div>'


def _cell(count: int, total: int, *, right: bool) -> str:
    if not count:
        return '<td class="soft">·</td>'
    colour = "--cell" if right else "--wrong"
    # Never so strong that the figure in it could not be read, in light or dark.
    return f'<td style="background:rgba(var({colour}),{0.08 + 0.42 * count / total:.2f})">{count:,}</td>'


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.0f} %"


def _decisions(scored: LabelledScores) -> str:
    """Hits, misses and false alarms of each label, its thresholds, and its confusions with other labels."""
    average = _average_precisions(scored)
    order = np.argsort(average, kind="stable")  # without clips: last, as nan
    text = f"Decisions about {len(scored.truth):,} validation clips, of which one may have several labels; a label is "
    text += f"said where its score reaches {DECIDED:g}. The hardest classes come first."
    predicted = scored.scores >= DECIDED
    hits, misses, alarms = _counted(scored.truth, predicted)
    f1 = np.where(hits + misses > 0, 2 * hits / np.maximum(2 * hits + misses + alarms, 1), np.nan)
    rows = [
        (
            scored.classes[place],
            *(f"{counts[place]:,}" for counts in (hits + misses, hits, misses, alarms)),
            _percent(f1[place]),
            _percent(average[place]),
        )
        for place in order
    ]
    head = ("class", "clips", "hits", "misses", "false alarms", "F1", "average precision")
    listed = table(head, rows, numbers=range(1, 7))
    return f"<p>{escape(text)}</p>{listed}{_curves(scored, order)}{_together(scored, predicted)}"


def _counted(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """Hits, misses and false alarms of each class, [classes] each."""
    return (truth & predicted).sum(0), (truth & ~predicted).sum(0), (~truth & predicted).sum(0)


def _average_precisions(scored: LabelledScores) -> NDArray[np.float64]:
    """Of each class, [classes]; nan where no clip has it."""
    from sklearn.metrics import average_precision_score

    truth, scores = scored.truth, scored.scores
    return np.array(
        [
            average_precision_score(truth[:, place], scores[:, place]) if truth[:, place].any() else np.nan
            for place in range(truth.shape[1])
        ]
    )


def _curves(scored: LabelledScores, order: NDArray[np.int64]) -> str:
    from sklearn.metrics import precision_recall_curve

    truth = scored.truth
    known = [place for place in order.tolist() if truth[:, place].any()][:_MOST_CURVES]
    drawn: list[Line] = []
    for place in known:
        precision, recall, _ = precision_recall_curve(truth[:, place], scored.scores[:, place])
        drawn.append(Line(scored.classes[place], recall[::-1].tolist(), precision[::-1].tolist()))
    groups = [drawn[start : start + _TOGETHER] for start in range(0, len(drawn), _TOGETHER)]
    charts = "".join(
        lines(group, title="precision over recall", x_label="recall", bounds=(0.0, 1.0)) for group in groups
    )
    rest = f", of the {len(known)} hardest classes" if len(known) < truth.any(axis=0).sum() else ""
    text = f"Each point is a threshold: how much of the class is found, and how much of what is said is right{rest}."
    return f'<h4>Thresholds</h4><p>{escape(text)}</p><div class="grid">{charts}</div>' if drawn else ""


def _together(scored: LabelledScores, predicted: NDArray[np.bool_]) -> str:
    truth = scored.truth
    counts = truth.astype(np.int64).T @ (predicted & ~truth).astype(np.int64)
    np.fill_diagonal(counts, (truth & predicted).sum(axis=0))
    wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    order = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])
    text = "Rows are labels that clips have. In the diagonal, how often they are found; in the other columns, how "
    text += "often a label is said of these clips that they do not have."
    if len(order) < len(counts):
        text += f" Shown are the {_MOST_CLASSES} of {len(counts)} classes with most of that."
    drawn = _matrix(counts, order, scored.classes)
    return f"<h4>Said of clips that have another label</h4><p>{escape(text)}</p>{drawn}"
