"""A frozen encoder at work on batches and stores: tokens, pooled over the clip, by column of time, or by second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.errors import ModelError, SettingsError
from tymbal.models.classifier import pool
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.settings import FeatureSettings
from tymbal.store.base import SpectrogramSource

__all__ = [
    "Encoded",
    "check_features",
    "check_layer",
    "column_seconds",
    "embed_layers",
    "embed_store",
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
            SettingsError: For `cls`, which has no place in time.
        """
        if how == "cls":
            raise SettingsError("cls has no place in time", advice="Set pooling to mean or rows.")
        batch, _, width = self.tokens.shape
        patches = self.tokens[:, self.prefix :].reshape(batch, *self.grid, width)
        return patches.mean(1) if how == "mean" else patches.transpose(1, 2).flatten(2)

    def seconds(self, how: str, centres: Tensor) -> tuple[Tensor, Tensor]:
        """One embedding a second: the mean of the columns whose centre lies in it.

        Args:
            how: `mean` or `rows`.
            centres: Of the columns in seconds, [columns].

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
    wanted = [layer for layer in layers if layer is not None]
    with torch.inference_mode(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        output = encoder(x, hidden_states=bool(wanted))
    real = encoder.config.real_columns(frames, output.grid[1]) if skip_padding else None
    found: dict[int | None, Tensor] = {layer: output.hidden_states[layer] for layer in wanted}
    if None in layers:
        found[None] = output.tokens
    prefix = encoder.config.prefix_tokens
    return {layer: Encoded(tokens.float(), output.grid, prefix, real) for layer, tokens in found.items()}


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


def embed_store(
    encoder: SpectrogramEncoder,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    description: ModelDescription,
    poolings: Sequence[str],
    layer: int | None = None,
    skip_padding: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Embeds rows of a store.

    Args:
        encoder: The encoder; it is moved to the device and put into evaluation mode.
        store: Where the spectrograms are.
        rows: Which of them, [clips].
        description: How the encoder's model normalises and pads.
        poolings: Ways of pooling, all from one pass.
        layer: Number of blocks to go through; 0 is the embedded patches. `None` is all of them and the final norm.
        skip_padding: Pool over the patches that hold sound, not over those of silence behind a short clip.
        batch_size: Clips a batch.
        device: Where to compute.
        dtype: Arithmetic, bfloat16 or float16; `None` is float32.
        progress: Told of each batch.

    Returns:
        For each pooling [clips, dimensions].

    Raises:
        ModelError: The store's mel bins are not the encoder's.
        SettingsError: There is no such layer.
    """
    found = embed_layers(
        encoder,
        store,
        rows,
        description=description,
        poolings=poolings,
        layers=[layer],
        skip_padding=skip_padding,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    return {how: found[how, layer] for how in poolings}


def embed_layers(
    encoder: SpectrogramEncoder,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    description: ModelDescription,
    poolings: Sequence[str],
    layers: Sequence[int | None],
    skip_padding: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, int | None], NDArray[np.float32]]:
    """Embeds rows of a store from several layers in one pass; the arguments are those of `embed_store`.

    Returns:
        For each pooling and layer [clips, dimensions].

    Raises:
        ModelError: The store's mel bins are not the encoder's.
        SettingsError: There is no such layer.
    """
    for layer in layers:
        check_layer(encoder, layer)
    device = torch.device(device)
    encoder = encoder.to(device).eval()
    found: dict[tuple[str, int | None], list[Tensor]] = {(how, layer): [] for how in poolings for layer in layers}
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        store.announce(rows[start + batch_size : start + 2 * batch_size])
        frames = torch.from_numpy(store.real_frames[part].astype(np.int64)).to(device)
        raw = torch.from_numpy(store.gather(part)).to(device)
        x = description.normalisation(raw, frames)
        encoded = encode_layers(encoder, x, frames, layers=layers, skip_padding=skip_padding, dtype=dtype)
        for (how, layer), parts in found.items():
            parts.append(encoded[layer].pooled(how).cpu())
        if progress is not None:
            progress.advance(len(part))
    return {place: torch.cat(parts).numpy() for place, parts in found.items()}


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
