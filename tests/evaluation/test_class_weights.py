from __future__ import annotations

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from tymbal.evaluation.labelled_clips import class_weights


def test_class_weights__are_those_of_scikit_learn() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2])
    found = class_weights(labels[:, None] == np.arange(4), multilabel=False)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(found, [*expected, 1.0], rtol=1e-6)  # of the last class there is no clip
    assert found.dtype == np.float32


def test_class_weights__of_several_labels_balance_yes_and_no() -> None:
    truth = np.zeros((8, 3), bool)
    truth[:2, 0] = truth[:, 1] = True  # the second label has no clip without it, the third none with it
    found = class_weights(truth, multilabel=True)
    np.testing.assert_allclose(found, [[8 / 12, 1, 1], [8 / 4, 1, 1]])
    np.testing.assert_allclose(np.where(truth, found[1], found[0]).mean(axis=0), 1, rtol=1e-6)
