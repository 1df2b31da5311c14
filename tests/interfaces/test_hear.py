"""The checks of hear-validator, written anew: it needs TensorFlow, and these models are small."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from small_model import small_model
from tymbal.errors import AudioError
from tymbal.features.kaldi import KaldiFbank
from tymbal.interfaces import hear
from tymbal.models.folder import load_model
from tymbal.settings import FeatureSettings

RATES = (16000, 22050, 32000, 44100, 48000)


@pytest.fixture(scope="module", params=[(8, 8), (16, 2)], ids=["patches", "frames"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = FeatureSettings(mel_bins=16)
    return small_model(
        tmp_path_factory.mktemp("hear") / "model", features=features, frames=96, patch=request.param
    )  # 0.975 s


def noise(sounds: int, seconds: float, rate: int = 16000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(round(seconds * 1000))
    return torch.rand(sounds, int(seconds * rate), generator=generator) * 2 - 1


def test_load_model__has_the_signature_and_the_sizes(folder: Path):
    assert next(iter(inspect.signature(hear.load_model).parameters.values())).default == ""
    model = hear.load_model(str(folder))
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in RATES
    assert isinstance(model.scene_embedding_size, int)
    assert isinstance(model.timestamp_embedding_size, int)


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0, 0.02, 0.975, 9.33])
def test_timestamps__are_regular_and_reach_the_end(folder: Path, seconds: float):
    model = hear.load_model(str(folder))
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(2, seconds), model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (2, timestamps.shape[1], model.timestamp_embedding_size)
    assert timestamps.shape[0] == 2
    assert torch.equal(timestamps[0], timestamps[1])
    if seconds < 0.5:
        return
    steps = timestamps[0].diff()
    assert (steps - steps.mean()).abs().max() < 1e-3  # ms
    hop = 1000 * model.hop_seconds
    assert steps.mean().item() == pytest.approx(hop)
    assert 0 < timestamps[0, 0] <= hop
    assert 1000 * seconds - 2 * hop <= timestamps[0, -1] <= 1000 * seconds
    assert torch.isfinite(embeddings).all()
    assert (embeddings[0] != embeddings[1]).any()


def test_timestamps__do_not_drift(folder: Path):
    model = hear.load_model(str(folder))
    _, timestamps = hear.get_timestamp_embeddings(noise(1, 100), model)
    count, hop = timestamps.shape[1], 1000 * model.hop_seconds
    assert timestamps[0, -1].item() == pytest.approx(timestamps[0, 0].item() + (count - 1) * hop, abs=0.05)


def test_scenes__have_one_embedding(folder: Path):
    model = hear.load_model(str(folder))
    scenes = hear.get_scene_embeddings(noise(4, 2.74), model)
    assert scenes.dtype == torch.float32
    assert scenes.shape == (4, model.scene_embedding_size)
    embeddings, _ = hear.get_timestamp_embeddings(noise(4, 2.74), model)
    torch.testing.assert_close(scenes, embeddings.mean(1))


def test_timestamps__embeddings_are_those_of_the_encoder(folder: Path):
    model = hear.load_model(str(folder), pooling="mean")
    audio = noise(1, 0.975)
    loaded = load_model(folder)
    spectrogram = KaldiFbank(loaded.description.features)(audio)
    with torch.no_grad():
        output = loaded.module(loaded.description.normalisation(spectrogram, torch.tensor([96])))
    expected = output.tokens[:, 2:].reshape(1, *output.grid, -1).mean(1)
    found, timestamps = hear.get_timestamp_embeddings(audio, model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # A patch of n frames of 10 ms has its middle at the middle of its frames, each 25 ms long.
    wide = loaded.description.encoder.patch[1]
    assert timestamps[0, :2].tolist() == pytest.approx([5 * (wide - 1) + 12.5, 5 * (wide - 1) + 12.5 + 10 * wide])


def test_timestamps__the_sound_is_where_its_timestamps_are(folder: Path):
    model = hear.load_model(str(folder))
    audio = 0.01 * noise(1, 3.0)
    loud = audio.clone()
    loud[:, 32000:33600] += noise(1, 0.1)  # at 2.0 to 2.1 s
    found, times = hear.get_timestamp_embeddings(loud, model)
    quiet, _ = hear.get_timestamp_embeddings(audio, model)
    change = (found - quiet).norm(dim=2)[0]
    assert times[0, change.argmax()].item() == pytest.approx(2050, abs=50 + 1000 * model.hop_seconds)


def test_load_model__without_a_model_says_that_it_knows_nothing(capsys: pytest.CaptureFixture[str]):
    model = hear.load_model()
    assert "random weights" in capsys.readouterr().err
    assert hear.get_scene_embeddings(noise(1, 0.5), model).shape == (1, model.scene_embedding_size)


@pytest.mark.parametrize("audio", [torch.zeros(100), torch.zeros(1, 100, dtype=torch.int16), torch.zeros(1, 0)])
def test_audio__of_another_shape_is_refused(folder: Path, audio: torch.Tensor):
    with pytest.raises(AudioError, match="sound must be floating point"):
        hear.get_scene_embeddings(audio, hear.load_model(str(folder)))
