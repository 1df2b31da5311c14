from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from tymbal.objectives import metrics as scores
from tymbal.objectives.metrics import RunningSums


def test_log_odds__equals_logit_of_softmax_and_stays_finite() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [60.0, 0.0, -3.0]])
    odds = scores.log_odds(logits)
    torch.testing.assert_close(odds[0], torch.logit(logits[0].softmax(0)))
    assert odds[1].tolist() == pytest.approx([60.0 - 0.04858735, -60.0, -63.0], abs=1e-5)


def test_single_label_figures__agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (300,), generator=generator)
    predicted = torch.where(torch.rand(300, generator=generator) < 0.6, truth, (truth + 1) % 5)
    # Class 4 never occurs in the truth, class 5 neither in truth nor in prediction.
    halves = [scores.confusion_counts(p, t, 6) for p, t in zip(predicted.split(150), truth.split(150), strict=True)]
    figures = scores.single_label_figures(sum(halves, torch.zeros(6, 6)).numpy())
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert figures["balanced_accuracy"] == pytest.approx(
        metrics.recall_score(truth, predicted, labels=[0, 1, 2, 3], average="macro")
    )
    for average, prefix in (("macro", ""), ("weighted", "weighted_")):
        expected = metrics.precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)[:3]
        found = [figures[prefix + name] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected)


def test_by_class__agrees_with_scikit_learn() -> None:
    truth, predicted = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 2, 2])
    counts = scores.single_label_counts(scores.confusion_counts(predicted, truth, 5).numpy())
    expected = metrics.precision_recall_fscore_support(truth, predicted, labels=range(5), zero_division=0)
    found = scores.by_class(*counts)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        np.testing.assert_allclose(found[name], values)


def test_single_label_figures__nothing_seen_is_nan() -> None:
    assert np.isnan(list(scores.single_label_figures(np.zeros((3, 3))).values())).all()


def test_multilabel_figures__agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(200, 5, generator=generator) < 0.3
    predicted = truth ^ (torch.rand(200, 5, generator=generator) < 0.2)
    figures = scores.multilabel_figures(scores.multilabel_counts(predicted, truth).numpy())
    by_class = [metrics.balanced_accuracy_score(truth[:, c], predicted[:, c]) for c in range(5)]
    assert figures["accuracy"] == pytest.approx((truth == predicted).float().mean().item())
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(by_class))
    for average, prefix in (("macro", ""), ("weighted", "weighted_")):
        expected = metrics.precision_recall_fscore_support(truth, predicted, average=average)[:3]
        found = [figures[prefix + name] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected)


def test_histogram__ranks_as_scikit_learn_does() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(2000, 3, generator=generator) < 0.2
    values = torch.randn(2000, 3, generator=generator) + truth * torch.tensor([0.0, 1.0, 8.0])
    histogram = sum(
        scores.score_histogram(v, t) for v, t in zip(values.split(500), truth.split(500), strict=True)
    ).numpy()
    rounded = scores.bins_of(values)
    exact = [metrics.average_precision_score(truth[:, c], rounded[:, c]) for c in range(3)]
    assert scores.average_precision(histogram) == pytest.approx(np.mean(exact), abs=1e-9)
    assert scores.roc_auc(histogram) == pytest.approx(metrics.roc_auc_score(truth, rounded), abs=1e-9)
    plain = metrics.average_precision_score(truth, values)
    assert scores.average_precision(histogram) == pytest.approx(plain, abs=3e-3)


def test_bins__keep_order_and_resolve_small_differences() -> None:
    ladder = torch.tensor([-1e9, -16.0, -6.05, -6.0, -0.0003, -0.0001, 0.0, 0.0003, 1.0, 1.01, 15.9, 1e9])
    bins = scores.bins_of(ladder)
    assert (bins.diff() > 0)[1:-1].all()
    assert bins[[0, 1, -1]].tolist() == [0, 0, scores.BINS - 1]


def test_histogram__absent_classes_are_left_out() -> None:
    truth = torch.tensor([[True, False], [False, False]])
    histogram = scores.score_histogram(torch.tensor([[99.0, 1.0], [-99.0, float("nan")]]), truth).numpy()
    assert scores.average_precision(histogram) == 1.0
    assert scores.roc_auc(histogram) == 1.0
    assert np.isnan(scores.average_precision(histogram[:, 1:]))
    assert np.isnan(scores.each_average_precision(histogram)).tolist() == [False, True]
    assert np.isnan(scores.each_roc_auc(histogram)).tolist() == [False, True]


def test_middle_precision_recall__at_the_median_threshold() -> None:
    # One class: scores in bins 1, 2, 3, of which 2 is the middle threshold.
    histogram = np.zeros((2, 2, 4), np.int64)
    histogram[1, 0], histogram[0, 0] = [0, 1, 2, 1], [0, 3, 1, 0]
    precision, recall = scores.middle_precision_recall(histogram)
    assert (precision, recall) == (3 / 4, 3 / 4)
    assert np.isnan(scores.middle_precision_recall(np.zeros((2, 2, 4), np.int64))).all()


def test_sums__of_any_shape_start_again_after_each_look():
    running = RunningSums()
    for count in (1, 2):
        running.add({"count": torch.tensor(count), "matrix": torch.full((2, 2), count), "flag": torch.tensor(True)})
    taken = running.take()
    assert taken["count"].item() == 3
    assert taken["matrix"].tolist() == [[3, 3], [3, 3]]
    assert taken["flag"].item() == 2
    assert running.take() == {}


def test_sums__stay_exact_over_many_batches():
    running = RunningSums()
    for _ in range(1000):
        running.add({"sum": torch.tensor(16_777_217.0, dtype=torch.float64).float() + 0, "count": torch.tensor(2**40)})
    taken = running.take()
    assert taken["sum"].dtype == torch.float64
    assert taken["sum"].item() == 1000 * 16_777_216.0
    assert taken["count"].item() == 1000 * 2**40


def test_sums__do_not_touch_what_was_added():
    running, value = RunningSums(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    running.add({"sum": value})
    running.add({"sum": value})
    assert running.take()["sum"].item() == pytest.approx(2.0)
    assert value.item() == 1.0
