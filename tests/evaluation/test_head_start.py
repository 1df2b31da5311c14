"""The head that a classifier begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from damaged import delete, pt_store
from tymbal.errors import StoreError
from tymbal.evaluation import head_start as head
from tymbal.evaluation.head_start import choose_pooling, fit_head
from tymbal.evaluation.linear import Fitted
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder


class Tones:
    """As much of a store as is asked: clips in which one of some bands is loud."""

    ahead = 1

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


def classifier(labels: int, *, standardise: bool = False) -> SpectrogramClassifier:
    torch.manual_seed(0)
    shape = EncoderConfig(width=16, depth=1, heads=2, mels=32, frames=32, patch=(8, 8), stride=(8, 8))
    return SpectrogramClassifier(SpectrogramEncoder(shape), labels, pooling="rows", standardise=standardise)


@torch.no_grad()
def scores(model: SpectrogramClassifier, clips: np.ndarray) -> torch.Tensor:
    """Logits of clips [clips, frames, mels] in evaluation mode."""
    frames = torch.full((len(clips),), clips.shape[1])
    return model.eval()(NORMALISATION(torch.from_numpy(clips), frames), frames=frames)


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


def test_fit_head__keeps_low_biases_of_labels_that_have_examples(monkeypatch):
    bands = np.arange(40) % 4
    store, truth = Tones(bands), np.eye(4, dtype=bool)[bands]
    fitted = Fitted(np.ones((64, 4)), np.array([-30.0, 5.0, -12.0, 0.0]), 1.0)
    monkeypatch.setattr(head, "fit_logistic", lambda *_, **__: fitted)
    model = classifier(4)
    fit_head(model, store, np.arange(40), truth, normalisation=NORMALISATION)
    assert model.head.bias.tolist() == [-30.0, 5.0, -12.0, 0.0]


def test_fit_head__of_several_labels_one_that_all_clips_have_is_expected():
    bands = np.arange(24) % 3
    truth = np.column_stack([np.eye(3, dtype=bool)[bands], np.ones(24, bool), np.zeros(24, bool)])
    model = classifier(5, standardise=True)
    fit_head(model, Tones(bands), np.arange(24), truth, normalisation=NORMALISATION, multilabel=True)
    assert model.head.bias[3:].tolist() == [10.0, -10.0]


@pytest.mark.parametrize("multilabel", [False, True])
def test_fit_head__that_standardises_is_the_same_regression(multilabel):
    bands = np.arange(60) % 4
    store, model = Tones(bands), classifier(4, standardise=True)
    truth = np.eye(4, dtype=bool)[bands]
    fitted, _ = fit_head(model, store, np.arange(40), truth[:40], normalisation=NORMALISATION, multilabel=multilabel)
    frames = torch.full((60,), 32)
    with torch.no_grad():
        pooled = model.eval().embed(NORMALISATION(torch.from_numpy(store.clips), frames), frames=frames)
    expected = torch.from_numpy(fitted.scores(pooled.double().numpy())).float()
    torch.testing.assert_close(scores(model, store.clips), expected, atol=1e-2, rtol=1e-3)  # 1e-5 is added to variances
    standard = model.head_norm(pooled[:40])
    torch.testing.assert_close(standard.mean(0), torch.zeros(64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("standardise", [False, True])
def test_fit_head__scores_spread_no_wider_than_allowed_and_name_the_same_labels(standardise):
    bands = np.arange(60) % 4
    store, truth = Tones(bands), np.eye(4, dtype=bool)[bands]
    free, held, wide = (classifier(4, standardise=standardise) for _ in range(3))
    for model, scale in ((free, 0.0), (held, 0.1), (wide, 100.0)):
        fit_head(model, store, np.arange(60), truth, normalisation=NORMALISATION, scale=scale)
    spread = [scores(model, store.clips).std(0, correction=0).mean().item() for model in (free, held, wide)]
    assert spread[0] > 0.2
    assert spread[1:] == pytest.approx([0.1, spread[0]], rel=1e-3)
    assert scores(held, store.clips).argmax(1).equal(scores(free, store.clips).argmax(1))


def test_fit_head__without_a_regression_takes_the_statistics_alone():
    bands = np.arange(40) % 4
    model = classifier(4, standardise=True)
    before = model.head.weight.clone()
    fitted, count = fit_head(
        model, Tones(bands), np.arange(40), np.eye(4, dtype=bool)[bands], normalisation=NORMALISATION, regression=False
    )
    assert (fitted, count) == (None, 40)
    assert torch.equal(model.head.weight, before)
    assert model.head_norm.mean.any()
    assert not torch.equal(model.head_norm.variance, torch.ones(64))


@pytest.mark.parametrize(("when", "expected"), [(True, {"grid2", "grid4"}), (False, {"rows"})])
def test_choose_pooling__keeps_time_where_it_tells_labels_apart(when, expected):
    # Label 1 has its loud band in the second half of the time; or all of the time, in another band.
    late = np.arange(80) % 2
    store = Tones(np.zeros(80, dtype=int))
    for clip, is_late in enumerate(late):
        store.clips[clip] = np.random.default_rng(clip).normal(size=(32, 32)) * 0.5
        frames = slice(16 * is_late, 16 * is_late + 16) if when else slice(None)
        store.clips[clip, frames, 0 if when else 16 * is_late : 8 if when else 16 * is_late + 8] += 2
    encoder = classifier(2).encoder
    chosen = choose_pooling(encoder, store, np.arange(80), np.eye(2, dtype=bool)[late], normalisation=NORMALISATION)
    assert chosen in expected
    assert encoder.training


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
