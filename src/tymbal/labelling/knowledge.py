"""How much is known by now: labels, how good the head is on a blind sample, and whether more answers are worth it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.linear import quality
from tymbal.labelling.head import Examples, Head
from tymbal.labelling.table import Answer
from tymbal.labelling.windows import Windows

__all__ = ["History", "Knowledge", "Measured", "Share", "history_of", "share_of", "what_is_known"]

Share = tuple[float, float, float]
"""A share with the ends of its 95 % interval."""

_Z = 1.959964
_RECENT = 100
_BLOCK = 10
_CALM = 5
_FEW = 50
_MISSING = 0.1
_POSITIVES = 5
_POINTS = 12


@dataclass(frozen=True)
class Measured:
    """How good the head is at a label, on the blind sample.

    Attributes:
        precision: Of the windows that it gives the label to, the share that has it; None where there are none.
        recall: Of the windows with the label, the share that it gives it to; None where there are none.
    """

    precision: Share | None
    recall: Share | None


@dataclass(frozen=True)
class Knowledge:
    """What is known by now.

    Attributes:
        counts: Windows with each label.
        nothing: Windows in which nothing is.
        unsure: Windows of which a person was unsure.
        checked: Answers of the blind sample.
        measured: By label, how good the head is.
        curve: Answers, and a figure of heads that were fitted to so many.
        curve_name: The figure.
        undiscovered: Estimated share of the windows with labels that is not labelled yet; None where it is not known.
        changed: Of the last hundred answers, how many were not what the head had expected; None for fewer.
        advice: What to do, in one sentence.
        enough: Whether further answers change little.
    """

    counts: Mapping[str, int]
    nothing: int = 0
    unsure: int = 0
    checked: int = 0
    measured: Mapping[str, Measured] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()
    curve_name: str = ""
    undiscovered: float | None = None
    changed: int | None = None
    advice: str = ""
    enough: bool = False


def share_of(hits: int, count: int) -> Share | None:
    """A share with its 95 % interval (Wilson 1927); None of nothing."""
    if not count:
        return None
    share = hits / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    margin = _Z / (1 + _Z**2 / count) * sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return share, max(0.0, middle - margin), min(1.0, middle + margin)


@dataclass(frozen=True)
class History:
    """What heads of fewer answers would have said; it takes some fits, and is known for every ten answers.

    Attributes:
        curve: Answers, and the figure.
        curve_name: The figure.
        changed: Of the last hundred answers, those that were not expected; None of fewer.
    """

    curve: tuple[tuple[int, float], ...] = ()
    curve_name: str = ""
    changed: int | None = None


def history_of(windows: Windows, examples: Examples, checks: Sequence[Answer]) -> History:
    """Fits heads to fewer answers, and compares what they say with what was answered.

    The curve is read from the blind sample where it has windows enough with labels, else from the answers that
    came next, which are harder than most.
    """
    sample = [one for one in checks if one.kind != "unsure"]
    changed = _unexpected(windows, examples, range(len(examples) - _RECENT, len(examples), _BLOCK))
    recent = None if len(examples) < _RECENT + _BLOCK else round(sum(share for _, share in changed) * _BLOCK)
    truth = np.array([[label in one.labels for label in examples.labels] for one in sample], bool)
    counts = np.unique(np.linspace(_BLOCK, len(examples), _POINTS).astype(np.int64)).tolist()
    if len(examples) < 2 * _BLOCK:
        return History(changed=recent)
    if truth.sum() < _POSITIVES:
        found = _unexpected(windows, examples, [count for count in counts if count + _BLOCK <= len(examples)])
        return History(tuple((count, 1 - share) for count, share in found), "answers that were expected", recent)
    asked = windows.vectors[windows.places([one.window.row for one in sample])]
    name, curve = "mAP" if examples.several else "accuracy", []
    for count in counts:
        head = examples.some(slice(0, count)).head(windows)
        if head is not None:
            scores = np.full(truth.shape, -1e9)
            scores[:, [examples.labels.index(label) for label in head.labels]] = head.logits(asked)
            curve.append((count, quality(scores, truth, multilabel=examples.several)[name]))
    return History(tuple(curve), f"{name} on the blind sample", recent)


def _unexpected(windows: Windows, examples: Examples, counts: Sequence[int]) -> list[tuple[int, float]]:
    """Numbers of answers, and which share of the ten behind a head of so many had not expected."""
    result = []
    for count in counts:
        if count < 0:
            continue
        head, asked = examples.some(slice(0, count)).head(windows), examples.some(slice(count, count + _BLOCK))
        expected: NDArray[np.bool_] = np.zeros(asked.truth.shape, bool)
        if head is not None:
            expected = head.decisions(windows.vectors[asked.places], examples.labels)
        result.append((count, float((expected != asked.truth).any(axis=1).mean())))
    return result


def what_is_known(
    windows: Windows, answers: Mapping[int, Answer], examples: Examples, head: Head | None, history: History
) -> Knowledge:
    """Sums up what is known.

    Args:
        windows: All windows.
        answers: What was answered, by row.
        examples: What the head has learned from.
        head: The head; None as long as there is none.
        history: What heads of fewer answers would have said.
    """
    counts = Counter(dict(zip(examples.labels, examples.truth.sum(axis=0).tolist(), strict=True)))
    checks = [one for one in answers.values() if one.check]
    for one in checks:
        counts.update(one.labels)
    sample = [one for one in checks if one.kind != "unsure"]
    undiscovered = None
    if head is not None and len(sample) >= _FEW:
        undiscovered = _undiscovered(windows, head, examples, sample)
    known = Knowledge(
        counts={label: counts[label] for label in examples.labels},
        nothing=sum(one.kind == "nothing" for one in answers.values()),
        unsure=sum(one.kind == "unsure" for one in answers.values()),
        checked=len(checks),
        measured={} if head is None or not sample else _measured(windows, head, sample, examples.labels),
        curve=history.curve,
        curve_name=history.curve_name,
        undiscovered=undiscovered,
        changed=history.changed,
    )
    advice, enough = _advice(known, has_head=head is not None)
    return replace(known, advice=advice, enough=enough)


def _measured(windows: Windows, head: Head, sample: Sequence[Answer], labels: Sequence[str]) -> dict[str, Measured]:
    asked = windows.places([one.window.row for one in sample])
    said = head.decisions(windows.vectors[asked], labels)
    result = {}
    for label, given in zip(labels, said.T, strict=True):
        true = np.array([label in one.labels for one in sample])
        hits = int((true & given).sum())
        result[label] = Measured(share_of(hits, int(given.sum())), share_of(hits, int(true.sum())))
    return result


def _undiscovered(windows: Windows, head: Head, examples: Examples, sample: Sequence[Answer]) -> float:
    """Estimated share of the windows with labels that nobody has labelled.

    The blind sample says how many of the windows with and without a yes of the head have one, each less uncertain than
    all together (Jeffreys' estimate of a share). Where every window has a label, it is the share of those with a label
    that was not seen yet (Good 1953): that of labels that were seen once.
    """
    if not examples.several:
        seen = Counter(label for one in sample for label in one.labels)
        return sum(count == 1 for count in seen.values()) / len(sample)
    said = np.asarray(head.decisions(windows.vectors, head.labels).any(axis=1))
    places = windows.places([one.window.row for one in sample])
    has = np.array([bool(one.labels) for one in sample])
    found = int(examples.truth.any(axis=1).sum() + has.sum())
    unlabelled = np.ones(len(windows), bool)
    unlabelled[places] = unlabelled[examples.places] = False
    left = 0.0
    for yes in (False, True):
        inside = said[places] == yes
        share = (float(has[inside].sum()) + 0.5) / (float(inside.sum()) + 1)
        left += share * float((said[unlabelled] == yes).sum())
    return left / max(found + left, 1e-9)


def _advice(known: Knowledge, *, has_head: bool) -> tuple[str, bool]:
    """What to do, in one sentence, and whether further answers change little."""
    begun = _beginning(known, has_head=has_head)
    if begun is not None:
        return begun, False
    if known.checked < _FEW:
        more = _FEW - known.checked
        return f"Answer the blind sample: {more} more windows tell how good the model is.", False
    if known.undiscovered is not None and known.undiscovered > _MISSING:
        share = f"{100 * known.undiscovered:.0f} %"
        what = f"The model expects what it is asked, and yet about {share} of what is there is not labelled"
        return f"{what}: look at the most likely and the most different, or let the classifier find the rest.", True
    return "Further answers change little: learn a classifier from them with tymbal finetune.", True


def _beginning(known: Knowledge, *, has_head: bool) -> str | None:
    """What to do as long as answers change much; None later."""
    if not any(known.counts.values()):
        return "Begin with an example, or look at one window of each cluster."
    if not has_head:
        return "Answer windows of another kind: the model needs some with and some without a label."
    if known.changed is None:
        return "Go on: after some hundred answers it shows whether more change anything."
    if known.changed > _CALM:
        return f"Go on: {known.changed} of the last {_RECENT} answers were not what the model expected."
    return None
