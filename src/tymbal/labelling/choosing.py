"""Which window a person is asked about next.

Every way gives a rank to the windows without an answer; of the first few it ranks, those are taken that are farthest
from each other and from what was answered already (farthest-first traversal, Gonzalez 1985), and never two neighbouring
windows of one recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tymbal.labelling.head import Examples, Head, together
from tymbal.labelling.table import Window
from tymbal.labelling.windows import Windows, cosines

__all__ = ["CHOICES", "Suggestion", "next_places", "spread_out", "uncertainty"]

CHOICES: Mapping[str, str] = {
    "mixed": "A bit of all",
    "likely": "Most likely",
    "uncertain": "Most uncertain",
    "margin": "Closest race",
    "committee": "Where readers disagree",
    "different": "Most different",
    "clusters": "One of each cluster",
    "random": "At random",
}
"""Ways to choose, and what a person calls them."""

_WIDER = 5
"""Of how many times as many windows as are wanted the most different are taken."""


@dataclass(frozen=True)
class Suggestion:
    """A window that a person is asked about.

    Attributes:
        window: The window.
        scores: Probability of each label; empty without a head.
        reason: Why it was chosen: `likely`, `uncertain`, `like the example`, `different`, `surprise`, …
    """

    window: Window
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def uncertainty(probabilities: NDArray[np.float32], *, several: bool, by: str = "entropy") -> NDArray[np.float32]:
    """How unsure a head is of each window, [windows], from probabilities [windows, labels].

    Args:
        probabilities: Of each label.
        several: Whether each label is decided for itself: then the label that is least sure counts.
        by: `entropy`, or `margin` between the two best (of one label between yes and no).
    """
    if several:
        return np.asarray(-np.abs(probabilities - 0.5).min(axis=1))
    if by == "margin":
        ordered = np.partition(probabilities, -2, axis=1)
        return np.asarray(ordered[:, -2] - ordered[:, -1])
    return np.asarray(-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1))


def spread_out(
    windows: Windows,
    ranked: NDArray[np.int64],
    count: int,
    *,
    beside: Sequence[int] = (),
    wider: int = _WIDER,
) -> list[int]:
    """Of the first windows of a ranking those that are most different, none of them neighbours.

    Args:
        windows: All windows.
        ranked: Places, best first.
        count: How many to take.
        beside: Places that were taken before.
        wider: Of how many times as many windows they are taken; 1 takes the best.

    Returns:
        Places; fewer where there are no more.
    """
    pool = ranked[: max(count * wider, count)]
    rest = ranked[len(pool) :]
    taken: list[int] = []
    blocked = np.zeros(len(windows), bool)
    nearest = np.full(len(pool), np.inf, np.float32)
    values = windows.vectors[pool]
    for place in beside:
        blocked |= windows.neighbours(place)
        nearest = np.minimum(nearest, _distances(values, windows.vectors[place]))
    while len(taken) < count:
        free = ~blocked[pool]
        if not free.any():
            pool, rest = rest[: count * wider], rest[count * wider :]
            if not len(pool):
                break
            values = windows.vectors[pool]
            nearest = np.full(len(pool), np.inf, np.float32)
            for place in (*beside, *taken):
                nearest = np.minimum(nearest, _distances(values, windows.vectors[place]))
            continue
        place = int(pool[np.argmax(np.where(free, nearest, -1.0))])  # the best one where nothing was taken yet
        taken.append(place)
        blocked |= windows.neighbours(place)
        nearest = np.minimum(nearest, _distances(values, windows.vectors[place]))
    return taken


def _distances(values: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances of vectors [windows, width] from one, [windows]."""
    apart = values - one
    return np.asarray(np.einsum("ij,ij->i", apart, apart))


