from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tymbal.evaluation import linear
from tymbal.evaluation.linear import (
    PENALTIES,
    STRENGTHS,
    fit_logistic,
    fit_ridge,
    grouped_folds,
    neighbour_scores,
    quality,
    ridge_marks,
)


def blobs(clips: int, classes: int, *, apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    codes = np.arange(clips) % classes
    centres = np.random.default_rng(9).normal(size=(classes, 6)) * apart
    # Very different scales and offsets: whoever does not standardise sees only the last dimension.
    return (centres[codes] + generator.normal(size=(clips, 6))) * [1, 1, 1, 1, 1e-3, 1e3] + 50.0, codes


def one_hot(codes: np.ndarray, classes: int) -> np.ndarray:
    return codes[:, None] == np.arange(classes)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic__finds_what_is_linearly_apart(classes: int) -> None:
    (known, codes), (asked, truth) = blobs(120, classes, apart=4, seed=0), blobs(80, classes, apart=4, seed=1)
    fitted = fit_logistic(known, one_hot(codes, classes))
    assert quality(fitted.scores(asked), one_hot(truth, classes), multilabel=False)["accuracy"] >= 0.95


@pytest.mark.parametrize("multilabel", [False, True])
def test_grouped_folds__keep_groups_whole_and_ask_every_clip_once(multilabel: bool) -> None:
    recordings = np.repeat(np.arange(24), 10)
    truth = one_hot(recordings % 2, 2)
    groups = [f"recording {number}" for number in recordings]
    folds = list(grouped_folds(truth, multilabel=multilabel, groups=groups, seed=0))
    assert len(folds) == 4
    assert sorted(np.concatenate([outside for _, outside in folds])) == list(range(240))
    for inside, outside in folds:
        assert not set(recordings[inside]) & set(recordings[outside])
    straddling = [
        set(recordings[inside]) & set(recordings[outside])
        for inside, outside in grouped_folds(truth, multilabel=multilabel, groups=None, seed=0)
    ]
    assert all(straddling)


def test_logistic__strength_suits_the_data() -> None:
    known, codes = blobs(200, 2, apart=0.15, seed=0)
    noise = np.random.default_rng(1).normal(size=(200, 60))
    assert fit_logistic(np.hstack([known, noise]), one_hot(codes, 2)).strength <= 0.1
    # Whitened directions of one class that only a long weight vector can tell apart.
    fine = np.column_stack([np.arange(200), np.arange(200) + 0.1 * codes])
    assert fit_logistic(fine, one_hot(codes, 2)).strength == STRENGTHS[-1]


def test_logistic__one_strength_is_taken_as_it_is() -> None:
    known, codes = blobs(40, 2, apart=1, seed=0)
    assert fit_logistic(known, one_hot(codes, 2), strengths=(0.3,)).strength == 0.3


def test_logistic__class_without_clips_is_never_predicted() -> None:
    known, codes = blobs(60, 3, apart=3, seed=0)
    scores = fit_logistic(known, one_hot(codes, 5)).scores(known)
    assert set(scores.argmax(axis=1)) == {0, 1, 2}


def test_logistic__a_single_clip_a_class_needs_no_folds() -> None:
    known, codes = blobs(3, 3, apart=8, seed=0)
    fitted = fit_logistic(known, one_hot(codes, 3))
    assert fitted.strength == 1.0
    assert fitted.scores(known).argmax(axis=1).tolist() == [0, 1, 2]


def test_logistic__several_labels() -> None:
    generator = np.random.default_rng(3)
    known = generator.normal(size=(300, 5))
    truth = known[:, :3] + 0.1 * generator.normal(size=(300, 3)) > [0.0, 0.5, 9.0]
    fitted = fit_logistic(known[:200], truth[:200], multilabel=True)
    found = quality(fitted.scores(known[200:]), truth[200:], multilabel=True)
    assert found["mAP"] > 0.95
    assert found["roc_auc"] > 0.97


def test_neighbours__vote_by_cosine_of_standardised_features() -> None:
    (known, codes), (asked, truth) = blobs(120, 4, apart=4, seed=0), blobs(80, 4, apart=4, seed=1)
    votes = neighbour_scores(known, one_hot(codes, 4), asked, neighbours=5)
    np.testing.assert_allclose(votes.sum(axis=1), 1)
    assert quality(votes, one_hot(truth, 4), multilabel=False)["accuracy"] >= 0.95
    # One's own nearest neighbour is oneself.
    assert (neighbour_scores(known, one_hot(codes, 4), known, neighbours=1).argmax(axis=1) == codes).all()


def test_neighbours__fewer_clips_than_wanted_neighbours() -> None:
    known, codes = blobs(4, 2, apart=4, seed=0)
    assert neighbour_scores(known, one_hot(codes, 2), known, neighbours=10).shape == (4, 2)


def test_quality__absent_classes_are_left_out() -> None:
    truth = np.array([[1, 0, 0], [0, 1, 0]], bool)
    assert quality(np.array([[0.9, 0.1, 0], [0.8, 0.2, 0]]), truth, multilabel=False)["balanced_accuracy"] == 0.5
    assert quality(np.array([[2.0, 0, 5], [1, 1, 5]]), truth, multilabel=True)["mAP"] == 1.0


def test_fit_logistic__more_dimensions_than_clips_is_the_same_regression():
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(40, 100)), draw.integers(0, 3, 40)
    features[np.arange(40), labels] += 3
    truth = np.eye(3, dtype=bool)[labels]
    scaled = (features - features.mean(0)) / features.std(0)
    direct = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(scaled, labels)
    found = fit_logistic(features, truth, strengths=(0.1,)).scores(features)
    expected = scaled @ direct.coef_.T + direct.intercept_
    centred = [scores - scores.mean(1, keepdims=True) for scores in (found, expected)]
    np.testing.assert_allclose(*centred, atol=5e-3)


