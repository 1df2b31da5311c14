from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from small_model import small_model
from tones import tone_store
from tymbal import probe
from tymbal.evaluation.attentive import STRENGTHS, _scales, fit_attentive
from tymbal.evaluation.embedding_cache import Tokens
from tymbal.evaluation.linear import fit_logistic, quality

QUICK = {"device": "cpu", "precision": "float32"}
COLUMNS, WIDTH = 48, 16


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "cache"))


def events(path: Path, *, clips: int, seed: int = 0) -> tuple[Tokens, np.ndarray, np.ndarray]:
    """Noise of one strength everywhere, but for one token a clip that tells which of three classes it is of.

    Gives the tokens, the truth, and the means over the tokens.
    """
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(clips, COLUMNS, WIDTH))
    patterns = np.random.default_rng(99).normal(size=(3, WIDTH))
    patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
    codes = np.arange(clips) % 3
    values[np.arange(clips), generator.integers(0, COLUMNS, clips)] += 6 * patterns[codes]
    real = np.full(clips, COLUMNS, np.int64)
    return as_tokens(path, values, real), np.eye(3, dtype=bool)[codes], values.mean(axis=1)


def as_tokens(path: Path, values: np.ndarray, real: np.ndarray) -> Tokens:
    path.write_bytes(values.astype(np.float16).tobytes())
    return Tokens(path, values.shape[1:], (1, values.shape[1]), 0, real)


def accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    return quality(scores, truth, multilabel=False)["accuracy"]


def test_fit_attentive__finds_a_short_event_that_the_mean_drowns(tmp_path: Path) -> None:
    tokens, truth, means = events(tmp_path / "tokens", clips=240)
    known, asked = np.arange(160), np.arange(160, 240)
    fitted = fit_attentive(tokens, known, truth[known])
    mean = fit_logistic(means[known], truth[known]).scores(means[asked])
    assert accuracy(mean, truth[asked]) < 0.65
    assert accuracy(fitted.scores(tokens, asked), truth[asked]) > 0.9
    again = fit_attentive(tokens, known, truth[known])
    np.testing.assert_array_equal(fitted.scores(tokens, asked), again.scores(tokens, asked))


def test_fit_attentive__strong_regularisation_is_the_logistic_regression_on_means(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    codes = np.arange(90) % 3
    values = generator.normal(size=(90, 6, 8)) + 0.8 * np.eye(3, 8)[codes][:, None]
    truth = np.eye(3, dtype=bool)[codes]
    tokens = as_tokens(tmp_path / "tokens", values, np.full(90, 6, np.int64))
    places = np.arange(90)
    scores = fit_attentive(tokens, places, truth, strengths=(1e-3,)).scores(tokens, places)
    # Four queries of zeros see the mean four times over: together their penalty is a fourth.
    means = values.mean(axis=1)
    expected = fit_logistic(means, truth, strengths=(4e-3,)).scores(means)
    centred = [each - each.mean(axis=1, keepdims=True) for each in (scores, expected)]
    assert np.corrcoef(*map(np.ravel, centred))[0, 1] > 0.99
    assert np.abs(centred[0] - centred[1]).max() < 0.1 * np.abs(centred[1]).max()


def test_fit_attentive__padding_is_not_looked_at(tmp_path: Path) -> None:
    tokens, truth, _ = events(tmp_path / "tokens", clips=30)
    values = tokens.batch(np.arange(30))[0].numpy()
    values[:, 40:] = np.random.default_rng(5).normal(size=(30, 8, WIDTH)) * 100
    padded = as_tokens(tmp_path / "padded", values, np.full(30, 40))
    short = as_tokens(tmp_path / "short", values[:, :40], np.full(30, 40))
    found = [fit_attentive(each, np.arange(20), truth[:20]).scores(each, np.arange(20, 30)) for each in (padded, short)]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)


