from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from damaged import delete, pt_store
from small_model import small_model
from tones import PITCHES, tone_store
from tymbal import load_model
from tymbal.errors import ModelError, StoreError
from tymbal.evaluation.linear import quality
from tymbal.evaluation.scoring import figures_of, score_validation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("classifier") / "model", labels=tuple(PITCHES), pooling="mean")


def test_score_validation__gives_probabilities_of_the_models(classifier: Path, tmp_path: Path) -> None:
    store, loaded = pt_store(tmp_path), load_model(classifier)
    scored = score_validation(loaded, store, batch_size=4, device=CPU)
    assert (scored.rows.tolist(), scored.classes) == (store.rows("validation").tolist(), tuple(PITCHES))
    frames = torch.from_numpy(store.real_frames[scored.rows].astype(np.int64))
    x = loaded.description.normalisation(torch.from_numpy(store.gather(scored.rows)), frames)
    with torch.no_grad():
        expected = loaded.module.eval()(x, frames=frames).softmax(1)
    np.testing.assert_allclose(scored.scores, expected, atol=1e-6)
    assert scored.truth.argmax(1).tolist() == store.label_indices(scored.rows).tolist()
    delete(store, 16, 19)
    left = score_validation(loaded, store, batch_size=4, device=CPU)
    some = np.isin(scored.rows, left.rows)
    assert scored.rows[~some].tolist() == [16, 19]
    np.testing.assert_array_equal(left.truth, scored.truth[some])
    np.testing.assert_allclose(left.scores, scored.scores[some], atol=1e-6)
    delete(store, *left.rows.tolist())
    with pytest.raises(StoreError, match="not one of the clips has a label and can be read"):
        score_validation(loaded, store, batch_size=4, device=CPU)


@pytest.mark.parametrize("multilabel", [False, True])
def test_figures_of__are_those_of_the_scores(tmp_path: Path, multilabel: bool) -> None:
    model = small_model(tmp_path / "model", labels=tuple(PITCHES), pooling="mean", multilabel=multilabel)
    store = tone_store(tmp_path / "store", multilabel=multilabel)
    figures = figures_of(model, store, split="validation", batch_size=5, device="cpu")
    scored = score_validation(load_model(model), store, batch_size=5, device=CPU)
    name = "mAP" if multilabel else "accuracy"
    expected = quality(scored.scores, scored.truth, multilabel=multilabel)[name]
    assert figures[name] == pytest.approx(expected, abs=0.02 if multilabel else 1e-9)  # mAP is from a histogram
    chances = np.where(scored.truth, scored.scores, 1 - scored.scores if multilabel else 1.0)
    losses = -np.log(chances).mean(1) if multilabel else -np.log(chances).sum(1)
    assert figures["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_figures_of__of_the_clips_that_can_be_read(classifier: Path, tmp_path: Path) -> None:
    store = pt_store(tmp_path)
    delete(store, *range(0, 15, 2), 17)
    figures = figures_of(classifier, store, split="validation", batch_size=4, device="cpu")
    scored = score_validation(load_model(classifier), store, batch_size=4, device=CPU)
    assert len(scored.rows) == 8
    assert figures["accuracy"] == pytest.approx((scored.scores.argmax(1) == scored.truth.argmax(1)).mean())
    assert figures_of(classifier, store, batch_size=4, device="cpu")["loss"] > 0
    delete(store, *scored.rows.tolist())
    with pytest.raises(StoreError, match="not one of the clips has a label and can be read"):
        figures_of(classifier, store, split="validation", device="cpu")


def test_scoring__what_has_no_classifier_or_other_labels_is_refused(classifier: Path, tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store", clips=4, validation=2)
    with pytest.raises(ModelError, match="no classifier"):
        score_validation(load_model(small_model(tmp_path / "encoder")), store, batch_size=4, device=CPU)
    other = small_model(tmp_path / "other", labels=("high", "low"), pooling="mean")
    with pytest.raises(StoreError, match="the model does not know these labels of the clips: middle"):
        figures_of(other, store, device="cpu")
    with pytest.raises(StoreError, match="labels are not in the table of classes: middle"):
        score_validation(load_model(other), store, batch_size=4, device=CPU)
