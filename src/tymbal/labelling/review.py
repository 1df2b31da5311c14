"""What a classifier detected, checked by a person: precision by score, and thresholds that give a wanted one.

`tymbal predict --review` draws windows of each label and tenth of the score. Each stands for as many windows as were
there by those that were answered, so that the precision from a score on is that of all windows, not of those drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tymbal.errors import SettingsError
from tymbal.inference.tables import read_rows, recognised
from tymbal.labelling.knowledge import Share, share_of
from tymbal.labelling.table import Answer
from tymbal.models.folder import describe_anew, load_model

__all__ = ["Band", "Detected", "bands_of", "described", "read_review", "thresholds_for", "write_thresholds"]

_FEWEST = 10
"""Answers above a threshold without which it is not known."""


@dataclass(frozen=True)
class Detected:
    """A window that was drawn to be checked.

    Attributes:
        file: The recording.
        start: Where it begins, in seconds.
        end: Where it ends.
        label: The label.
        score: Its score.
        of: Of how many windows with this label and such scores it was drawn.
    """

    file: str
    start: float
    end: float
    label: str
    score: float
    of: int

    @property
    def tenth(self) -> int:
        """The tenth of the score that it lies in."""
        return min(int(10 * self.score), 9)


@dataclass(frozen=True)
class Band:
    """The windows of a label whose scores lie in one tenth.

    Attributes:
        low: Its lowest score.
        windows: How many there are.
        checked: How many were answered.
        right: How many of these have the label.
    """

    low: float
    windows: int
    checked: int
    right: int

    @property
    def precision(self) -> Share | None:
        """The share that has the label, with its 95 % interval; None where nothing was answered."""
        return share_of(self.right, self.checked)


def read_review(path: Path) -> list[Detected]:
    """Reads a table of `tymbal predict --review`.

    Raises:
        SettingsError: It is none, or cannot be read.
    """
    kind = recognised(path)
    wrong = SettingsError("is no table of tymbal predict --review", path=path, advice="Give NAME.review.csv.")
    if kind is None or kind.per_recording:
        raise wrong
    try:
        return [
            Detected(
                str(Path(row["file"]).absolute()),
                float(row["start"]),
                float(row["end"]),
                str(row["label"]),
                float(row["score"]),
                int(row["of"]),
            )
            for row in read_rows(path, kind)
        ]
    except (KeyError, TypeError, ValueError):
        raise wrong from None


def described(bands: Mapping[str, Sequence[Band]]) -> list[str]:
    """A line a label: the precision of each tenth of the score, with its 95 % interval."""
    lines = []
    for label, own in bands.items():
        parts = [
            f"{band.low:.1f}: {share[0]:.0%} ({share[1]:.0%} to {share[2]:.0%}, {band.checked:,} of {band.windows:,})"
            for band in own
            if (share := band.precision) is not None
        ]
        lines.append(f"{label}: " + (", ".join(parts) or "nothing was checked yet"))
    return lines


def bands_of(
    detected: Sequence[Detected], answer_of: Callable[[Detected], Answer | None]
) -> dict[str, tuple[Band, ...]]:
    """By label the tenths of the score, the highest first, with what was answered; what is unsure does not count.

    Args:
        detected: The windows that were drawn.
        answer_of: Gives the answer to one; None where there is none yet.
    """
    result: dict[str, tuple[Band, ...]] = {}
    for label in dict.fromkeys(one.label for one in detected):
        bands = []
        for tenth in range(9, 0, -1):
            own = [one for one in detected if one.label == label and one.tenth == tenth]
            answers = [answer for one in own if (answer := answer_of(one)) is not None and answer.kind != "unsure"]
            right = sum(label in answer.labels for answer in answers)
            if own:
                bands.append(Band(tenth / 10, own[0].of, len(answers), right))
        result[label] = tuple(bands)
    return result


def thresholds_for(bands: Mapping[str, Sequence[Band]], precision: float) -> dict[str, float]:
    """By label the lowest threshold above which windows have a precision; labels of which none is known are left out.

    The precision above a threshold is that of the tenths above it, each weighed by the windows that it has. One of
    which nothing was answered ends the search.

    Args:
        bands: As from `bands_of`.
        precision: The precision that is wanted.
    """
    found: dict[str, float] = {}
    for label, own in bands.items():
        windows = right = 0.0
        checked = 0
        for band in own:
            if not band.checked:
                break
            windows, checked = windows + band.windows, checked + band.checked
            right += band.windows * band.right / band.checked
            if checked >= _FEWEST and right >= precision * windows:
                found[label] = band.low
    return found


def write_thresholds(model: str | Path, thresholds: Mapping[str, float]) -> Path:
    """Writes thresholds of labels into a model folder; others keep theirs. Gives the file.

    Raises:
        ModelError: It is no model folder of Tymbal.
        SettingsError: The model has no such label.
    """
    description = load_model(model).description
    unknown = sorted(set(thresholds) - set(description.labels))
    if unknown:
        raise SettingsError(f"the model has no label {unknown[0]}", path=model, advice="Give the model that predicted.")
    before = description.thresholds or (0.5,) * len(description.labels)
    kept = dict(zip(description.labels, before, strict=True)) | dict(thresholds)
    return describe_anew(model, replace(description, thresholds=tuple(kept[label] for label in description.labels)))