@pytest.mark.parametrize("clips", [40, 200])
@pytest.mark.parametrize("multilabel", [False, True])
def test_ridge__is_that_of_scikit_learn(clips: int, multilabel: bool) -> None:
    """By either Gram matrix: fewer clips than dimensions, and more."""
    known, codes = blobs(clips, 3, apart=1, seed=0)
    noise = np.random.default_rng(1).normal(size=(clips, 80))
    features = np.hstack([known, noise])
    truth = one_hot(codes, 3)
    if multilabel:
        truth = truth | one_hot((codes + (np.arange(clips) % 2)) % 3, 3)
    scaled = (features - features.mean(0)) / features.std(0)
    # A penalty of 1 is the mean eigenvalue, over the clips, of the Gram matrix.
    expected = Ridge(alpha=0.5 * features.shape[1]).fit(scaled, truth.astype(float)).predict(scaled)
    fitted = fit_ridge(features, truth, multilabel=multilabel, penalties=(0.5,))
    assert fitted.strength == 0.5
    np.testing.assert_allclose(fitted.scores(features), expected, atol=1e-8)


def test_ridge__reads_as_well_as_the_logistic_regression() -> None:
    (known, codes), (asked, truth) = blobs(120, 4, apart=1, seed=0), blobs(400, 4, apart=1, seed=1)
    ridge, logistic = (
        quality(fit(known, one_hot(codes, 4)).scores(asked), one_hot(truth, 4), multilabel=False)["accuracy"]
        for fit in (fit_ridge, fit_logistic)
    )
    assert ridge == pytest.approx(logistic, abs=0.05)


def test_ridge__class_without_clips_is_never_read_and_too_few_clips_have_no_folds() -> None:
    known, codes = blobs(60, 2, apart=4, seed=0)
    fitted = fit_ridge(known, one_hot(codes, 3))
    assert fitted.scores(known).argmax(axis=1).tolist() == codes.tolist()
    assert (fitted.scores(known)[:, 2] < -1e8).all()
    assert fit_ridge(known[:2], one_hot(codes[:2], 2)).strength == 1.0


