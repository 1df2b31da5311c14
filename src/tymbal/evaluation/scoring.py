"""What a classifier says about labelled clips of a store, and how well it does on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.compute.device import choose_device
from tymbal.compute.processes import init_process_group, processes, rank
from tymbal.errors import ModelError, StoreError
from tymbal.evaluation.labelled_clips import labelled_clips
from tymbal.inference.frontend import probabilities
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import LoadedModel, load_model
from tymbal.objectives.classification import ClassificationObjective
from tymbal.objectives.metrics import RunningSums
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

__all__ = ["LabelledScores", "figures_of", "score_validation"]


@dataclass(frozen=True)
class LabelledScores:
    """Scores of clips beside their labels.

    Attributes:
        classes: Names of the classes.
        rows: Rows of the store that could be read, [clips].
        truth: Which clip is of which class, bool [clips, classes].
        scores: Probabilities, [clips, classes].
        multilabel: Whether a clip may have several labels.
    """

    classes: tuple[str, ...]
    rows: NDArray[np.int64]
    truth: NDArray[np.bool_]
    scores: NDArray[np.float32]
    multilabel: bool


def score_validation(
    loaded: LoadedModel, store: SpectrogramSource, *, batch_size: int, device: torch.device
) -> LabelledScores:
    """Scores the labelled validation clips of a store.

    Args:
        loaded: A model with a classifier.
        store: The clips.
        batch_size: Clips a batch.
        device: Where to compute.

    Raises:
        ModelError: The model is no classifier.
        StoreError: No labelled validation clip can be read, or clips have labels that the model does not know.
    """
    description, module = loaded.description, _classifier(loaded)
    clips = labelled_clips(store, multilabel=description.multilabel, classes=description.labels)
    read: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    for rows, logits in _scored(loaded, module, store, clips.validation, batch_size=batch_size, device=device):
        read.append(rows)
        scores.append(probabilities(logits, multilabel=description.multilabel))
    if not read:
        raise StoreError(_NONE_READ, path=store.path)
    rows = np.concatenate(read)
    return LabelledScores(clips.classes, rows, clips.truth(store, rows), np.concatenate(scores), description.multilabel)


def figures_of(
    model: str | os.PathLike[str],
    store: SpectrogramSource,
    *,
    split: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, float]:
    """Scores labelled clips and compares with their labels; several processes share the work and know the result.

    Args:
        model: A run or a model with a classifier.
        store: The clips.
        split: Those of a split; None is all.
        batch_size: Clips a batch.
        device: As in training.

    Returns:
        The figures that fine-tuning reports of its validation clips.

    Raises:
        ModelError: The model is no classifier.
        StoreError: The clips have labels that the model does not know, or none, or cannot be read.
    """
    loaded = load_model(os.fspath(model))
    description, module = loaded.description, _classifier(loaded, path=model)
    if not store.labels:
        raise StoreError(_NONE_READ, path=store.path)
    columns = _columns(store, description.labels)
    place = choose_device(device)[0]
    init_process_group(place)
    objective = ClassificationObjective(
        module,
        normalisation=description.normalisation,
        columns=torch.from_numpy(columns),
        multilabel=description.multilabel,
    )
    objective.to(place).eval()
    rows = store.rows(split)
    if not description.multilabel:  # where every clip has one class, one without a label tells nothing
        rows = rows[store.label_matrix(rows).any(axis=1)]
    running = RunningSums()
    for part, logits in _scored(loaded, module, store, rows, batch_size=batch_size, device=place, shared=True):
        truth = (store.label_matrix(part)[:, columns] > 0) & (columns >= 0)
        running.add(objective.evaluation_sums(logits, torch.from_numpy(truth).to(place)))
    totals = running.take()
    if not totals:
        raise StoreError(_NONE_READ, path=store.path)
    return objective.metrics(totals)


_NONE_READ = "not one of the clips has a label and can be read"


def _classifier(loaded: LoadedModel, *, path: str | os.PathLike[str] | None = None) -> SpectrogramClassifier:
    if not isinstance(loaded.module, SpectrogramClassifier):
        raise ModelError("the model has no classifier", path=path, advice="Give one that was fine-tuned.")
    return loaded.module


def _scored(
    loaded: LoadedModel,
    module: SpectrogramClassifier,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device,
    shared: bool = False,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Rows that can be read, [batch], and their logits, float32 [batch, classes], batch by batch.

    Where the work is `shared`, this process takes its share of the batches.
    """
    module = module.to(device).eval()
    for batch in normalised_batches(
        store,
        rows,
        normalisation=loaded.description.normalisation,
        batch_size=batch_size,
        device=device,
        rank=rank() if shared else 0,
        processes=processes() if shared else 1,
    ):
        with torch.inference_mode():
            logits = module(batch.x, frames=batch.frames).float()
        yield batch.rows, logits


def _columns(store: SpectrogramSource, classes: Sequence[str]) -> NDArray[np.int64]:
    """For each class of a model its number among the labels of a store, -1 where the store lacks it."""
    places = {name: place for place, name in enumerate(store.labels)}
    used = {name for labels in store.index["labels"].to_pylist() for name in labels or ()}
    unknown = sorted(used - set(classes))
    if unknown:
        raise StoreError(
            f"the model does not know these labels of the clips: {', '.join(unknown[:10])}",
            path=store.path,
            advice="Give the label_csv that it was trained with, or leave these clips out.",
        )
    return np.array([places.get(name, -1) for name in classes], np.int64)
