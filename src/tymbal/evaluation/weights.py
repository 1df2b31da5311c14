"""How often a clip is drawn, or how much it weighs, so that rare classes count as much as common ones.

AST and SSAST draw AudioSet's clips like that, with replacement, by the weights of a file beside the list. Weights of
the loss do without drawing: every clip comes once an epoch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tymbal.audio.tables import read_table
from tymbal.errors import ManifestError

__all__ = ["balanced_weights", "class_weights", "read_weights"]


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
        class of which there is nothing to weigh has 1.
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
        files: Sound files of the wanted clips, which may lie elsewhere by now.

    Returns:
        [files].

    Raises:
        ManifestError: It is unreadable, is of another list, or the clips cannot be told apart by their names.
    """
    try:
        weights = np.loadtxt(path, delimiter=",", ndmin=1)
    except (OSError, ValueError) as error:
        raise ManifestError(f"the weights cannot be read: {error}", path=path) from None
    names = [_stem(str(row["file"])) for row in read_table(Path(listed)).rows]
    if weights.shape != (len(names),):
        raise ManifestError(
            f"it holds {len(weights):,} weights, but the list has {len(names):,} entries",
            path=path,
            advice="Delete it to have weights computed from the labels.",
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ManifestError("some weights are below 0 or not finite", path=path)
    if len(set(names)) < len(names):
        raise ManifestError("entries with the same file name cannot be told apart for their weights", path=listed)
    by_name = dict(zip(names, weights.tolist(), strict=True))
    return np.array([by_name[_stem(file)] for file in files])


def _stem(file: str) -> str:
    return file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