def test_ridge_marks__standardise_by_the_clips_inside_alone() -> None:
    """Each group is shifted as a whole, and only that shift tells its class: outside of it nothing is to be known."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 20)
    features = generator.normal(size=(160, 5)) * 0.1 + generator.normal(size=(8, 5))[groups]
    truth = one_hot(groups % 2, 2)
    folds = list(grouped_folds(truth, multilabel=False, groups=[str(group) for group in groups], seed=0))
    penalty, marks = ridge_marks(features, truth, folds, multilabel=False, penalties=(1.0,))
    assert penalty == 1.0
    expected = []
    for inside, outside in folds:
        centre, scale = features[inside].mean(0), features[inside].std(0)
        model = Ridge(alpha=5.0).fit((features[inside] - centre) / scale, truth[inside].astype(float))
        expected.append(model.predict((features[outside] - centre) / scale).argmax(1) == truth[outside].argmax(1))
    assert marks.tolist() == np.concatenate(expected).tolist()
    best, chosen = ridge_marks(features, truth, folds, multilabel=False)
    assert best in PENALTIES
    assert chosen.mean() >= marks.mean()
    several = ridge_marks(features, truth, folds, multilabel=True)[1]
    assert several.shape == (len(folds),)


def far_apart(seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Clips of three speakers, each with a level of their own, far from the others'."""
    generator = np.random.default_rng(seed)
    speaker, codes = np.repeat(np.arange(3), 30), np.arange(90) % 3
    shared = generator.normal(size=(3, 12)) * 0.35
    levels = generator.normal(size=(3, 12)) * np.linspace(0, 4, 12)
    features = shared[codes] + levels[speaker] + 0.5 * generator.normal(size=(90, 12))
    return features, codes, [f"speaker {number}" for number in speaker]


@pytest.mark.parametrize("seed", range(4))
def test_logistic__each_fold_standardises_by_its_own_clips(seed: int) -> None:
    """The choice is as good as that of whole pipelines in each fold."""
    features, codes, groups = far_apart(seed)
    truth = one_hot(codes, 3)
    folds = list(grouped_folds(truth, multilabel=False, groups=groups, seed=42))

    def reached(strength: float) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-6))
        return float(np.mean([model.fit(features[a], codes[a]).score(features[b], codes[b]) for a, b in folds]))

    chosen = fit_logistic(features, truth, groups=groups).strength
    assert reached(chosen) >= max(map(reached, STRENGTHS)) - 0.03


def test_logistic__what_is_asked_has_no_part_in_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three speakers two are learned from in each fold, and only they are standardised by."""
    features, codes, groups = far_apart(0)
    seen: list[int] = []
    original = linear.centre_and_scale
    monkeypatch.setattr(linear, "centre_and_scale", lambda values: seen.append(len(values)) or original(values))
    fit_logistic(features, one_hot(codes, 3), groups=groups)
    assert seen == [60, 60, 60, 90]


def test_logistic__finds_the_optimum_of_scikit_learn() -> None:
    """Also weakly regularised, where plain gradient steps stop far from it."""
    known, codes = blobs(150, 4, apart=0.5, seed=0)
    noise = np.random.default_rng(1).normal(size=(150, 30)) @ np.diag(np.geomspace(1, 1e-2, 30))
    features = np.hstack([known, noise])
    scaled = StandardScaler().fit_transform(features)
    for classes, labels in ((4, codes), (2, codes % 2)):
        for strength in (1e-3, 1.0, 100.0):
            direct = LogisticRegression(C=strength, max_iter=50_000, tol=1e-9).fit(scaled, labels)
            fitted = fit_logistic(features, one_hot(labels, classes), strengths=(strength,))
            found = fitted.scores(features)
            found = np.exp(found - np.logaddexp.reduce(found, axis=1, keepdims=True))
            np.testing.assert_allclose(found, direct.predict_proba(scaled), atol=2e-3)
