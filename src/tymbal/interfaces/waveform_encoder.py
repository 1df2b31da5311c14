"""The module that the interfaces share: it embeds waveforms of any length along time.

Sound is cut into pieces of the length that the model was trained on. A piece starts a whole number of columns of
patches behind the one before, so that the columns of all pieces together are regular, whatever the length.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tymbal.errors import AudioError
from tymbal.features.bank import filter_bank
from tymbal.inference.encoding import Encoded, check_layer, column_seconds, encode
from tymbal.models.classifier import SpectrogramClassifier, pooled_width
from tymbal.models.folder import LoadedModel, load_model

__all__ = ["Columns", "WaveformEncoder"]

_AT_ONCE = 32  # pieces


class Columns(NamedTuple):
    """Embeddings along time.

    Attributes:
        values: float32 [batch, columns, dimensions].
        seconds: The middle of each column, [columns].
    """

    values: Tensor
    seconds: Tensor


class WaveformEncoder(nn.Module):
    """Waveforms to embeddings.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint; or one that is loaded.
        pooling: How rows of patches are pooled: `mean`, or `rows`, side by side.
        layer: Number of blocks to go through; `None` is all of them and the final norm.

    Attributes:
        loaded: The model.
        encoder: Its encoder, the part that moves to a device.
        dimensions: Length of an embedding.
        sample_rate: Rate of the sound that it takes, in Hz.
        hop_seconds: From one column to the next.
    """

    def __init__(self, model: str | Path | LoadedModel, *, pooling: str = "rows", layer: int | None = None) -> None:
        super().__init__()
        self.loaded = model if isinstance(model, LoadedModel) else load_model(model)
        module = self.loaded.module
        self.encoder = module.encoder if isinstance(module, SpectrogramClassifier) else module
        check_layer(self.encoder, layer)
        self._pooling, self._layer = pooling, layer
        description = self.loaded.description
        features, config = description.features, self.encoder.config
        self.dimensions = pooled_width(pooling, config)
        self.sample_rate = features.sample_rate
        self._hop = config.stride[1] * features.shift_samples
        self.hop_seconds = self._hop / features.sample_rate
        self._columns = config.grid[1]
        self._piece = features.samples_of((self._columns - 1) * config.stride[1] + config.patch[1])
        self._fbank = filter_bank(features)
        self.eval()

    def columns(self, audio: Tensor) -> Columns:
        """Embeds each column of patches whose middle lies in the sound; the first one always.

        Args:
            audio: Samples from -1 to 1, floating point, [batch, samples].

        Raises:
            AudioError: The sound is not of that shape.
        """
        pieces, frames, count = self._pieces(audio)
        parts = [
            self._encode(pieces[start : start + _AT_ONCE], frames[start : start + _AT_ONCE]).columns(self._pooling)
            for start in range(0, len(pieces), _AT_ONCE)
        ]
        values = torch.cat(parts).unflatten(0, (len(audio), -1)).flatten(1, 2)  # type: ignore[no-untyped-call]
        seconds = column_seconds(self.encoder.config, self.loaded.description.features, values.shape[1])
        inside = max(1, int((seconds <= count / self.sample_rate).sum()))
        return Columns(values[:, :inside], seconds[:inside].to(audio.device))

    def scene(self, audio: Tensor) -> Tensor:
        """One embedding a sound, the mean over its columns: float32 [batch, dimensions]."""
        return self.columns(audio).values.mean(1)

    def _encode(self, pieces: Tensor, frames: Tensor) -> Encoded:
        device = self.encoder.cls_token.device
        x = self.loaded.description.normalisation(self._fbank(pieces.to(device)), frames.to(device))
        return encode(self.encoder, x, frames.to(device), layer=self._layer)

    def _pieces(self, audio: Tensor) -> tuple[Tensor, Tensor, int]:
        """Pieces [batch x pieces, samples], the frames of each that hold sound, and the samples of the whole."""
        if audio.ndim != 2 or not audio.is_floating_point() or not audio.shape[1]:
            raise AudioError(
                f"sound must be floating point, [batch, samples], not {str(audio.dtype).removeprefix('torch.')} "
                f"{list(audio.shape)}",
                advice="Mix channels down first; divide 16-bit samples by 32768.",
            )
        features = self.loaded.description.features
        count = audio.shape[1]
        step = self._columns * self._hop
        shortest = features.samples_of(1)
        number = 1 + max(0, count - shortest) // step
        length = (number - 1) * step + self._piece
        padded = nn.functional.pad(audio.float(), (0, max(0, length - count)))
        pieces = padded.unfold(1, self._piece, step).flatten(0, 1)
        remaining = [min(max(count - step * place, shortest), self._piece) for place in range(number)]
        frames = torch.tensor([features.frames_of(samples) for samples in remaining])
        return pieces, frames.repeat(len(audio)), count
