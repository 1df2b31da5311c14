"""A frozen encoder at work on windows of sound: waveforms in, embeddings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.errors import ModelError
from tymbal.inference.encode import Encoded, check_layer, column_seconds, encode
from tymbal.inference.front import FrontEnd
from tymbal.inference.windows import Window
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import LoadedModel
from tymbal.models.pooling import pooled_width
from tymbal.models.weights import fingerprint

__all__ = ["Embedder", "embedder_like"]


class Embedder:
    """Embeddings of windows of sound, or of spectrograms.

    Args:
        loaded: A model; a classifier's encoder is taken.
        pooling: `mean`, `rows` or `cls`.
        layer: Number of blocks to go through; `None` is all of them and the final norm.
        skip_padding: Pool over the patches that hold sound.
        device: Where to compute.
        dtype: Arithmetic, bfloat16 or float16; None is float32.

    Attributes:
        description: The model.
        dimensions: Length of an embedding.
        front: From windows to spectrograms.

    Raises:
        SettingsError: There is no such layer.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        pooling: str = "mean",
        layer: int | None = None,
        skip_padding: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        module = loaded.module
        encoder = module.encoder if isinstance(module, SpectrogramClassifier) else module
        check_layer(encoder, layer)
        self.description = loaded.description
        self.dimensions = pooled_width(pooling, encoder.config)
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device).eval()
        self._pooling, self._layer, self._skip, self._dtype = pooling, layer, skip_padding, dtype
        self.front = FrontEnd(loaded.description, self.device)

    def record(self) -> dict[str, Any]:
        """What decides its embeddings: the weights' fingerprint and how they are pooled."""
        return {
            "model": fingerprint(self.encoder),
            "pooling": self._pooling,
            "layer": self._layer,
            "skip_padding": self._skip,
        }

    def windows(self, windows: Sequence[Window], *, length: int) -> NDArray[np.float32]:
        """One embedding a window of at most `length` samples, [windows, dimensions]."""
        return self.clips(*self.front(windows, length=length))

    def window_seconds(
        self, windows: Sequence[Window], *, length: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """One embedding a second of each window: as `seconds`."""
        return self.seconds(*self.front(windows, length=length))

    def clips(self, x: Tensor, frames: Tensor) -> NDArray[np.float32]:
        """One embedding a spectrogram, [batch, dimensions].

        Args:
            x: Normalised, on the device, [batch, frames, mels].
            frames: Frames of real sound, int64 [batch].
        """
        return cast(NDArray[np.float32], self.encode(x, frames).pooled(self._pooling).cpu().numpy())

    def seconds(self, x: Tensor, frames: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """One embedding a second, [batch, seconds, dimensions], and whether there is sound, [batch, seconds]."""
        encoded = self.encode(x, frames)
        centres = column_seconds(self.encoder.config, self.description.features, encoded.grid[1])
        values, real = encoded.seconds(self._pooling, centres.to(self.device, torch.float32))
        return values.cpu().numpy(), real.cpu().numpy()

    def encode(self, x: Tensor, frames: Tensor) -> Encoded:
        """Tokens of normalised spectrograms, for other ways of pooling."""
        return encode(self.encoder, x, frames, layer=self._layer, skip_padding=self._skip, dtype=self._dtype)


def embedder_like(
    loaded: LoadedModel,
    record: Mapping[str, Any],
    *,
    index: Path,
    source: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Embedder:
    """A model at work as it was when a file of embeddings was written.

    Args:
        loaded: The model.
        record: What decided the embeddings; see `tymbal.inference.embeddings.read_record`.
        index: The file, for messages.
        source: The model's path that the user gave, for messages.
        device: Where to compute.
        dtype: Arithmetic; None is float32.

    Raises:
        ModelError: The embeddings are another model's.
    """
    how = {name: record[name] for name in ("pooling", "layer", "skip_padding")}
    embedder = Embedder(loaded, **how, device=device, dtype=dtype)
    if record["model"] != embedder.record()["model"]:
        raise ModelError(
            f"the embeddings in {index} are another model's",
            path=source,
            advice="Give the model that they were made with, or embed the sounds again.",
        )
    return embedder
