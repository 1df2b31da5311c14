"""Folders whose spectrograms transformers' own extractor cannot make: with ours it gives what `predict` gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from small_model import small_model
from tymbal import convert, predict
from tymbal.features.kaldi import LOG_FLOOR, KaldiFbank
from tymbal.models.folder import load_model
from tymbal.models.formats.huggingface import REMOTE_CODE
from tymbal.settings import FeatureSettings

LABELS = ("frog", "cicada", "wind")
NARROW = FeatureSettings(mel_bins=32)
BAT = FeatureSettings(
    mel_bins=40, sample_rate=192_000, frame_length=0.01, frame_shift=0.004, low_freq=8000, high_freq=9e4
)


pytestmark = pytest.mark.usefixtures("own_modules")


def folder_of(path: Path, features: FeatureSettings = NARROW, **facts: Any) -> Path:
    return small_model(
        path, labels=LABELS, pooling="cls", features=features, frames=96, **{"normalize": "clip", **facts}
    )


def sound_of(features: FeatureSettings, seconds: float) -> np.ndarray[Any, Any]:
    """A tone that fades over noise, with an offset, as recorders have it."""
    time = np.arange(round(seconds * features.sample_rate)) / features.sample_rate
    tone = np.sin(2 * np.pi * 0.1 * features.sample_rate * time) * np.exp(-time)
    return (0.05 + 0.2 * tone + np.random.default_rng(0).normal(0, 0.01, len(time))).astype(np.float32)


@pytest.mark.parametrize(("features", "normalize"), [(NARROW, "clip"), (BAT, "clip"), (BAT, "dataset")])
@pytest.mark.parametrize("length", [0.3, 1.0, 1.5])
def test_pipeline__gives_the_scores_of_predict_for_clips_of_any_length(
    tmp_path: Path, features: FeatureSettings, normalize: str, length: float
) -> None:
    from transformers import pipeline

    folder = folder_of(tmp_path / "model", features, normalize=normalize)
    whole = features.samples_of(96) / features.sample_rate
    sound = sound_of(features, length * whole)
    soundfile.write(tmp_path / "a.wav", sound, features.sample_rate, subtype="FLOAT")
    predict(folder, tmp_path / "a.wav", tmp_path / "out.csv", device="cpu", precision="float32")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["start"]) == 0]
    classify = pipeline("audio-classification", model=str(folder), device="cpu", trust_remote_code=True)
    found = classify({"raw": sound, "sampling_rate": features.sample_rate}, top_k=3)
    expected = {row["label"]: float(row["score"]) for row in rows}
    assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-4)
    assert max(expected.values()) - min(expected.values()) > 0.05  # scores that could differ


def test_feature_extractor__has_the_spectrograms_and_the_padding_of_training(tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor

    folder = folder_of(tmp_path / "model")
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    short, silent = sound_of(NARROW, 0.3), np.zeros(8000, np.float32)
    values = extractor([short, silent], sampling_rate=16_000, return_tensors="pt")["input_values"]
    log_mel = KaldiFbank(NARROW)(torch.from_numpy(short))
    assert values.shape == (2, 96, 32)
    expected = (log_mel - log_mel.mean()) / (2 * log_mel.std(correction=0))
    torch.testing.assert_close(values[0, : len(log_mel)], expected, atol=1e-4, rtol=0)
    assert values[0, len(log_mel) :].unique().tolist() == pytest.approx([(LOG_FLOOR + 6) / 6])
    assert values[1, : 1 + (8000 - 400) // 160].abs().max() < 1e-5  # silence is no noise
    with pytest.raises(ValueError, match="16000 Hz, not of 8000"):
        extractor(short, sampling_rate=8000)
    with pytest.raises(ValueError, match="one row of samples"):
        extractor(np.zeros((1, 2, 16_000)), sampling_rate=16_000)
    with pytest.raises(ValueError, match="399 samples are shorter"):
        extractor(short[:399], sampling_rate=16_000)


def test_feature_extractor__is_saved_again_with_its_code(tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor

    first = AutoFeatureExtractor.from_pretrained(folder_of(tmp_path / "model", BAT), trust_remote_code=True)
    first.save_pretrained(tmp_path / "again")
    second = AutoFeatureExtractor.from_pretrained(tmp_path / "again", trust_remote_code=True)
    sound = sound_of(BAT, 0.2)
    values = [each(sound, sampling_rate=192_000, return_tensors="np")["input_values"] for each in (first, second)]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("features", [NARROW, BAT])
def test_stock_extractor__refuses_instead_of_computing_something_else(
    tmp_path: Path, features: FeatureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import ASTFeatureExtractor, AutoFeatureExtractor, pipeline

    folder = folder_of(tmp_path / "model", features)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoFeatureExtractor.from_pretrained(folder)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("audio-classification", model=str(folder))
    stock = ASTFeatureExtractor.from_pretrained(folder)
    with pytest.raises(TypeError, match="NoneType"):
        stock(sound_of(features, 0.5), sampling_rate=features.sample_rate)


def test_save_model__writes_the_stock_extractor_where_it_computes_the_same_and_ours_for_librosa(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "stock", normalize="dataset")
    assert json.loads((folder / "preprocessor_config.json").read_text())["mean"] == -6
    assert not (folder / REMOTE_CODE).exists()
    folder = folder_of(tmp_path / "librosa", FeatureSettings(mel_bins=32, filter_bank="librosa"), normalize="dataset")
    assert json.loads((folder / "preprocessor_config.json").read_text())["filter_bank"] == "librosa"
    folder = folder_of(tmp_path / "own")
    card = (folder / "README.md").read_text()
    assert 'AutoFeatureExtractor.from_pretrained("MODEL", trust_remote_code=True)' in card
    assert "it takes the first 0.97 s" in " ".join(card.split())


def test_load_model__never_runs_code_from_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    harm = f"import pathlib\npathlib.Path({str(tmp_path / 'harm')!r}).touch()\n"
    (folder / REMOTE_CODE).write_text(harm)
    loaded = load_model(folder)
    assert (loaded.description.mean, loaded.description.normalize) == (-6, "clip")
    soundfile.write(tmp_path / "a.wav", sound_of(NARROW, 1.0), 16_000)
    predict(folder, tmp_path / "a.wav", tmp_path / "out.csv", device="cpu")
    convert(folder, tmp_path / "copy", to="hf")
    assert not (tmp_path / "harm").exists()
    assert (tmp_path / "copy" / REMOTE_CODE).read_text() != harm  # ours, not what lay there
