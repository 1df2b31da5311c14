from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from small_model import small_model
from tones import PITCHES, RATE, tone
from tymbal.errors import DeviceError, ModelError
from tymbal.inference.frontend import FrontEnd, probabilities, ready_model
from tymbal.inference.streaming import Window
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.settings import EmbedSettings

CPU = EmbedSettings(device="cpu", precision="float32")
LENGTH = round(0.335 * RATE)


def windows() -> list[Window]:
    return [Window(0, tone("low")), Window(LENGTH, tone("high", seconds=0.2))]


def test_front_end__pads_a_short_window_as_the_model_knows_it(tmp_path: Path) -> None:
    description = ready_model(small_model(tmp_path / "model"), CPU).description
    x, frames = FrontEnd(description)(windows(), length=LENGTH)
    assert x.shape == (2, 32, 16)
    assert frames.tolist() == [32, 18]
    padding = (description.padding - description.mean) / (2 * description.std)
    assert torch.allclose(x[1, 18:], torch.tensor(padding))


def test_ready_model__scores_and_embeds_by_the_same_weights(tmp_path: Path) -> None:
    ready = ready_model(small_model(tmp_path / "model", labels=tuple(PITCHES), pooling="mean"), CPU)
    scores = ready.scorer()(windows(), length=LENGTH)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    embedder = ready.embedder(pooling="rows", layer=1)
    assert embedder.windows(windows(), length=LENGTH).shape == (2, 32)
    again = ready.embedder_like(embedder.record(), index=tmp_path)
    np.testing.assert_array_equal(again.windows(windows(), length=LENGTH), embedder.windows(windows(), length=LENGTH))
    frozen = ready.frozen_encoder(batch_size=7)
    assert frozen.encoder is ready.loaded.module.encoder
    untrained = SpectrogramEncoder(frozen.encoder.config)
    assert ready.frozen_encoder(untrained).encoder is untrained


def test_ready_model__what_it_cannot_do_is_said(tmp_path: Path) -> None:
    path = small_model(tmp_path / "model")
    ready = ready_model(path, CPU)
    with pytest.raises(ModelError, match=r"model: .*knows no labels yet"):
        ready.scorer()
    record = ready_model(small_model(tmp_path / "other", seed=1), CPU).embedder().record()
    with pytest.raises(ModelError, match=r"the embeddings in .* are another model's"):
        ready.embedder_like(record, index=tmp_path / "index.parquet")
    if not torch.backends.mps.is_available():
        with pytest.raises(DeviceError, match="mps"):
            ready_model(path, EmbedSettings(device="mps"))


@pytest.mark.parametrize("multilabel", [False, True])
def test_probabilities__of_logits(multilabel: bool) -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, -2.0]], dtype=torch.bfloat16)
    found = probabilities(logits, multilabel=multilabel)
    assert found.dtype == np.float32
    high = 1 / (1 + np.exp(-2.0 if multilabel else -4.0))
    np.testing.assert_allclose(found, [[0.5, 0.5], [high, 1 - high]], rtol=1e-5)
