"""Classifiers that transformers' own classes cannot hold: the code in their folder scores as `predict` does."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from small_model import small_model
from tymbal import predict
from tymbal.models.classifier import SCRIPT_POOLING, ScriptClassifier, SpectrogramClassifier
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.folder import load_model, save_model
from tymbal.settings import FeatureSettings

LABELS = ("frog", "cicada", "wind")
KALDI = FeatureSettings(mel_bins=32)
LIBROSA = FeatureSettings(mel_bins=32, filter_bank="librosa", sample_rate=22_050, low_freq=0.0)


pytestmark = pytest.mark.usefixtures("own_modules")


def folder_of(path: Path, pooling: str = "mean", *, shape: dict[str, Any] | None = None, **facts: Any) -> Path:
    """A classifier with random weights whose scores differ from clip to clip."""
    folder = small_model(path, labels=LABELS, pooling="cls", features=KALDI, frames=96, normalize="clip")
    described = load_model(folder).description
    encoder = SpectrogramEncoder(replace(described.encoder, **(shape or {})))
    if pooling == SCRIPT_POOLING:
        module: SpectrogramClassifier = ScriptClassifier(encoder, 3)
    else:
        module = SpectrogramClassifier(encoder, 3, pooling=pooling, **facts)
    with torch.no_grad():
        torch.manual_seed(1)
        for value in module.parameters():
            value.normal_(std=0.3)
        if facts.get("standardise"):
            module.head_norm.begin(torch.randn(20, len(module.head_norm.mean)) * 0.3 + 0.1)
    save_model(path, module, replace(described, encoder=encoder.config, pooling=pooling, **facts))
    return path


CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean without padding": {"skip_padding": True},
    "all": {"pooling": "all", "skip_padding": True},
    "rows": {"pooling": "rows", "head_eps": 1e-3},
    "grid2": {"pooling": "grid2", "skip_padding": True, "standardise": True},
    "grid8": {"pooling": "grid8", "skip_padding": True},
    "attention": {"pooling": "attention", "skip_padding": True},
    SCRIPT_POOLING: {"pooling": SCRIPT_POOLING},
    "patches as high as the spectrogram": {"shape": {"patch": (32, 4), "stride": (32, 4)}, "pooling": "cls"},
    "patches that overlap": {"shape": {"patch": (8, 8), "stride": (6, 4)}, "pooling": "all"},
    "no attention to padding": {"shape": {"attend_to_padding": False}, "pooling": "grid4", "skip_padding": True},
    "a stem": {"shape": {"stem": 4}, "pooling": "cls"},
}


@pytest.mark.parametrize("case", CASES)
def test_auto_model__gives_our_logits_for_clips_of_any_length(case: str, tmp_path: Path) -> None:
    from transformers import AutoModelForAudioClassification

    folder = folder_of(tmp_path / "model", **CASES[case])
    ours = load_model(folder).module
    theirs = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    spectrograms, frames = torch.randn(3, 96, 32), torch.tensor([96, 50, 9])
    mask = (torch.arange(96) < frames[:, None]).long()
    with torch.no_grad():
        expected = ours(spectrograms, frames=frames)
        output = theirs(spectrograms, attention_mask=mask, labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(output.logits, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1, 2])))
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert expected.std(0).min() > 1e-3  # logits that could differ
    with pytest.raises(ValueError, match=r"takes \(96, 32\) frames and mel bins, not \(80, 32\)"):
        theirs(spectrograms[:, :80])


@pytest.mark.parametrize("features", [KALDI, LIBROSA], ids=["kaldi", "librosa"])
@pytest.mark.parametrize(("normalize", "multilabel"), [("clip", False), ("dataset", True)])
@pytest.mark.parametrize("length", [0.3, 1.0])
def test_pipeline__gives_the_scores_of_predict_for_every_filter_bank(
    features: FeatureSettings, normalize: str, multilabel: bool, length: float, tmp_path: Path
) -> None:
    from transformers import pipeline

    folder = small_model(
        tmp_path / "model",
        labels=LABELS,
        pooling="grid4",
        features=features,
        frames=96,
        normalize=normalize,
        multilabel=multilabel,
        skip_padding=True,
        standardise=True,
    )
    count = round(length * features.samples_of(96))
    time = np.arange(count) / features.sample_rate
    sound = (0.2 * np.sin(2 * np.pi * 900 * time) * np.exp(-time)).astype(np.float32)
    sound += np.random.default_rng(0).normal(0.05, 0.01, count).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, features.sample_rate, subtype="FLOAT")
    predict(folder, tmp_path / "a.wav", tmp_path / "out.csv", device="cpu", precision="float32")
    with (tmp_path / "out.csv").open(newline="") as file:
        expected = {row["label"]: float(row["score"]) for row in csv.DictReader(file) if float(row["start"]) == 0}
    classify = pipeline("audio-classification", model=str(folder), device="cpu", trust_remote_code=True)
    scores = classify({"raw": sound, "sampling_rate": features.sample_rate}, top_k=3)
    assert {one["label"]: one["score"] for one in scores} == pytest.approx(expected, abs=2e-4)


def test_auto_model__of_an_encoder_gives_its_tokens_and_saves_what_tymbal_reads(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = small_model(tmp_path / "model", features=KALDI, frames=96, patch=(32, 4))
    theirs = AutoModel.from_pretrained(folder, trust_remote_code=True)
    spectrograms = torch.randn(2, 96, 32)
    ours = load_model(folder).module
    with torch.no_grad():
        torch.testing.assert_close(theirs(spectrograms).last_hidden_state, ours(spectrograms).tokens)
    theirs.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again").module
    assert all(value.equal(ours.state_dict()[name]) for name, value in again.state_dict().items())


def test_folder__needs_trust_and_says_how_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForAudioClassification

    folder = folder_of(tmp_path / "model", "rows")
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForAudioClassification.from_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert 'AutoModelForAudioClassification.from_pretrained("MODEL", trust_remote_code=True)' in card
    assert "its classifier pools by rows" in card
    assert json.loads((folder / "preprocessor_config.json").read_text())["return_attention_mask"] is True
    stock = small_model(tmp_path / "stock", labels=LABELS, pooling="cls", features=KALDI, frames=96)
    assert not (stock / "modeling_tymbal.py").exists()
