from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from small_model import small_model
from tones import FEATURES, FRAMES, RATE, tone
from tymbal import convert
from tymbal.errors import ModelError, SettingsError
from tymbal.features.kaldi import ConvolutionFbank
from tymbal.inference.frontend import Embedder, Scorer
from tymbal.inference.streaming import Window
from tymbal.models import onnx
from tymbal.models.folder import load_model

LENGTH = FEATURES.samples_of(FRAMES)


def sounds(count: int) -> np.ndarray:
    labels = ("low", "high", "middle")
    return np.stack([tone(labels[i % 3], seconds=LENGTH / RATE, seed=i) for i in range(count)])


def windows(batch: np.ndarray) -> list[Window]:
    return [Window(0, sound) for sound in batch]


@pytest.mark.parametrize(
    "facts",
    [
        {"pooling": "rows", "skip_padding": True, "normalize": "clip"},
        {"pooling": "cls", "multilabel": True, "patch": (16, 2)},
        {"pooling": "grid4", "standardise": True, "skip_padding": True, "normalize": "clip"},
    ],
)
def test_convert__a_classifier_gives_the_scores_of_predict(tmp_path: Path, facts: dict[str, object]):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = small_model(tmp_path / "model", labels=("frog", "cicada", "Grünspecht"), **facts)
    result = convert(folder, tmp_path / "model.onnx")
    assert f"float32 [batch, {LENGTH}] (0.335 s at 8,000 Hz), becomes scores" in result.summary()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    scorer = Scorer(load_model(folder))
    for count in (1, 5):
        batch = sounds(count)
        (found,) = session.run(["scores"], {"waveform": batch})
        np.testing.assert_allclose(found, scorer(windows(batch), length=LENGTH), atol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == ["frog", "cicada", "Grünspecht"]
    assert (told["sample_rate"], told["samples"], told["multilabel"]) == (
        "8000",
        str(LENGTH),
        json.dumps("multilabel" in facts),
    )


def test_convert__an_encoder_gives_embeddings(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = small_model(tmp_path / "model")
    convert(folder, tmp_path / "model.onnx", pooling="cls")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    batch = sounds(3)
    (found,) = session.run(["embedding"], {"waveform": batch})
    expected = Embedder(load_model(folder), pooling="cls").windows(windows(batch), length=LENGTH)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # A file that computes something else does not get its name.
    other = onnx.WaveformModel(
        load_model(small_model(tmp_path / "other", seed=1)), ConvolutionFbank(FEATURES), pooling="cls"
    )
    with pytest.raises(ModelError, match=r"onnxruntime gives embedding that are \d.* away"):
        onnx._compare(tmp_path / "model.onnx", other, "embedding")


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("model", "onnx", "--to onnx writes is one file, OUTPUT.onnx"),
        ("model.onnx", "hf", "--to hf writes is a folder, without .onnx"),
        ("model.onnx", "ssast", "--to ssast writes is one file, OUTPUT.pth"),
    ],
)
def test_convert__endings_that_contradict(tmp_path: Path, name: str, to: str, message: str):
    with pytest.raises(SettingsError, match=message):
        convert(small_model(tmp_path / "folder"), tmp_path / name, to=to)


def test_convert__without_onnx_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = small_model(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SettingsError, match=r"needs onnxscript.*\n.*pip install 'tymbal\[onnx\]'"):
        convert(folder, tmp_path / "model.onnx")
