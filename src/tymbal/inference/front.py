"""What stands before every model: windows of sound to normalised spectrograms of one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tymbal.features.bank import filter_bank
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.inference.windows import Window
from tymbal.models.description import ModelDescription

__all__ = ["FrontEnd"]


class FrontEnd:
    """Windows of sound to what a model takes.

    Args:
        description: The model.
        device: Where it computes.
    """

    def __init__(self, description: ModelDescription, device: torch.device | str = "cpu") -> None:
        self._description, self._device = description, torch.device(device)
        self._fbank = filter_bank(description.features)

    def __call__(self, windows: Sequence[Window], *, length: int) -> tuple[Tensor, Tensor]:
        """Computes normalised spectrograms.

        Args:
            windows: Windows of at most `length` samples and at least one frame; shorter ones are padded as the model
                has learned it.
            length: Samples of a full window.

        Returns:
            float32 [windows, frames, mels] on the device, and the frames of each that hold sound, int64 [windows].
        """
        features = self._description.features
        count = max(features.frames_of(length), self._description.encoder.patch[1])
        spectrograms = torch.full((len(windows), count, features.mel_bins), LOG_FLOOR)
        frames = torch.empty(len(windows), dtype=torch.int64)
        for number, window in enumerate(windows):
            known = self._fbank(torch.from_numpy(window.samples))
            spectrograms[number, : len(known)] = known
            frames[number] = len(known)
        frames = frames.to(self._device)
        return self._description.normalisation(spectrograms.to(self._device), frames), frames
