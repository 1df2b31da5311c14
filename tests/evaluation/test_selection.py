"""What is chosen inside the clips to learn from, and margins."""

from __future__ import annotations

import numpy as np
import pytest

from tymbal.evaluation.selection import choose, margin_of_figures, margin_of_marks, margin_of_scores, mix_layers

CLASSES = 3


def clips(count: int = 120, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Codes, truth [clips, classes], and groups of ten clips."""
    codes = np.random.default_rng(seed).integers(CLASSES, size=count)
    return codes, codes[:, None] == np.arange(CLASSES), [str(number // 10) for number in range(count)]


def features(codes: np.ndarray, *, apart: float, seed: int) -> np.ndarray:
    centres = 3 * np.eye(CLASSES, 8)
    return apart * centres[codes] + np.random.default_rng(seed).normal(size=(len(codes), 8))


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("groups", [False, True])
def test_choose__what_is_clearly_better_in_the_place_of_the_preferred(multilabel: bool, groups: bool) -> None:
    codes, truth, groups_of = clips()
    ways = {"own": features(codes, apart=0.1, seed=1), "good": features(codes, apart=1, seed=2)}
    given = {"multilabel": multilabel, "groups": groups_of if groups else None}
    choice = choose(ways, truth, preferred="own", **given)
    assert choice.name == "good"
    assert choice.figures["good"] > 0.9
    assert choice.figures["own"] < 0.6
    assert choose(ways, truth, **given).name == "good"


def test_choose__keeps_the_preferred_where_another_is_better_by_chance() -> None:
    codes, truth, groups = clips()
    own = features(codes, apart=0.5, seed=1)
    noise = np.random.default_rng(2).normal(size=(2, *own.shape))
    ways = {"own": own, "other": own + 0.2 * noise[0], "third": own + 0.2 * noise[1]}
    best = choose(ways, truth, multilabel=False, groups=groups)
    assert len(set(best.figures.values())) == 3
    assert best.name == max(best.figures, key=best.figures.__getitem__)
    for name in ways:
        kept = choose(ways, truth, multilabel=False, groups=groups, preferred=name)
        assert kept.name == name
        assert kept.figures == best.figures


def test_choose__the_preferred_or_first_without_folds_or_others() -> None:
    codes, truth, _ = clips(3)
    codes, truth = np.arange(3), np.eye(3, dtype=bool)
    ways = {name: features(codes, apart=1, seed=seed) for seed, name in enumerate("abc")}
    assert choose(ways, truth, multilabel=False, groups=None).name == "a"
    assert choose(ways, truth, multilabel=False, groups=None, preferred="b").name == "b"
    assert choose({"a": ways["a"]}, truth, multilabel=False, groups=None).figures == {}


def test_margin__of_marks_by_hand() -> None:
    difference = np.array([1.0, 0, 0, -1, 1, 1, 0, 0, 0, 0])
    alone = margin_of_marks(difference, None)
    assert alone.half == pytest.approx(1.96 * difference.std(ddof=1) / np.sqrt(10))
    assert alone.groups is None
    # Four groups say nothing about other groups.
    assert margin_of_marks(difference, list("aabbccddaa")) == alone
    grouped = margin_of_marks(difference, list("aabbccddee"))
    sums = np.array([1, -1, 2, 0, 0]) - 2 * difference.mean()
    assert grouped.half == pytest.approx(2.776 * np.sqrt(5 / 4 * (sums**2).sum()) / 10, rel=1e-3)
    assert grouped.groups == 5


def test_margin__of_groups_is_wide_where_clips_of_a_group_agree() -> None:
    """Sixty clips of six groups: each group is read right by one reader as a whole, or by the other."""
    difference = np.repeat([1.0, -1, 1, -1, 1, -1], 10)
    groups = [str(place // 10) for place in range(60)]
    assert margin_of_marks(difference, groups).half > 3 * margin_of_marks(difference, None).half


@pytest.mark.parametrize("clustered", [False, True])
def test_margin__holds_the_truth_in_about_95_of_100_samples(clustered: bool) -> None:
    generator = np.random.default_rng(0)
    groups = [str(place // 10) for place in range(100)]
    hits = 0
    for _ in range(400):
        chance = np.clip(0.6 + clustered * np.repeat(generator.normal(scale=0.15, size=10), 10), 0, 1)
        difference = (generator.random(100) < chance).astype(float) - (generator.random(100) < 0.5)
        margin = margin_of_marks(difference, groups if clustered else None)
        hits += abs(difference.mean() - 0.1) <= margin.half
    assert 0.91 <= hits / 400 <= 0.985


def test_margin__of_folds() -> None:
    assert margin_of_figures(np.array([0.1, 0.2, 0.3])).half == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)


def test_margin__of_map_shrinks_with_clips_and_is_nothing_for_the_same_scores() -> None:
    halves = []
    for count in (40, 640):
        generator = np.random.default_rng(1)
        truth = generator.random((count, 4)) < 0.4
        good, bad = (truth + generator.normal(scale=scale, size=truth.shape) for scale in (0.5, 1.0))
        halves.append(margin_of_scores(good, bad, truth, None).half)
        assert margin_of_scores(good, good, truth, None).half == 0
    assert halves[1] == pytest.approx(halves[0] / 4, rel=0.4)
    groups = [str(place // 64) for place in range(640)]
    assert margin_of_scores(good, bad, truth, groups).groups == 10


@pytest.mark.parametrize("multilabel", [False, True])
def test_mix_layers__finds_the_layer_that_tells_and_learns_from_the_known_alone(multilabel: bool) -> None:
    generator = np.random.default_rng(0)
    codes = np.arange(200) % 4
    telling = 2 * np.eye(4, 12)[codes] + generator.normal(size=(200, 12))
    layers = [generator.normal(size=(200, 12)) * 7, telling * 3 + 5, generator.normal(size=(200, 12))]
    truth = np.eye(4, dtype=bool)[codes]
    mixed, weights = mix_layers(layers, truth[:120], 120, multilabel=multilabel)
    assert sum(weights) == pytest.approx(1)
    assert weights[1] > 0.8
    scaled = [(layer - layer[:120].mean(0)) / layer[:120].std(0) for layer in layers]
    expected = sum(weight * layer for weight, layer in zip(weights, scaled, strict=True))
    np.testing.assert_allclose(mixed, expected, atol=1e-4)
    # What is asked has no part in it.
    moved = [np.concatenate([layer[:120], 100 + layer[120:]]) for layer in layers]
    assert mix_layers(moved, truth[:120], 120, multilabel=multilabel)[1] == weights
