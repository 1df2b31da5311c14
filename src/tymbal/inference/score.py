"""A classifier at work on windows of sound: waveforms in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.errors import ModelError
from tymbal.features.bank import filter_bank
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.inference.windows import Window
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import LoadedModel

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
        shortest: Fewest samples that can be analysed: one frame.

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
        self.shortest = 1 if description.features.is_centred else description.features.window_samples
        self._device, self._dtype = torch.device(device), dtype
        self._model = loaded.module.to(self._device).eval()
        self._fbank = filter_bank(description.features)

    @property
    def window_samples(self) -> int:
        """Samples of the clips that the model was trained on."""
        return self.description.features.samples_of(self.description.encoder.frames)

    def __call__(self, windows: Sequence[Window], *, length: int) -> NDArray[np.float32]:
        """Scores windows.

        Args:
            windows: Windows of at most `length` samples; shorter ones are padded as the model has learned it.
            length: Samples of a full window.

        Returns:
            Probabilities [windows, labels]: they sum to 1 where a clip has one label, each stands for itself where it
            may have several.
        """
        features = self.description.features
        least = self.description.encoder.patch[1]
        spectrograms = torch.full((len(windows), max(features.frames_of(length), least), features.mel_bins), LOG_FLOOR)
        frames = torch.empty(len(windows), dtype=torch.int64)
        for number, window in enumerate(windows):
            known = self._fbank(torch.from_numpy(window.samples))
            spectrograms[number, : len(known)] = known
            frames[number] = len(known)
        description = self.description
        frames = frames.to(self._device)
        x = description.normalisation(spectrograms.to(self._device), frames)
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=self._dtype, enabled=bool(self._dtype)):
            logits = self._model(x, frames=frames)
        scores = logits.float().sigmoid() if description.multilabel else logits.float().softmax(dim=1)
        return cast(NDArray[np.float32], scores.cpu().numpy())