def next_places(
    windows: Windows,
    count: int,
    *,
    by: str,
    head: Head | None,
    examples: Examples,
    asked: NDArray[np.bool_],
    like: NDArray[np.float32] | None = None,
    label: str | None = None,
    last: Sequence[int] = (),
    seed: Sequence[int] = (0,),
) -> list[tuple[int, str]]:
    """Chooses the windows that come next.

    Args:
        windows: All windows.
        count: How many are wanted.
        by: One of `CHOICES`.
        head: The head; None as long as there is none.
        examples: What the head has learned from.
        asked: Windows that are not asked about, bool [windows].
        like: A vector that windows are to be like, [width].
        label: A label whose windows are wanted.
        last: Places of the windows that were asked about last.
        seed: Seed of what is drawn at random.

    Returns:
        Places and reasons, in the order in which they are asked.
    """
    rng = np.random.default_rng(list(seed))
    free = np.flatnonzero(~asked)
    chooser = _Chooser(windows, free, head, examples, rng)
    if like is not None:
        plan = [("like the example", count, chooser.like(like), 1)]
    elif by == "mixed":
        plan = chooser.mixed(count, label)
    else:
        plan = [chooser.by(by, count, label)]
    taken: list[tuple[int, str]] = []
    for reason, wanted, ranked, wider in plan:
        beside = [*last, *(place for place, _ in taken)]
        taken += [(place, reason) for place in spread_out(windows, ranked, wanted, beside=beside, wider=wider)]
    if like is None and by == "mixed":  # what is likely, uncertain and new in turns
        taken = [taken[place] for place in rng.permutation(len(taken))]
    return taken


