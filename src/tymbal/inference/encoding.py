"""A frozen encoder at work on batches and stores: tokens, pooled over the clip, by column of time, or by second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.errors import ModelError, SettingsError
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import pool, pooled_width
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.settings import FeatureSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

__all__ = [
    "Encoded",
    "FrozenEncoder",
    "RowEmbeddings",
    "check_features",
    "check_layer",
    "column_seconds",
    "encode",
    "encode_layers",
]


@dataclass(frozen=True)
class Encoded:
    """Tokens of a batch.

    Attributes:
        tokens: float32 [batch, prefix + rows x columns, width].
        grid: Rows and columns of patches.
        prefix: Tokens in front of the patches.
        real_columns: Columns at the start of each clip that hold sound, [batch]; None where padding counts too.
    """

    tokens: Tensor
    grid: tuple[int, int]
    prefix: int
    real_columns: Tensor | None

    def pooled(self, how: str) -> Tensor:
        """One embedding a clip, [batch, dimensions]; see `tymbal.models.classifier.pool`."""
        return pool(self.tokens, how=how, grid=self.grid, prefix=self.prefix, real_columns=self.real_columns)

    def columns(self, how: str) -> Tensor:
        """One embedding a column of patches, [batch, columns, dimensions], rows averaged or side by side.

        Args:
            how: `mean` or `rows`.

        Raises:
            SettingsError: For any other one, which has no place in time.
        """
        if how not in ("mean", "rows"):
            raise SettingsError(f"{how} has no place in time", advice="Set pooling to mean or rows.")
        batch, _, width = self.tokens.shape
        patches = self.tokens[:, self.prefix :].reshape(batch, *self.grid, width)
        return patches.mean(1) if how == "mean" else patches.transpose(1, 2).flatten(2)

    def seconds(self, how: str, centres: Tensor) -> tuple[Tensor, Tensor]:
        """One embedding a second: the mean of the columns whose centre lies in it.

        Args:
            how: `mean` or `rows`.
            centres: Centres of the columns in seconds, [columns].

        Returns:
            [batch, seconds, dimensions], and whether any sound is in a second, bool [batch, seconds].
        """
        columns = self.columns(how)
        number = centres.long()
        inside = (torch.arange(int(number[-1]) + 1, device=number.device)[:, None] == number).to(columns)
        weight = inside.expand(len(columns), -1, -1)  # [batch, seconds, columns]
        if self.real_columns is not None:
            real = torch.arange(self.grid[1], device=columns.device) < self.real_columns[:, None]
            weight = weight * real[:, None]
        total = weight.sum(2, keepdim=True)
        return weight @ columns / total.clamp(min=1), total.squeeze(2) > 0


def encode(
    encoder: SpectrogramEncoder,
    x: Tensor,
    frames: Tensor,
    *,
    layer: int | None = None,
    skip_padding: bool = True,
    dtype: torch.dtype | None = None,
) -> Encoded:
    """Encodes normalised spectrograms, without gradients.

    Args:
        encoder: In evaluation mode, on the device of `x`.
        x: Normalised, [batch, frames, mels].
        frames: Frames of real sound, int64 [batch].
        layer: Number of blocks to go through; 0 is the embedded patches. `None` is all of them and the final norm.
        skip_padding: Pool over the patches that hold sound.
        dtype: Arithmetic, bfloat16 or float16; `None` is float32.
    """
    return encode_layers(encoder, x, frames, layers=[layer], skip_padding=skip_padding, dtype=dtype)[layer]


def encode_layers(
    encoder: SpectrogramEncoder,
    x: Tensor,
    frames: Tensor,
    *,
    layers: Sequence[int | None],
    skip_padding: bool = True,
    dtype: torch.dtype | None = None,
) -> dict[int | None, Encoded]:
    """Encodes in one pass what `encode` does layer by layer; the arguments are its own."""
    blocks = [layer for layer in layers if layer is not None]
    with torch.inference_mode(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        output = encoder(x, frames=frames, hidden_states=bool(blocks))
    real = encoder.config.real_columns(frames, output.grid[1]) if skip_padding else None
    by_layer: dict[int | None, Tensor] = {layer: output.hidden_states[layer] for layer in blocks}
    if None in layers:
        by_layer[None] = output.tokens
    prefix = encoder.config.prefix_tokens
    return {layer: Encoded(tokens.float(), output.grid, prefix, real) for layer, tokens in by_layer.items()}


def column_seconds(config: EncoderConfig, features: FeatureSettings, columns: int) -> Tensor:
    """The middle of each column of patches in seconds from the beginning of the sound, float64 [columns]."""
    first = torch.arange(columns, dtype=torch.float64) * config.stride[1]
    middle = (first + (config.patch[1] - 1) / 2) * features.shift_samples + features.samples_of(1) / 2
    return middle / features.sample_rate


def check_layer(encoder: SpectrogramEncoder, layer: int | None) -> None:
    """Refuses a layer that the encoder does not have.

    Raises:
        SettingsError: There is no such layer.
    """
    depth = encoder.config.depth
    if layer is not None and not 0 <= layer <= depth:
        raise SettingsError(f"layer is {layer}, but the encoder has {depth} blocks", advice=f"Choose 0 to {depth}.")


@dataclass(frozen=True, kw_only=True)
class RowEmbeddings:
    """Embeddings of rows of a store.

    Attributes:
        rows: The rows that could be read, in the requested order, int64 [clips].
        values: Embeddings by pooling and layer, float32 [clips, dimensions].
    """

    rows: NDArray[np.int64]
    values: Mapping[tuple[str, int | None], NDArray[np.float32]]


class FrozenEncoder:
    """An encoder at work on the rows of stores.

    Args:
        encoder: The encoder; it is moved to the device and put into evaluation mode.
        normalisation: How its model normalises.
        skip_padding: Pool over the patches that hold sound, not over those of silence behind a short clip.
        batch_size: Clips a batch.
        device: The device to compute on.
        dtype: Arithmetic, bfloat16 or float16; `None` is float32.
    """

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        normalisation: Normalisation,
        *,
        skip_padding: bool = True,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device).eval()
        self.normalisation = normalisation
        self.skip_padding, self.batch_size, self.dtype = skip_padding, batch_size, dtype

    def batches(
        self,
        store: SpectrogramSource,
        rows: NDArray[np.int64],
        *,
        layers: Sequence[int | None] = (None,),
        progress: Progress | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], dict[int | None, Encoded]]]:
        """Encodes rows of a store batch by batch, several layers in one pass.

        Args:
            store: The store of the spectrograms.
            rows: Which of them, [clips].
            layers: Numbers of blocks to go through; 0 is the embedded patches, `None` all of them and the final norm.
            progress: Advances batch by batch.

        Yields:
            The rows that could be read, int64 [batch], and their tokens by layer.

        Raises:
            SettingsError: There is no such layer.
            StoreError: The store cannot be read.
        """
        for layer in layers:
            check_layer(self.encoder, layer)
        for batch in normalised_batches(
            store,
            rows,
            normalisation=self.normalisation,
            batch_size=self.batch_size,
            device=self.device,
            progress=progress,
        ):
            encoded = encode_layers(
                self.encoder,
                batch.x,
                batch.frames,
                layers=layers,
                skip_padding=self.skip_padding,
                dtype=self.dtype,
            )
            yield batch.rows, encoded

    def embed(
        self,
        store: SpectrogramSource,
        rows: NDArray[np.int64],
        *,
        poolings: Sequence[str] = ("mean",),
        layers: Sequence[int | None] = (None,),
        progress: Progress | None = None,
    ) -> RowEmbeddings:
        """Embeds rows of a store by several poolings and layers in one pass; see `batches`.

        Args:
            store: The store of the spectrograms.
            rows: Which of them, [clips].
            poolings: See `tymbal.models.classifier.pool`.
            layers: Layers, as in `batches`.
            progress: Advances batch by batch.
        """
        read: list[NDArray[np.int64]] = []
        parts: dict[tuple[str, int | None], list[Tensor]] = {(how, layer): [] for how in poolings for layer in layers}
        for part, encoded in self.batches(store, rows, layers=layers, progress=progress):
            read.append(part)
            for (how, layer), pooled in parts.items():
                pooled.append(encoded[layer].pooled(how).cpu())
        config = self.encoder.config
        return RowEmbeddings(
            rows=np.concatenate([rows[:0], *read]),
            values={
                (how, layer): torch.cat([torch.empty(0, pooled_width(how, config)), *pooled]).numpy()
                for (how, layer), pooled in parts.items()
            },
        )


def check_features(store: SpectrogramSource, description: ModelDescription, *, path: Any = None) -> None:
    """Refuses a store whose spectrograms are not the ones that the model has learned from.

    Of spectrograms that others computed only the number of mel bins is known.

    Raises:
        ModelError: They differ, and in what.
    """
    from tymbal.config import diff

    if store.features is not None:
        lines = diff(description.features, store.features)
    else:
        lines = diff({"mel_bins": description.features.mel_bins}, {"mel_bins": store.mels})
    if lines:
        raise ModelError(
            f"the model and the store {store.path} are made with other spectrograms:\n  " + "\n  ".join(lines),
            path=path,
            advice="Prepare the sound again with the settings of the model, the values on the left.",
        )
