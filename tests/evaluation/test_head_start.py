"""The head that a classifier begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from damaged import delete, pt_store
from tymbal.errors import StoreError
from tymbal.evaluation import head_start as head
from tymbal.evaluation.head_start import fit_head
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder


class Tones:
    """As much of a store as is asked: clips in which one of some bands is loud."""

    def __init__(self, bands: np.ndarray) -> None:
        noise = np.random.default_rng(0).normal(size=(len(bands), 32, 32)).astype(np.float32)
        for clip, band in enumerate(bands):
            noise[clip, :, 8 * band : 8 * band + 8] += 3
        self.clips = noise
        self.real_frames = np.full(len(bands), 32)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.clips[rows]

    def announce(self, rows: np.ndarray) -> None:
        pass


def classifier(labels: int) -> SpectrogramClassifier:
    torch.manual_seed(0)
    shape = EncoderConfig(width=16, depth=1, heads=2, mels=32, frames=32, patch=(8, 8), stride=(8, 8))
    return SpectrogramClassifier(SpectrogramEncoder(shape), labels, pooling="rows")


NORMALISATION = Normalisation(mean=0.0, std=1.0, padding=0.0, by="clip")


@pytest.mark.parametrize("multilabel", [False, True])
def test_fit_head__classifies_from_the_first_step_on(multilabel):
    bands = np.arange(60) % 4
    store, model = Tones(bands), classifier(4)
    truth = np.eye(4, dtype=bool)[bands]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_head(model, store, np.arange(40), truth[:40], normalisation=NORMALISATION, multilabel=multilabel)
    asked = torch.from_numpy(store.clips[40:])
    frames = torch.full((20,), 32)
    with torch.inference_mode():
        logits = model.eval()(NORMALISATION(asked, frames), frames=frames)
    assert (logits.argmax(1).numpy() == bands[40:]).mean() >= 0.95
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_fit_head__a_class_without_examples_gets_a_low_score_that_training_can_raise():
    bands = np.arange(24) % 3
    store, model = Tones(bands), classifier(5)
    fit_head(model, store, np.arange(24), np.eye(5, dtype=bool)[bands], normalisation=NORMALISATION)
    assert model.head.bias[3:].tolist() == [-10.0, -10.0]
    assert model.head.weight[3:].abs().max() == 0


def test_fit_head__of_many_clips_some_are_drawn_with_every_label(monkeypatch):
    monkeypatch.setattr(head, "_MOST", 20)
    bands = np.zeros(60, dtype=int)
    bands[[7, 31]] = [1, 2]
    store, model = Tones(bands), classifier(3)
    _, count = fit_head(model, store, np.arange(60), np.eye(3, dtype=bool)[bands], normalisation=NORMALISATION)
    assert count == 20
    assert (model.head.bias > -10).all()


def test_fit_head__learns_from_the_clips_that_can_be_read(tmp_path: Path):
    torch.manual_seed(0)
    shape = EncoderConfig(width=16, depth=1, heads=2, mels=16, frames=32, patch=(8, 8), stride=(8, 8))
    store, rows = pt_store(tmp_path), np.arange(15)
    truth = store.label_matrix(rows) > 0
    groups = [f"group {row % 5}" for row in rows]

    def fitted(rows: np.ndarray, truth: np.ndarray, groups: list[str]) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        model = SpectrogramClassifier(SpectrogramEncoder(shape), 3, pooling="rows")
        _, count = fit_head(model, store, rows, truth, normalisation=NORMALISATION, groups=groups)
        return model.head.weight.detach(), count

    delete(store, 2, 6, 14)
    left = np.setdiff1d(rows, [2, 6, 14])
    weight, count = fitted(rows, truth, groups)
    expected, _ = fitted(left, truth[left], [groups[row] for row in left])
    assert count == 12
    torch.testing.assert_close(weight, expected)
    delete(store, *left.tolist())
    with pytest.raises(StoreError, match="not one of the clips to fit the head on"):
        fitted(rows, truth, groups)
