from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from tones import FEATURES, FRAMES, tone_folder, tone_store
from tymbal import probe
from tymbal.errors import ModelError, SettingsError, StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import save_model
from tymbal.settings import FeatureSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("probe") / "model", FEATURES)


def saved(path: Path, features: FeatureSettings) -> Path:
    config = EncoderConfig(
        width=16, depth=1, heads=2, mels=features.mel_bins, frames=FRAMES, patch=(8, 8), stride=(8, 8)
    )
    torch.manual_seed(1)
    description = ModelDescription(encoder=config, features=features, mean=-6.0, std=3.0, padding=LOG_FLOOR)
    save_model(path, SpectrogramEncoder(config), description)
    return path


def test_probe__baseline_random_and_model_side_by_side(model: Path, tmp_path: Path) -> None:
    tone_store(tmp_path / "store")
    result = probe(model, tmp_path / "store", pooling=("rows", "mean"), device="cpu", precision="float32")
    assert [(row.features, row.pooling, row.reader, row.dimensions) for row in result.rows] == [
        ("baseline", "moments", "ridge", 48),
        ("baseline", "moments", "logistic", 48),
        ("baseline", "moments", "knn", 48),
        ("plain", "clip:4", "ridge", 80),
        ("plain", "clip:4", "logistic", 80),
        ("plain", "clip:4", "knn", 80),
        ("random", "rows", "ridge", 32),
        ("random", "rows", "logistic", 32),
        ("random", "rows", "knn", 32),
        ("random", "mean", "ridge", 16),
        ("random", "mean", "logistic", 16),
        ("random", "mean", "knn", 16),
        ("random+plain", "rows+clip:4", "ridge", 112),
        ("random+plain", "rows+clip:4", "logistic", 112),
        ("random+plain", "rows+clip:4", "knn", 112),
        ("model", "rows", "ridge", 32),
        ("model", "rows", "logistic", 32),
        ("model", "rows", "knn", 32),
        ("model", "mean", "ridge", 16),
        ("model", "mean", "logistic", 16),
        ("model", "mean", "knn", 16),
        ("model+plain", "rows+clip:4", "ridge", 112),
        ("model+plain", "rows+clip:4", "logistic", 112),
        ("model+plain", "rows+clip:4", "knn", 112),
    ]
    assert (result.train, result.validation) == (36, 12)
    # Three pitches: the plain spectrum tells them apart, and so do its random projections.
    assert result.figure("baseline") == 1.0
    assert result.figure("model") >= 0.9
    lines = result.summary().splitlines()
    assert lines[0] == "3 classes, learned from 36 clips, asked about 12"
    assert lines[3].split() == ["baseline", "moments", "48", "100.0", "100.0", "100.0"]


def test_probe__repeats_by_seed(model: Path, tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=8)
    first, again, other = (
        probe(model, tmp_path / "store", seed=seed, device="cpu", precision="float32").rows for seed in (3, 3, 4)
    )
    assert first == again
    assert [row.figures for row in first if row.features == "model"][1] == (
        [row.figures for row in other if row.features == "model"][1]
    )


def test_probe__writes_csv_and_json(model: Path, tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    result = probe(model, tmp_path / "store", tmp_path / "table.csv", device="cpu", random=False)
    again = probe(model, tmp_path / "store", tmp_path / "table.json", device="cpu", random=False)
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    known = json.loads((tmp_path / "table.json").read_text())
    assert [row["features"] for row in table] == [
        name for name in ("baseline", "plain", "model", "model", "model+plain") for _ in range(3)
    ]
    assert [float(row["accuracy"]) for row in table] == [row["accuracy"] for row in known["rows"]]
    assert known["rows"][0]["accuracy"] == result.figure("baseline")
    assert known["classes"] == ["high", "low", "middle"]
    plain = known["rows"][3]
    assert plain["pooling"] == "clip:4"
    assert list(plain["chosen_from"]) == [
        f"{values}:{name}" for values in ("raw", "clip") for name in ("moments", 1, 2, 4, 8, "mfcc")
    ]
    assert "chosen_from" not in table[3]
    assert list(known["rows"][9]["chosen_from"]) == ["grid:1", "grid:2", "grid:4", "grid:8"]
    assert "chosen_from" not in known["rows"][0]
    assert again.verdict is not None
    assert known["verdict"] == again.verdict.to_json()
    assert again.summary().splitlines()[-3] == known["verdict"]["text"]
    with pytest.raises(SettingsError, match=r"\.json or \.csv"):
        probe(model, tmp_path / "store", tmp_path / "table.txt")


def test_probe__several_labels_are_read_as_map(model: Path, tmp_path: Path) -> None:
    tone_store(tmp_path / "store", multilabel=True)
    result = probe(model, tmp_path / "store", device="cpu")
    assert result.multilabel
    assert result.figure("baseline") >= 0.9
    assert "mAP" in result.summary()


def test_probe__folder_is_prepared_as_the_model_needs_it(model: Path, tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "sound", clips=3)
    result = probe(model, folder, device="cpu")
    assert (result.train, result.validation) == (9, 9)
    assert result.figure("baseline") >= 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sound"]


def test_probe__class_only_in_validation_is_named(model: Path, tmp_path: Path) -> None:
    tone_store(tmp_path / "store", only_validation="middle")
    with pytest.raises(StoreError, match="no clip to learn from has the label that validation clips have: middle"):
        probe(model, tmp_path / "store")


def test_probe__other_spectrograms_are_refused(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6)
    other = saved(tmp_path / "other", FeatureSettings(sample_rate=16_000, mel_bins=16))
    with pytest.raises(ModelError, match="sample_rate: 16000 -> 8000"):
        probe(other, tmp_path / "store")
