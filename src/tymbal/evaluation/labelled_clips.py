"""The clips of a store that a classifier learns from and is validated on, their labels and weights.

AST and SSAST draw AudioSet's clips like that, with replacement, by the weights of a file beside the list. Weights of
the loss do without drawing: every clip comes once an epoch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tymbal.audio.file_lists import read_table
from tymbal.errors import ManifestError, StoreError
from tymbal.store.base import SpectrogramSource

__all__ = [
    "LabelledClips",
    "balanced_weights",
    "class_weights",
    "labelled_clips",
    "read_weights",
    "refuse_too_few",
    "refuse_unlearned",
]

_NAMED = 10  # classes that a message names


@dataclass(frozen=True)
class LabelledClips:
    """Labelled clips of a store, by split.

    Attributes:
        train: Rows to learn from, [clips].
        validation: Rows to validate on, [clips].
        classes: Names of the labels: those that occur in training, sorted, or all of a table.
        columns: For each class its number among all labels of the store, [classes]; -1 where the store lacks it.
        multilabel: Whether a clip may have several labels, or none.
        left_out: Clips of these splits without a label, which tell nothing where every clip has one class.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    classes: tuple[str, ...]
    columns: NDArray[np.int64]
    multilabel: bool
    left_out: int

    def truth(self, store: SpectrogramSource, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The labels of each row, bool [rows, classes]."""
        return np.asarray((store.label_matrix(rows)[:, self.columns] > 0) & (self.columns >= 0))

    def groups(self, store: SpectrogramSource, rows: NDArray[np.int64]) -> list[str] | None:
        """The group of each row; None where not all rows have one."""
        groups = store.index["group"].take(rows).to_pylist()
        return groups if all(groups) else None

    def among(self, rows: NDArray[np.int64]) -> LabelledClips:
        """The clips that are among some rows."""
        train, validation = (side[np.isin(side, rows)] for side in (self.train, self.validation))
        return replace(self, train=train, validation=validation)


def labelled_clips(
    store: SpectrogramSource,
    *,
    multilabel: bool | None = None,
    classes: Sequence[str] | None = None,
    every: int = 1,
    asked: str = "validation",
) -> LabelledClips:
    """Finds the labelled clips of the splits `train` and `validation`, or of another one that is asked about.

    Args:
        store: The store.
        multilabel: Whether a clip may have several labels; None finds out.
        classes: Names of the classes, in their order, whether they occur or not; None is those that occur in training,
            sorted.
        every: Take one clip in so many of each class (where a clip has several labels, of its first one), from the
            first of them on: so no class gets lost.
        asked: The split whose clips are the validation clips.

    Raises:
        StoreError: There are no labels, a split is missing or empty, a class occurs only in validation, or clips have
            several labels where they may have one.
    """
    rows = {"train": store.rows("train"), "validation": store.rows(asked)}
    truth = {split: store.label_matrix(part) > 0 for split, part in rows.items()}
    counts = {split: part.sum(axis=1) for split, part in truth.items()}
    several = any((count > 1).any() for count in counts.values())
    if several and multilabel is False:
        raise StoreError(
            "some clips have several labels, which cross entropy cannot learn",
            path=store.path,
            advice="Use --loss bce, or leave one label a clip in the manifest.",
        )
    multilabel = several if multilabel is None else multilabel
    left_out = 0
    if not multilabel:
        left_out = sum(int((count == 0).sum()) for count in counts.values())
        truth = {split: part[counts[split] > 0] for split, part in truth.items()}
        rows = {split: part[counts[split] > 0] for split, part in rows.items()}
    taught, validated = (np.asarray(truth[split].any(axis=0)) for split in ("train", "validation"))
    rows = {split: part[_thinned(truth[split], every)] for split, part in rows.items()}
    sizes = [len(part) for part in rows.values()]
    if classes is not None:
        validated &= False  # the table knows them
    _check(store, taught, validated, sizes, fewest=1 if multilabel else 2)
    if classes is None:
        columns = np.flatnonzero(taught)
        classes = [store.labels[column] for column in columns]
    else:
        places = {name: place for place, name in enumerate(store.labels)}
        columns = np.array([places.get(name, -1) for name in classes], np.int64)
        _check_table(store, taught, classes)
    return LabelledClips(rows["train"], rows["validation"], tuple(classes), columns, multilabel, left_out)


def refuse_unlearned(labels: Sequence[str], *, path: str | Path) -> None:
    """Raises if any labels occur only in validation.

    Raises:
        StoreError: There are such labels; the message names them.
    """
    if labels:
        more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED + 1 else ""
        named = ", ".join(labels[: _NAMED if more else len(labels)])
        raise StoreError(
            f"no clip to learn from has the label that validation clips have: {named}{more}",
            path=path,
            advice="Move clips of it into the training part, correct a misspelt name, or leave it out.",
        )


def refuse_too_few(labels: Sequence[str], fewest: int, *, path: str | Path) -> None:
    """Raises if the clips to learn from have fewer labels than there have to be.

    Raises:
        StoreError: There are too few; the message names the only one.
    """
    if len(labels) >= fewest:
        return
    if not labels:
        raise StoreError("no clip to learn from has a label", path=path, advice=f"{_LABELLED}.")
    raise StoreError(
        f"all clips have the same label, {labels[0]}: there is nothing to tell apart",
        path=path,
        advice="Add clips of another class, for instance of background noise.",
    )


_LABELLED = "Give folders of sound named as their classes, two or more, or a manifest with the columns file and label"


def _thinned(truth: NDArray[np.bool_], every: int) -> NDArray[np.int64]:
    """Positions of one clip in `every` of each first label, ascending, of [clips, labels]."""
    none = np.full(len(truth), -1)
    first = np.where(truth.any(axis=1), truth.argmax(axis=1), none) if truth.shape[1] else none
    parts = [np.flatnonzero(first == label)[::every] for label in np.unique(first)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))


def _check_table(store: SpectrogramSource, taught: NDArray[np.bool_], classes: Sequence[str]) -> None:
    """Refuses labels that no class is for: their clips would be taken for clips without a label."""
    unknown = [store.labels[column] for column in np.flatnonzero(taught) if store.labels[column] not in set(classes)]
    if unknown:
        raise StoreError(
            f"labels are not in the table of classes: {', '.join(unknown[:_NAMED])}",
            path=store.path,
            advice="Give the label_csv that belongs to the clips.",
        )


def _check(
    store: SpectrogramSource, taught: NDArray[np.bool_], validated: NDArray[np.bool_], sizes: list[int], *, fewest: int
) -> None:
    if not taught.any() or min(sizes) == 0:
        raise StoreError(
            f"there are {sizes[0]:,} labelled clips to learn from and {sizes[1]:,} to be asked",
            path=store.path,
            advice=f"{_LABELLED}, and a split that leaves clips on both sides (--validation 0.2).",
        )
    refuse_unlearned([store.labels[column] for column in np.flatnonzero(validated & ~taught)], path=store.path)
    refuse_too_few([store.labels[column] for column in np.flatnonzero(taught)], fewest, path=store.path)


def balanced_weights(truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights of clips: the sum over their labels of 1000 / (clips with that label + 0.01), as AST's `gen_weight_file`.

    Args:
        truth: Which clip has which label, [clips, classes].

    Returns:
        [clips].
    """
    weights: NDArray[np.float64] = truth.astype(np.float64) @ (1000.0 / (truth.sum(axis=0) + 0.01))
    return weights


def class_weights(truth: NDArray[np.bool_], *, multilabel: bool) -> NDArray[np.float32]:
    """Weights of the loss with which all classes count the same; their mean over the clips is 1.

    Args:
        truth: Which clip has which label, [clips, classes].
        multilabel: Whether a clip may have several labels.

    Returns:
        Where each clip has one label, clips / (classes that occur * clips of the class), [classes] (scikit-learn's
        `balanced`). Else, for a clip without and with a label, clips / (2 * clips without or with it), [2, classes]. A
        class without clips to weigh has 1.
    """
    yes = truth.sum(axis=0)
    if multilabel:
        counts, kinds = np.stack([len(truth) - yes, yes]), np.full((2, 1), 2)
        weighed = counts.all(axis=0)
    else:
        counts, kinds = yes, np.array((yes > 0).sum())
        weighed = yes > 0
    return np.where(weighed, len(truth) / (kinds * np.maximum(counts, 1)), 1.0).astype(np.float32)


def read_weights(
    path: str | os.PathLike[str], listed: str | os.PathLike[str], files: Sequence[str]
) -> NDArray[np.float64]:
    """Reads a file of weights, one a line for each entry of a list, and gives those of some of its clips.

    Args:
        path: The file.
        listed: The list of the clips.
        files: Sound files of these clips, which may lie elsewhere by now.

    Returns:
        [files].

    Raises:
        ManifestError: It is unreadable, is of another list, or several clips have the same name.
    """
    try:
        weights = np.loadtxt(path, delimiter=",", ndmin=1)
    except (OSError, ValueError) as error:
        raise ManifestError(f"the weights cannot be read: {error}", path=path) from None
    entries = [str(row["file"]) for row in read_table(Path(listed)).rows]
    names = [_stem(entry) for entry in entries]
    if weights.shape != (len(names),):
        raise ManifestError(
            f"it holds {len(weights):,} weights, but the list has {len(names):,} entries",
            path=path,
            advice="Delete it to have weights computed from the labels.",
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ManifestError("some weights are below 0 or not finite", path=path)
    if len(set(names)) < len(set(entries)):
        raise ManifestError("entries with the same file name cannot be told apart for their weights", path=listed)
    by_name: dict[str, list[float]] = {}
    for name, weight in zip(names, weights.tolist(), strict=True):
        by_name.setdefault(name, []).append(weight)
    asked: dict[str, list[int]] = {}  # the rows of each name, in the order of its entries
    for row, file in enumerate(files):
        asked.setdefault(_stem(file), []).append(row)
    found = np.empty(len(files))
    for name, rows in asked.items():
        own = by_name[name]
        if len(rows) != len(own) and len(set(own)) > 1:
            raise ManifestError(
                f"{name} stands in the list {len(own):,} times with different weights, and is {len(rows):,} clips",
                path=listed,
                advice="Delete the file of weights to have them computed from the labels.",
            )
        found[rows] = own if len(rows) == len(own) else own[0]
    return found


def _stem(file: str) -> str:
    return file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
