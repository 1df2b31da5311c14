"""Model folders with random weights, for tests that ask how a model is used and not what it knows."""

from __future__ import annotations

from pathlib import Path

import torch

from tones import FEATURES, FRAMES
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import save_model
from tymbal.settings import FeatureSettings


def small_model(
    folder: Path,
    *,
    labels: tuple[str, ...] = (),
    pooling: str | None = None,
    features: FeatureSettings = FEATURES,
    frames: int = FRAMES,
    patch: tuple[int, int] = (8, 8),
    seed: int = 0,
    **facts: object,
) -> Path:
    """Saves an encoder, or a classifier where there are labels; its embeddings differ from clip to clip."""
    torch.manual_seed(seed)
    config = EncoderConfig(width=16, depth=2, heads=2, mels=features.mel_bins, frames=frames, patch=patch, stride=patch)
    module: SpectrogramEncoder | SpectrogramClassifier = SpectrogramEncoder(config)
    description = ModelDescription(
        encoder=config, features=features, mean=-6, std=3, padding=LOG_FLOOR, labels=labels, pooling=pooling, **facts
    )
    if labels:
        module = SpectrogramClassifier(
            module,
            len(labels),
            pooling=pooling or "mean",
            skip_padding=description.skip_padding,
            standardise=description.standardise,
        )
        if description.standardise:
            module.head_norm.begin(torch.randn(20, len(module.head_norm.mean)) * 0.3 + 0.1)
    with torch.no_grad():
        for value in module.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    save_model(folder, module, description)
    return folder
