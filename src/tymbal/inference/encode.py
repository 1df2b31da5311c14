"""A frozen encoder at work on a batch: its tokens, pooled over the clip, by column of time, or by second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tymbal.errors import SettingsError
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.pooling import pool
from tymbal.settings import FeatureSettings

__all__ = ["Encoded", "check_layer", "column_seconds", "encode", "encode_layers"]


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
        """One embedding a clip, [batch, dimensions]; see `tymbal.models.pooling.pool`."""
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
