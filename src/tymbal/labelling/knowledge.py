"""How much is known by now: labels, how good the head is on a blind sample, and whether more answers are worth it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tymbal.labelling.head import Examples, Head
from tymbal.labelling.table import Answer
from tymbal.labelling.windows import Windows

__all__ = ["Knowledge", "Measured", "Share", "share_of", "what_is_known"]

Share = tuple[float, float, float]
"""A share with the ends of its 95 % interval."""

_Z = 1.959964
_RECENT = 100
_BLOCK = 10
_DECIDED = 0.5
_CALM = 5
_FEW = 50
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


def what_is_known(windows: Windows, answers: Mapping[int, Answer], examples: Examples, head: Head | None) -> Knowledge:
    """Sums up what is known.

    Args:
        windows: All windows.
        answers: What was answered, by row.
        examples: What the head has learned from.
        head: The head; None as long as there is none.
    """
    counts = Counter(dict(zip(examples.labels, examples.truth.sum(axis=0).tolist(), strict=True)))
    checks = [one for one in answers.values() if one.check]
    for one in checks:
        counts.update(one.labels)
    sample = [one for one in checks if one.kind != "unsure"]
    return Knowledge(
        counts={label: counts[label] for label in examples.labels},
        nothing=sum(one.kind == "nothing" for one in answers.values()),
        unsure=sum(one.kind == "unsure" for one in answers.values()),
        checked=len(checks),
        measured={} if head is None or not sample else _measured(windows, head, sample, examples.labels),
        changed=_changed(windows, examples),
    )


def _measured(windows: Windows, head: Head, sample: Sequence[Answer], labels: Sequence[str]) -> dict[str, Measured]:
    asked = windows.places([one.window.row for one in sample])
    said = head.decisions(windows.vectors[asked], labels)
    result = {}
    for label, given in zip(labels, said.T, strict=True):
        true = np.array([label in one.labels for one in sample])
        hits = int((true & given).sum())
        result[label] = Measured(share_of(hits, int(given.sum())), share_of(hits, int(true.sum())))
    return result


def _changed(windows: Windows, examples: Examples) -> int | None:
    """Of the last hundred answers those that a head of the answers before had not expected; heads are every tenth."""
    if len(examples) < _RECENT + _BLOCK:
        return None
    changed = 0
    for first in range(len(examples) - _RECENT, len(examples), _BLOCK):
        head, asked = examples.some(slice(0, first)).head(windows), examples.some(slice(first, first + _BLOCK))
        expected: NDArray[np.bool_] = np.zeros(asked.truth.shape, bool)
        if head is not None:
            expected = head.decisions(windows.vectors[asked.places], examples.labels)
        changed += int((expected != asked.truth).any(axis=1).sum())
    return changed
