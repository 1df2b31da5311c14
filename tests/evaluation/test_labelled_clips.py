from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tones import tone_store
from tymbal.errors import ManifestError, StoreError
from tymbal.evaluation.labelled_clips import balanced_weights, class_weights, labelled_clips, read_weights


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


def test_balanced_weights__are_those_of_gen_weight_file():
    truth = np.array([[1, 0], [1, 0], [1, 1]], bool)
    rare, common = 1000 / 1.01, 1000 / 3.01
    np.testing.assert_allclose(balanced_weights(truth), [common, common, common + rare])


def test_read_weights__by_the_entries_of_the_list(tmp_path):
    listed, weights = tmp_path / "train.json", tmp_path / "train_weight.csv"
    listed.write_text(json.dumps({"data": [{"wav": f"/far/{name}.wav"} for name in "abc"]}))
    weights.write_text("1.5\n2.5\n3.5\n")
    # One of the clips was left out, and they lie elsewhere.
    assert read_weights(weights, listed, ["/near/c.wav", "C:\\near\\a.wav"]).tolist() == [3.5, 1.5]
    weights.write_text("1.5\n2.5\n")
    with pytest.raises(ManifestError, match="holds 2 weights, but the list has 3 entries"):
        read_weights(weights, listed, [])
    weights.write_text("1\n-2\n3\n")
    with pytest.raises(ManifestError, match="below 0"):
        read_weights(weights, listed, [])


def test_labelled_clips__a_store_without_labels_is_refused(tmp_path):
    store = tone_store(tmp_path / "store", clips=4, validation=2)
    place = store.index.schema.get_field_index("labels")
    nothing = pa.array([[]] * len(store), store.index.schema.field("labels").type)
    store.index = store.index.set_column(place, "labels", nothing)
    with pytest.raises(StoreError, match="label"):
        labelled_clips(store)
