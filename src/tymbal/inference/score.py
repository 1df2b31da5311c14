"""A classifier at work on windows of sound: waveforms in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.errors import ModelError
from tymbal.inference.front import FrontEnd
from tymbal.inference.windows import Window
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import LoadedModel
from tymbal.models.weights import fingerprint

__all__ = ["Scorer"]


class Scorer:
    """Scores of labels for windows of sound.

    Args:
        loaded: A model with a classifier.
        device: Where to compute.
        dtype: Arithmetic, bfloat16 or float16; None is float32.
        source: The path that the user gave, for messages.

    Attributes:
        labels: Names of the labels, in the order of the scores.
        sample_rate: Rate of the sound that it takes, in Hz.
        fingerprint: By which the weights are known again.

    Raises:
        ModelError: The model has no classifier.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        source: str | None = None,
    ) -> None:
        description = loaded.description
        if not isinstance(loaded.module, SpectrogramClassifier) or not description.labels:
            raise ModelError(
                "this model is pretrained and knows no labels yet",
                path=source,
                advice="Train a classifier from it first: tymbal finetune LABELLED_FOLDER -o classifier --from MODEL",
            )
        self.description = description
        self.labels = description.labels
        self.sample_rate = description.features.sample_rate
        self.fingerprint = fingerprint(loaded.module)
        self._device, self._dtype = torch.device(device), dtype
        self._model = loaded.module.to(self._device).eval()
        self._front = FrontEnd(description, self._device)

    @property
    def band(self) -> tuple[float, float]:
        """Lowest and highest frequency that the model hears, in Hz."""
        features = self.description.features
        return features.low_freq, features.high_freq or features.sample_rate / 2

    def __call__(self, windows: Sequence[Window], *, length: int) -> NDArray[np.float32]:
        """Scores windows.

        Args:
            windows: Windows of at most `length` samples; shorter ones are padded as the model has learned it.
            length: Samples of a full window.

        Returns:
            Probabilities [windows, labels]: they sum to 1 where a clip has one label, each stands for itself where it
            may have several.
        """
        x, frames = self._front(windows, length=length)
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=self._dtype, enabled=bool(self._dtype)):
            logits = self._model(x, frames=frames)
        scores = logits.float().sigmoid() if self.description.multilabel else logits.float().softmax(dim=1)
        return cast(NDArray[np.float32], scores.cpu().numpy())
