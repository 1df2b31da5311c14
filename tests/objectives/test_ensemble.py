from __future__ import annotations

import pytest
import torch
from sklearn import metrics

from tymbal.objectives.classification import Ensemble


@pytest.mark.parametrize("multilabel", [False, True])
def test_ensemble__scores_the_mean_of_all_predictions_so_far(multilabel):
    rows, generator = torch.tensor([3, 5, 8, 11, 12, 20]), torch.Generator().manual_seed(0)
    truth = torch.eye(3, dtype=torch.bool)[[0, 1, 2, 0, 1, 2]]
    ensemble = Ensemble(rows, 3, multilabel=multilabel)
    total = torch.zeros(6, 3)
    for _ in range(3):
        logits = torch.randn(6, 3, generator=generator) + truth
        total += logits.sigmoid() if multilabel else logits.softmax(1)
        parts = [ensemble.sums(logits[part], truth[part], rows[part]) for part in (slice(4, 6), slice(0, 4))]
    found = ensemble.metrics({name: parts[0][name] + parts[1][name] for name in parts[0]})
    mean = (total / 3).numpy()
    assert found["ensemble_mAP"] == pytest.approx(metrics.average_precision_score(truth.numpy(), mean, average="macro"))
    assert found["ensemble_auc"] == pytest.approx(metrics.roc_auc_score(truth.numpy(), mean, average="macro"))
    assert found["ensemble_top1"] == (mean.argmax(1) == truth.int().argmax(1).numpy()).mean()
    other = Ensemble(rows, 3, multilabel=multilabel)
    other.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(other.mean, total / 3)
