"""Turns windows of sound into normalised spectrograms, and these into scores or embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.compute.device import choose_device, choose_precision
from tymbal.compute.int8 import LARGEST_DIFFERENCE, as_int8, exactly
from tymbal.errors import ModelError
from tymbal.features.bank import filter_bank
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.features.normalisation import loudest
from tymbal.inference.encoding import Encoded, FrozenEncoder, check_layer, column_seconds, encode
from tymbal.inference.streaming import Window
from tymbal.models.classifier import SpectrogramClassifier, pooled_width
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.folder import LoadedModel, load_model
from tymbal.models.weights import fingerprint
from tymbal.progress import counted, tell

__all__ = ["Embedder", "FrontEnd", "ReadyModel", "Scorer", "probabilities", "ready_model"]


_COMPARED = 8
"""Windows that are scored in float32, too, where all others are in 8 bits."""


class FrontEnd:
    """Windows of sound to what a model takes.

    Args:
        description: The model.
        device: The device that it computes on.
    """

    def __init__(self, description: ModelDescription, device: torch.device | str = "cpu") -> None:
        self._description, self._device = description, torch.device(device)
        self._fbank = filter_bank(description.features)

    def __call__(self, windows: Sequence[Window], *, length: int) -> tuple[Tensor, Tensor]:
        """Computes normalised spectrograms; see `spectrograms`."""
        spectrograms, frames = self.spectrograms(windows, length=length)
        return self._description.normalisation(spectrograms, frames), frames

    def spectrograms(self, windows: Sequence[Window], *, length: int) -> tuple[Tensor, Tensor]:
        """Computes spectrograms as they are.

        Args:
            windows: Windows of at most `length` samples and at least one frame; shorter ones are padded as the model
                has learned it.
            length: Samples of a full window.

        Returns:
            Log-mel, float32 [windows, frames, mels] on the device, and the frames of each that hold sound, int64
            [windows].
        """
        features = self._description.features
        count = max(features.frames_of(length), self._description.encoder.patch[1])
        spectrograms = torch.full((len(windows), count, features.mel_bins), LOG_FLOOR)
        frames = torch.empty(len(windows), dtype=torch.int64)
        for number, window in enumerate(windows):
            known = self._fbank(torch.from_numpy(window.samples))
            spectrograms[number, : len(known)] = known
            frames[number] = len(known)
        return spectrograms.to(self._device), frames.to(self._device)


class Scorer:
    """Scores of labels for windows of sound.

    Args:
        loaded: A model with a classifier.
        device: The device to compute on.
        dtype: Arithmetic, bfloat16 or float16; None is float32.
        source: The path that the user gave, for messages.
        reject: Windows that are so many dB quieter than the quietest clips that it has learned from have no label. None
            is that all have one, as where these are not known.
        rounded: Whether it computes in 8 bits: the first windows are then scored in float32, too, and how far the
            scores differ is said.

    Attributes:
        labels: Names of the labels, in the order of the scores.
        floor: The largest log-mel value of a window without a label; None is that all have one.
        sample_rate: Rate of the sound that it takes, in Hz.
        fingerprint: Hash of the weights.

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
        reject: float | None = None,
        rounded: bool = False,
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
        self.floor = None
        if reject is not None and description.level is not None:
            self.floor = description.level - reject * math.log(10) / 10
        self.fingerprint = fingerprint(loaded.module)
        self._device, self._dtype = torch.device(device), dtype
        self._model = loaded.module.to(self._device).eval()
        self._unchecked = rounded
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
            Probabilities [windows, labels]: they sum to 1 where a clip has one label, each is independent where it
            may have several. Windows that are too quiet for a label have -1 for all.
        """
        spectrograms, frames = self._front.spectrograms(windows, length=length)
        x = self.description.normalisation(spectrograms, frames)
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=self._dtype, enabled=bool(self._dtype)):
            logits = self._model(x, frames=frames)
        scores = probabilities(logits, multilabel=self.description.multilabel)
        if self._unchecked:
            self._unchecked = False
            self._compare(scores[:_COMPARED], x[:_COMPARED], frames[:_COMPARED])
        if self.floor is not None:
            scores[(loudest(spectrograms, frames) < self.floor).cpu().numpy()] = -1.0
        return scores

    def _compare(self, scores: NDArray[np.float32], x: Tensor, frames: Tensor) -> None:
        """Says how far scores [windows, labels] in 8 bits are from those in float32."""
        with torch.inference_mode(), exactly(self._model):
            exact = probabilities(self._model(x, frames=frames), multilabel=self.description.multilabel)
        difference = float(np.abs(scores - exact).max(initial=0.0))
        said = f"8 bits: scores of the first {counted(len(scores), 'window')} differ by up to {difference:.4f}"
        if difference > LARGEST_DIFFERENCE:
            said += f" from float32, more than {LARGEST_DIFFERENCE:g}: leave --precision int8 out where that matters"
        tell(said, warning=difference > LARGEST_DIFFERENCE)


def probabilities(logits: Tensor, *, multilabel: bool) -> NDArray[np.float32]:
    """Probabilities from logits [clips, labels], which sum to 1 over the labels where a clip has one."""
    scores = logits.float().sigmoid() if multilabel else logits.float().softmax(dim=1)
    return cast(NDArray[np.float32], scores.cpu().numpy())


class Embedder:
    """Embeddings of windows of sound, or of spectrograms.

    Args:
        loaded: A model; a classifier's encoder is taken.
        pooling: See `tymbal.models.classifier.pool`; `grid` is the model's own, see `ModelDescription.own_grid`, and
            `auto` the one that is recorded with the model, else the mean.
        layer: Number of blocks to go through; `None` is all of them and the final norm.
        skip_padding: Pool over the patches that hold sound.
        device: The device to compute on.
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
        named = {"grid": self.description.own_grid, "auto": self.description.embedding or "mean"}
        pooling = named.get(pooling, pooling)
        self.dimensions = pooled_width(pooling, encoder.config)
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device).eval()
        self._pooling, self._layer, self._skip, self._dtype = pooling, layer, skip_padding, dtype
        self.front = FrontEnd(loaded.description, self.device)

    def record(self) -> dict[str, Any]:
        """Everything that decides the embeddings: the weights' fingerprint and the pooling."""
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
        values = cast(NDArray[np.float32], self.encode(x, frames).pooled(self._pooling).cpu().numpy())
        return _finite(values, "embeddings")

    def seconds(self, x: Tensor, frames: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """One embedding a second, [batch, seconds, dimensions], and which seconds hold sound, [batch, seconds]."""
        encoded = self.encode(x, frames)
        centres = column_seconds(self.encoder.config, self.description.features, encoded.grid[1])
        values, real = encoded.seconds(self._pooling, centres.to(self.device, torch.float32))
        _finite(values[real].cpu().numpy(), "embeddings")
        return values.cpu().numpy(), real.cpu().numpy()

    def encode(self, x: Tensor, frames: Tensor) -> Encoded:
        """Tokens of normalised spectrograms, for other ways of pooling."""
        return encode(self.encoder, x, frames, layer=self._layer, skip_padding=self._skip, dtype=self._dtype)


def _finite(values: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """The values themselves.

    Raises:
        ModelError: Some are not finite numbers.
    """
    if not np.isfinite(values).all():
        raise ModelError(
            f"its {what} are not finite numbers",
            advice="Use --precision float32. If that does not help, its weights or its mean and std are damaged.",
        )
    return values


class ComputeSettings(Protocol):
    """Settings of a verb that computes."""

    @property
    def device(self) -> str:
        """`auto`, or a device."""

    @property
    def precision(self) -> Literal["auto", "float32", "bf16", "fp16", "int8"]:
        """`auto`, or an arithmetic."""


@dataclass(frozen=True)
class ReadyModel:
    """A loaded model, and where and in which arithmetic it computes.

    Attributes:
        loaded: The model.
        device: The device that it computes on.
        dtype: Arithmetic, bfloat16 or float16; None is float32.
        source: The path that the user gave, for messages.
        is_int8: Whether its linear layers compute in 8 bits, and all else in float32.
    """

    loaded: LoadedModel
    device: torch.device
    dtype: torch.dtype | None
    source: str
    is_int8: bool = False

    @property
    def arithmetic(self) -> str:
        """Its name in the record of what has been computed."""
        return "int8" if self.is_int8 else str(self.dtype)

    @property
    def description(self) -> ModelDescription:
        """The model's description: the spectrograms that it was trained on, and its normalisation."""
        return self.loaded.description

    def scorer(self, *, reject: float | None = None) -> Scorer:
        """The model as a classifier; see `Scorer`.

        Raises:
            ModelError: It has no classifier.
        """
        return Scorer(
            self.loaded,
            device=self.device,
            dtype=self.dtype,
            source=self.source,
            reject=reject,
            rounded=self.is_int8,
        )

    def embedder(self, *, pooling: str = "mean", layer: int | None = None, skip_padding: bool = True) -> Embedder:
        """The model's encoder for windows of sound; see `Embedder`."""
        return Embedder(
            self.loaded, pooling=pooling, layer=layer, skip_padding=skip_padding, device=self.device, dtype=self.dtype
        )

    def embedder_like(self, record: Mapping[str, Any], *, index: Path) -> Embedder:
        """The model's encoder as it was when a file of embeddings was written.

        Args:
            record: Everything that decided the embeddings; see `tymbal.inference.embeddings.read_record`.
            index: The file, for messages.

        Raises:
            ModelError: The embeddings are another model's.
        """
        embedder = self.embedder(**{name: record[name] for name in ("pooling", "layer", "skip_padding")})
        if record["model"] != embedder.record()["model"]:
            raise ModelError(
                f"the embeddings in {index} are another model's",
                path=self.source,
                advice="Give the model that they were made with, or embed the sounds again.",
            )
        return embedder

    def frozen_encoder(
        self, encoder: SpectrogramEncoder | None = None, *, skip_padding: bool = True, batch_size: int = 64
    ) -> FrozenEncoder:
        """The model's encoder for rows of stores, or another one of the same shape; see `FrozenEncoder`."""
        module = self.loaded.module
        own = module.encoder if isinstance(module, SpectrogramClassifier) else module
        return FrozenEncoder(
            own if encoder is None else encoder,
            self.description.normalisation,
            skip_padding=skip_padding,
            batch_size=batch_size,
            device=self.device,
            dtype=self.dtype,
        )


def ready_model(model: str | Path, settings: ComputeSettings) -> ReadyModel:
    """Chooses the device and the arithmetic, and loads a model.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        settings: The settings of the verb.

    Raises:
        DeviceError: This machine has no such device, or cannot compute in 8 bits.
        ModelError: The model cannot be read.
        SettingsError: The device or the precision does not exist, or they do not fit.
    """
    device, _ = choose_device(settings.device)
    is_int8 = settings.precision == "int8"
    dtype, _ = choose_precision("float32" if settings.precision == "int8" else settings.precision, device)
    loaded = load_model(model)
    if is_int8:
        as_int8(loaded.module, device)
    return ReadyModel(loaded, device, dtype, str(model), is_int8)
