"""How well a classifier does on labelled clips that are at hand now: a last test, for instance."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tymbal.compute.device import choose_device
from tymbal.compute.processes import init_process_group, processes, rank
from tymbal.errors import ModelError, StoreError
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import load_model
from tymbal.objectives.classification import ClassificationObjective
from tymbal.objectives.metrics import RunningSums
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import StoreDataset
from tymbal.training.batches import SequentialBatchSampler

__all__ = ["figures_of"]


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
        StoreError: The clips have labels that the model does not know, or none.
    """
    loaded = load_model(os.fspath(model))
    description = loaded.description
    if not isinstance(loaded.module, SpectrogramClassifier):
        raise ModelError("the model has no classifier", path=model, advice="Give one that was fine-tuned.")
    objective = ClassificationObjective(
        loaded.module,
        normalisation=description.normalisation,
        columns=torch.from_numpy(_columns(store, description.labels)),
        multilabel=description.multilabel,
    )
    place = choose_device(device)[0]
    init_process_group(place)
    objective.to(place).eval()
    rows = store.rows(split)
    if not description.multilabel:  # where every clip has one class, one without a label tells nothing
        rows = rows[store.label_matrix(rows).any(axis=1)]
    dataset = StoreDataset(store, rows, labels=True)
    running = RunningSums()
    sampler = SequentialBatchSampler(
        len(dataset), batch_size, rank=rank(), processes=processes(), announce=dataset.announce
    )
    for indices in sampler:
        batch: dict[str, Tensor] = {name: value.to(place) for name, value in dataset.__getitems__(indices).items()}
        if len(batch["row"]):
            with torch.no_grad():
                running.add(objective(**batch)["sums"])
    totals = running.take()
    if not totals:
        raise StoreError("not one of the clips has a label and can be read", path=store.path)
    return objective.metrics(totals)


def _columns(store: SpectrogramSource, classes: Sequence[str]) -> np.ndarray:
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
