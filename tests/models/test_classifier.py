"""The classifier: shapes, gradients, and a head that learns."""

from __future__ import annotations

import pytest
import torch

from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder

CONFIG = EncoderConfig(width=16, depth=1, heads=2, mels=32, frames=32)


@pytest.mark.parametrize("pooling", ["mean", "rows", "cls", "all", "attention"])
def test_classifier__gives_every_trainable_parameter_a_gradient(pooling):
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 3, pooling=pooling)
    logits = classifier(torch.randn(2, 50, 32))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    without = [name for name, p in classifier.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DistributedDataParallel stops at a parameter that has none


def test_classifier__head_norm_has_the_encoders_epsilon_unless_told():
    encoder = SpectrogramEncoder(CONFIG)
    assert SpectrogramClassifier(encoder, 2).head_norm.eps == 1e-6
    assert SpectrogramClassifier(encoder, 2, head_eps=1e-5).head_norm.eps == 1e-5


def test_classifier__tells_high_from_low():
    torch.manual_seed(0)
    spectrogram = 0.1 * torch.randn(8, 32, 32)
    spectrogram[:4, :, :16] += 1
    spectrogram[4:, :, 16:] += 1
    labels = torch.arange(8) // 4
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling="mean")
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(classifier(spectrogram), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert classifier(spectrogram).argmax(1).equal(labels)


@pytest.mark.parametrize("pooling", ["mean", "rows", "cls", "all", "attention"])
def test_classifier__pools_over_padding_or_not(pooling):
    spectrogram, frames = torch.randn(2, 64, 32), torch.tensor([20, 64])
    for skip in (True, False):
        torch.manual_seed(0)
        classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 3, pooling=pooling, skip_padding=skip).eval()
        without, told = classifier(spectrogram), classifier(spectrogram, frames=frames)
        assert torch.allclose(told[1], without[1], atol=1e-6)
        assert torch.allclose(told[0], without[0], atol=1e-6) == (not skip or pooling == "cls")
