"""Our exports in `transformers.pipeline`, with transformers' own feature extractor."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from small_model import small_model
from tymbal import predict
from tymbal.settings import FeatureSettings


@pytest.mark.parametrize("multilabel", [False, True])
def test_pipeline__gives_the_scores_of_predict(tmp_path: Path, multilabel: bool):
    from transformers import pipeline

    features = FeatureSettings(mel_bins=32)
    labels = ("frog", "cicada", "wind")
    folder = small_model(
        tmp_path / "model", labels=labels, pooling="cls", features=features, frames=96, multilabel=multilabel
    )
    generator = np.random.default_rng(0)
    sound = (0.1 * generator.normal(size=features.samples_of(96))).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    predict(folder, tmp_path / "a.wav", tmp_path / "out.csv", device="cpu", precision="float32")
    with (tmp_path / "out.csv").open(newline="") as file:
        expected = {row["label"]: float(row["score"]) for row in csv.DictReader(file)}
    classify = pipeline("audio-classification", model=str(folder), device="cpu")
    found = {one["label"]: one["score"] for one in classify({"raw": sound, "sampling_rate": 16_000}, top_k=3)}
    assert found == pytest.approx(expected, abs=2e-3)
