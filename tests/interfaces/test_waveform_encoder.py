from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from small_model import small_model
from tones import RATE, tone
from tymbal.errors import AudioError
from tymbal.inference.frontend import Scorer
from tymbal.inference.streaming import Window
from tymbal.interfaces import evar, hear, xares
from tymbal.interfaces.hoplite import HopliteModel, InferenceOutputs
from tymbal.models.folder import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("others") / "model")


@pytest.fixture
def audio() -> torch.Tensor:
    return torch.stack([torch.from_numpy(tone(label, seconds=6.25)) for label in ("low", "high")])


def test_xares__what_its_checker_looks_at(folder: Path):
    class MyEncoder(xares.TymbalEncoder):
        def __init__(self) -> None:
            super().__init__(folder)

    encoder = MyEncoder()
    assert (encoder.sampling_rate, encoder.output_dim) == (RATE, 32)
    assert encoder.hop_size_in_ms == pytest.approx(80)
    found = encoder(torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0)))
    assert found.ndim == 3
    assert found.shape == (2, round(50_000 / RATE / 0.08), 32)
    assert encoder(torch.zeros(4000)).shape[0] == 1


def test_evar__gives_frames_and_clips(folder: Path, audio: torch.Tensor):
    settings = evar.config(folder)
    assert settings["audio_repr"] == "ar_tymbal.AR_Tymbal"
    assert (settings["feature_d"], settings["sample_rate"], settings["n_mels"]) == (32, RATE, 16)
    assert (settings["n_fft"], settings["window_size"], settings["hop_size"]) == (256, 200, 80)
    assert (settings["f_min"], settings["f_max"], settings["mean"], settings["std"]) == (20.0, 4000.0, -6, 3)
    model = evar.AR_Tymbal(SimpleNamespace(**settings))
    model.precompute("cpu", DataLoader([]))
    frames = model.encode_frames(audio)
    assert frames.shape[:2] == (2, settings["feature_d"])
    torch.testing.assert_close(model(audio), frames.mean(-1))
    torch.testing.assert_close(model(audio), hear.get_scene_embeddings(audio, hear.load_model(str(folder))))


def test_hoplite__gives_windows(folder: Path, audio: torch.Tensor):
    model = HopliteModel(folder)
    assert (model.sample_rate, model.window_size_s) == (RATE, 0.335)
    outputs = model.embed(audio[0].numpy())
    assert isinstance(outputs, InferenceOutputs)
    assert outputs.embeddings.shape == (19, 1, 16)
    assert (outputs.logits, outputs.batched) == ({}, False)
    batch = model.batch_embed(audio.numpy())
    assert batch.embeddings.shape == (2, 19, 1, 16)
    assert batch.batched
    np.testing.assert_allclose(batch.embeddings[0], outputs.embeddings, atol=1e-6)
    with pytest.raises(AudioError, match=r"not \[10\]"):
        model.embed(np.zeros(10))


def test_hoplite__a_classifier_gives_logits_too(tmp_path: Path, audio: torch.Tensor):
    folder = small_model(tmp_path / "model", labels=("frog", "cicada"), pooling="rows", skip_padding=True)
    model = HopliteModel(folder)
    outputs = model.embed(audio[0].numpy())
    assert model.class_list == {"labels": ("frog", "cicada")}
    scorer = Scorer(load_model(folder))
    length = round(0.335 * RATE)
    sound = audio[0].numpy()
    windows = [Window(start, sound[start : start + length]) for start in range(0, len(sound), length)]
    logits = torch.from_numpy(outputs.logits["labels"])
    np.testing.assert_allclose(logits.softmax(1), scorer(windows, length=length), atol=1e-5)
    assert model.batch_embed(audio.numpy()).logits["labels"].shape == (2, 19, 2)


def test_hoplite__its_own_class_is_given_where_it_is_installed(
    folder: Path, audio: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    theirs = ModuleType("perch_hoplite.zoo.zoo_interface")
    theirs.InferenceOutputs = SimpleNamespace
    for name in ("perch_hoplite", "perch_hoplite.zoo"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, theirs.__name__, theirs)
    assert isinstance(HopliteModel(folder).embed(audio[0].numpy()), SimpleNamespace)