def test_scales__are_those_of_the_clips_that_teach(tmp_path: Path) -> None:
    """Each set of readers is standardised by its own clips, by none of those that it is asked about."""
    values = np.random.default_rng(0).normal(size=(30, 6, 8)).astype(np.float16).astype(np.float64)
    values[20:] += 100  # a speaker far from the others
    tokens, places = as_tokens(tmp_path / "tokens", values, np.full(30, 6, np.int64)), np.arange(30)
    values = values.astype(np.float16).astype(np.float64)
    inside = np.stack([places < 20, places >= 0])
    scales = _scales(tokens, places, inside, torch.device("cpu"))
    for place, known in enumerate((values[:20], values)):
        means = known.mean(axis=1)
        np.testing.assert_allclose(scales.centre[place], means.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scales.by_clip[place], 1 / means.std(axis=0), rtol=1e-3)


def test_fit_attentive__several_labels_and_a_class_that_nothing_has(tmp_path: Path) -> None:
    tokens, truth, _ = events(tmp_path / "tokens", clips=160)
    several = np.concatenate([truth[:, :2], np.zeros((160, 1), bool)], axis=1)  # a third of the clips has none
    fitted = fit_attentive(tokens, np.arange(120), several[:120], multilabel=True)
    figures = quality(fitted.scores(tokens, np.arange(120, 160)), several[120:], multilabel=True)
    assert figures["mAP"] > 0.85


def test_fit_attentive__a_single_clip_a_class_needs_no_folds(tmp_path: Path) -> None:
    tokens, truth, _ = events(tmp_path / "tokens", clips=6)
    fitted = fit_attentive(tokens, np.arange(3), truth[:3])
    assert fitted.strength == 1.0
    assert fitted.scores(tokens, np.arange(3)).argmax(axis=1).tolist() == [0, 1, 2]


def test_probe__attentive_stands_in_the_table_beside_the_others(tmp_path: Path) -> None:
    store, model = tone_store(tmp_path / "store").path, small_model(tmp_path / "model")
    readers = ("logistic", "attentive")
    settings = {**QUICK, "readers": readers, "shots": (1,), "draws": 2, "layer": "all", "random": False}
    result = probe(model, store, tmp_path / "out.json", **settings)
    rows = [row for row in result.rows if row.reader == "attentive"]
    assert [(row.features, row.pooling, row.layer, row.shots, row.repeats) for row in rows] == [
        ("model", "tokens", layer, shots, repeats)
        for layer in (0, 1, 2, None)
        for shots, repeats in ((None, 1), (1, 2))
    ]
    assert all(row.strength in (*STRENGTHS, None) for row in rows)
    assert min(row.figures["accuracy"] for row in rows if row.shots is None) > 0.8
    assert not [row for row in result.rows if row.reader == "knn"]
    lines = result.summary().splitlines()
    assert lines[2].split()[-4:] == ["logistic", "attentive", "(accuracy,", "%)"]
    last = [line for line in lines if line.startswith("model ")][-1]
    assert last.split()[:6] == ["model", "tokens", "last", "1", "16", "-"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["settings"]["readers"] == list(readers)
    assert [row["accuracy"] for row in written["rows"]] == [row.figures["accuracy"] for row in result.rows]
    again = probe(model, store, **{**settings, "readers": ("attentive",), "layer": "last", "shots": ()})
    assert again.rows == tuple(row for row in rows if row.layer is None and row.shots is None)


def test_probe__attentive_alone_over_folds(tmp_path: Path) -> None:
    store, model = tone_store(tmp_path / "store", clips=8).path, small_model(tmp_path / "model")
    result = probe(model, store, readers=("attentive",), folds=2, **QUICK)
    assert [(row.features, row.reader, row.repeats) for row in result.rows] == [
        ("random", "attentive", 2),
        ("model", "attentive", 2),
    ]
    assert result.summary().splitlines()[0] == "3 classes, 24 clips in 2 folds"