@dataclass
class _Chooser:
    """Rankings of the windows that may be asked about."""

    windows: Windows
    free: NDArray[np.int64]
    head: Head | None
    examples: Examples
    rng: np.random.Generator

    def mixed(self, count: int, label: str | None) -> list[_Part]:
        """Most likely, most uncertain, and surprises."""
        if self.head is None:
            return [self.by("clusters", count, label)]
        if not self.head.several:
            new = self._share(count, 0.5 if len(self.examples) < _COLD * len(self.examples.labels) else _SURPRISES)
            shares = {"clusters": new, "margin": count - new}
            return [self.by(how, wanted, label) for how, wanted in shares.items() if wanted]
        surprises = self._share(count, _SURPRISES)
        likely = (count - surprises) // 2
        shares = {"likely": likely, "uncertain": count - surprises - likely, "different": surprises}
        return [self.by(how, wanted, label) for how, wanted in shares.items() if wanted]

    def _share(self, count: int, share: float) -> int:
        """A share of a number, drawn up or down, so that it holds in the mean of many small ones."""
        return int(share * count + self.rng.random())

    def by(self, how: str, count: int, label: str | None) -> _Part:
        """One way to choose: reason, how many, places with the best first, and of how many times as many."""
        if self.head is None and how not in ("random", "clusters"):
            how = "different"
        if how == "random":
            return "surprise", count, self.rng.permutation(self.free), 1
        if how == "clusters":
            return "one of a cluster", count, self.clusters(count), 1
        if how == "different":
            return "different", count, self.different(count), 1
        if how == "committee":
            return "committee", count, self._ranked(self._disagreement(label)), _WIDER
        probabilities = self._probabilities(label)
        if how == "likely":
            return "likely", count, self._ranked(probabilities.max(axis=1)), 2
        several = self.head is not None and self.head.several
        doubt = uncertainty(probabilities, several=several, by="margin" if how == "margin" else "entropy")
        return "uncertain", count, self._ranked(doubt), _WIDER

    def like(self, vector: NDArray[np.float32]) -> NDArray[np.int64]:
        """The nearest to a vector first."""
        return self._ranked(cosines(self.windows.vectors, vector)[self.free])

    def different(self, count: int) -> NDArray[np.int64]:
        """Windows that are far from all answers and from each other: k-means++ (Arthur and Vassilvitskii 2007).

        The farthest of all are odd ones out; drawing by the squared distance gives what is both new and frequent.
        """
        candidates = self.rng.permutation(self.free)[:_CANDIDATES]
        if not len(candidates):
            return candidates
        values = self.windows.vectors[candidates]
        nearest = np.full(len(candidates), np.inf, np.float32)
        answered = self.windows.vectors[self.examples.places[-_REMEMBERED:]]
        if len(answered):
            likeness = values @ answered.T - np.square(answered).sum(axis=1) / 2
            nearest = np.maximum(np.square(values).sum(axis=1) - 2 * likeness.max(axis=1), 0)
        chosen: list[int] = []
        for _ in range(min(2 * count, len(candidates))):
            weight = np.ones(len(candidates)) if np.isinf(nearest[0]) else nearest.astype(np.float64)
            if not weight.sum() > 0:
                break
            one = int(self.rng.choice(len(candidates), p=weight / weight.sum()))
            chosen.append(int(candidates[one]))
            nearest = np.minimum(nearest, _distances(values, values[one]))
            nearest[one] = 0.0
        rest = np.setdiff1d(self.free, chosen)
        return np.concatenate([np.array(chosen, np.int64), self.rng.permutation(rest)])

    def clusters(self, count: int) -> NDArray[np.int64]:
        """The middle windows of clusters in which nothing was answered yet, those of large clusters first.

        There are at least as many clusters as answers and questions together, up to 200, so that each question is about
        something new that there is much of (TypiClust, Hacohen, Dekel and Weinshall 2022).
        """
        answered = self.examples.places[-_REMEMBERED:]
        number = next(size for size in _SIZES if size >= min(len(answered) + count, _SIZES[-1]))
        if len(self.windows) <= number:
            return self.rng.permutation(self.free)
        clusters = self.windows.clusters(number)
        is_free = np.zeros(len(self.windows), bool)
        is_free[self.free] = True
        open_ = is_free[clusters.places]
        candidates, own, away = clusters.places[open_], clusters.own[open_], clusters.away[open_]
        answers = np.bincount(clusters.nearest(self.windows.vectors[answered]), minlength=number)
        sizes = np.bincount(clusters.own, minlength=number)
        order = np.lexsort((away, -sizes[own], answers[own]))
        # The middle of each cluster first, then the second of each, and so on.
        turns = np.zeros(len(order), np.int64)
        seen = np.zeros(number, np.int64)
        for line, cluster in enumerate(own[order].tolist()):
            turns[line] = seen[cluster]
            seen[cluster] += 1
        first = candidates[order[np.argsort(turns, kind="stable")]]
        return np.concatenate([first, self.rng.permutation(np.setdiff1d(self.free, first))])

    def _ranked(self, values: NDArray[np.floating]) -> NDArray[np.int64]:
        """Windows by their values, the largest first, of equal ones any."""
        return self.free[np.argsort(-values, kind="stable")]

    def _probabilities(self, label: str | None) -> NDArray[np.float32]:
        if self.head is None:
            raise ValueError("there is no head yet")
        probabilities = self.head.probabilities(self.windows.vectors)[self.free]
        if label is None:
            return probabilities
        place = self.head.labels.index(label)
        return probabilities[:, place : place + 1]

    def _disagreement(self, label: str | None) -> NDArray[np.float32]:
        """Deviation of the probabilities that the members of a committee give, the largest of all labels, [windows]."""
        if self.head is None:
            raise ValueError("there is no head yet")
        names = self.head.labels if label is None else (label,)
        heads = self.examples.committee(self.windows, seed=int(self.rng.integers(2**31)))
        said = np.zeros((2, len(self.free), len(names)), np.float32)
        for member, given in zip(heads, together(heads, self.windows.vectors), strict=True):
            for column, name in enumerate(names):
                if name in member.labels:
                    value = given[self.free, member.labels.index(name)]
                    said[0, :, column] += value
                    said[1, :, column] += value * value
        mean, square = said / max(len(heads), 1)
        return np.asarray((square - mean * mean).max(axis=1))


_Part = tuple[str, int, NDArray[np.int64], int]
_SURPRISES = 0.1
_CANDIDATES = 5_000
_SIZES = (10, 14, 20, 28, 40, 56, 80, 112, 160, 200)
"""Numbers of clusters; few, so that they serve several questions."""
_COLD = 10
_REMEMBERED = 500
