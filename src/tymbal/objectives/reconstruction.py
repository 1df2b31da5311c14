"""Reconstruction: the whole spectrogram from one with masked stretches of time and bands of frequency.

A recipe that bioacousticians use with Hugging Face's AST on clips of a second: the encoder sees a spectrogram that is
masked as by SpecAugment (Park et al. 2019), each token is projected to some channels, a decoder of two convolutions
over time follows, and what it gives is interpolated to the frames of the clean spectrogram, which it is to equal.

What is made sound here:

- the sequence that the decoder convolves is time. Tokens are numbered row by row of frequency; convolved in that order,
  the end of one row would meet the beginning of the next. Here the rows of a column become channels
  of their column, so that what sounds low and what sounds high stay apart, which an average of the rows would mix;
- it has the resolution of frames. A token stands for the frames up to the next column, and is projected to some
  channels for each of them; interpolated from one point a column, speech, for one, is hardly better rebuilt than by the
  mean of all spectrograms;
- padding is not learned from, and clips count equally, long or short;
- masks are a function of seed, epoch and clip, drawn on the device; in evaluation they are fixed, so that epochs and
  runs compare;
- the error is also reported on the masked part alone. Most of the spectrogram is visible, and an encoder that copies it
  has a low error, too: `masked_mse` tells learning from copying.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from tymbal.errors import SettingsError
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.objectives.batch_augmentation import spec_mask
from tymbal.objectives.contract import ObjectiveSpec, Rebuilt, load_heads
from tymbal.randomness import EVALUATION, fold
from tymbal.settings import PretrainSettings
from tymbal.settings.fields import CONTINUE, Recipe, check, setting
from tymbal.store.base import SpectrogramSource

__all__ = ["OBJECTIVE", "ReconstructionObjective", "ReconstructionSettings"]

_KERNEL = 3  # frames that a convolution sees
_MASKS = ("time_masks", "time_mask_width", "frequency_masks", "frequency_mask_width")

_RECIPE = Recipe(
    setting="objective",
    value="reconstruction",
    defaults={
        "epochs": 150,
        "patience": 10,
        "min_progress": 1e-4,
        "learning_rate": 1e-4,
        "schedule": "linear",
        "warmup": 0.05,
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
        "batch_size": 8,
        "accumulate": 2,
        "window": 1.0,
        "split": "sklearn",
        "eval_every": 1.0,
        "size": "small",
        "patch": "16x16",
    },
    unless={"window": "frames", "batch_size": "batch_sizes", "split": "group_pattern"},
)
"""How one-second clips of insects are usually pretrained on with Hugging Face's AST."""

_TOKENS = Recipe(setting="decode", value="tokens", defaults={"channels": 128, "decoder_width": 128})
"""The projector and decoder of the notebooks, whose weights fit both ways."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings(PretrainSettings):
    """Reconstruction of the whole spectrogram from a masked one.

    Attributes:
        channels: Channels to which each token is projected, for each frame up to the next patch.
        decoder_width: Width of the decoder. `None` is that of the encoder.
        decode: What the decoder runs over: the `frames`, with rows of patches as channels; or all `tokens` in their
            order, row by row of frequency, as in the notebooks around Hugging Face's AST, whose projector and decoder
            then fit.
        time_masks: Stretches of time that are masked in the input.
        time_mask_width: Widest of them in frames; widths are uniform from 0 on.
        frequency_masks: Bands of mel bins that are masked.
        frequency_mask_width: Widest of them in mel bins.
    """

    recipes: ClassVar[tuple[Recipe, ...]] = (CONTINUE, _RECIPE, _TOKENS)
    continues: ClassVar[bool] = False

    objective: Literal["reconstruction"] = "reconstruction"
    channels: int = 16
    decoder_width: int | None = setting(None, example="128")
    decode: Literal["frames", "tokens"] = setting("frames", before="frames")
    time_masks: int = 2
    time_mask_width: int = setting(24, aliases=("time_mask",))
    frequency_masks: int = 2
    frequency_mask_width: int = setting(24, aliases=("frequency_mask",))

    def __post_init__(self) -> None:
        PretrainSettings.__post_init__(self)
        check(self.channels >= 1, "channels", self.channels, "1 or more")
        check(self.decoder_width is None or self.decoder_width >= 1, "decoder_width", self.decoder_width, "1 or more")
        for name in _MASKS:
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        if not (self.time_masks and self.time_mask_width) and not (self.frequency_masks and self.frequency_mask_width):
            raise SettingsError(
                "without a mask, reconstruction would learn to copy",
                advice="Set time_masks and time_mask_width, or frequency_masks and frequency_mask_width, to 1 or more.",
            )

    @classmethod
    def refuse(cls, others: Mapping[str, Any]) -> None:
        """Refuses to encode visible patches alone: the spectrogram is masked."""
        if others.get("encode") == "visible":
            raise SettingsError(
                "reconstruction masks the spectrogram, not patches: there are no visible ones to encode alone",
                advice="Leave encode out, or choose the objective mpg.",
            )


class ReconstructionObjective(nn.Module):
    """Reconstruction of masked spectrograms on an encoder.

    Args:
        encoder: The encoder to train. Its mask token is frozen: the spectrogram is masked, not its patches.
        normalisation: How spectrograms are normalised for the encoder.
        channels: Channels to which each token is projected, for each of the frames up to the next column.
        decoder_width: Channels between the two convolutions. `None` is the width of the encoder.
        decode: Whether the decoder runs over `frames` or over all `tokens` in their order.
        time_masks: Stretches of time that are masked in a clip.
        time_mask: Widest of them in frames; widths are uniform from 0 on.
        frequency_masks: Bands of mel bins that are masked in a clip.
        frequency_mask: Widest of them in mel bins.
        seed: Seed of the masks.

    Attributes:
        monitor: Name of the metric that tells better models, and whether higher is better.
    """

    monitor: tuple[str, bool] = ("mse", False)

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        *,
        normalisation: Normalisation,
        channels: int = 16,
        decoder_width: int | None = None,
        decode: Literal["frames", "tokens"] = "frames",
        time_masks: int = 2,
        time_mask: int = 24,
        frequency_masks: int = 2,
        frequency_mask: int = 24,
        seed: int = 42,
    ) -> None:
        super().__init__()
        config = encoder.config
        self.encoder = encoder
        self.encoder.mask_token.requires_grad = False  # an unused parameter stops distributed training
        self.normalisation = normalisation
        self.masks = {
            "time_masks": time_masks,
            "time_mask": time_mask,
            "frequency_masks": frequency_masks,
            "frequency_mask": frequency_mask,
        }
        self.seed = seed
        width = decoder_width or config.width
        self.decode = decode
        over_frames = decode == "frames"
        self.projector = nn.Linear(config.width, config.stride[1] * channels if over_frames else channels)
        self.decoder = nn.Sequential(
            nn.Conv1d(config.grid[0] * channels if over_frames else channels, width, _KERNEL, padding="same"),
            nn.ReLU(),
            nn.Conv1d(width, config.mels, _KERNEL, padding="same"),
        )

    def forward(self, spectrogram: Tensor, frames: Tensor, row: Tensor, epoch: Tensor, **_: Any) -> dict[str, Any]:
        """Computes the loss of a batch.

        Args:
            spectrogram: Log-mel values as they are stored, any float type: [batch, frames, mels].
            frames: Real frames of each clip, before padding: int64 [batch].
            row: Number of each clip in its store: int64 [batch].
            epoch: Epoch of each clip: int64 [batch].

        Returns:
            `loss`, a float32 scalar, and `sums`, sums over the clips of what `metrics` reports.
        """
        clean = self.normalisation(spectrogram, frames)
        masked = self.make_masks(clean.shape[1], frames, row, epoch)
        rebuilt = self.reconstruct(clean.masked_fill(masked, 0.0))  # 0 is the mean of normalised data
        # As the decoder gives it, time last, so that gradients need not be transposed.
        error = (rebuilt.transpose(1, 2) - clean.transpose(1, 2).contiguous()).square()
        real = (torch.arange(clean.shape[1], device=clean.device) < frames[:, None]).float()
        by_clip = (error.sum(1) * real).sum(1) / (real.sum(1) * error.shape[1])
        loss = by_clip.mean()
        with torch.no_grad():
            # A clip whose masks all happen to have no width has no masked part.
            hidden = masked.transpose(1, 2).float()
            cells = hidden.sum((1, 2))
            sums = {
                "mse": by_clip.detach().sum(),
                "count": torch.full_like(loss, len(row)),
                "masked_mse": ((error * hidden).sum((1, 2)) / cells.clamp(min=1)).sum(),
                "masked_count": (cells > 0).sum(),
            }
        return {"loss": loss, "sums": sums}

    def reconstruct(self, spectrogram: Tensor) -> Tensor:
        """Rebuilds spectrograms from what the encoder makes of them.

        Args:
            spectrogram: Normalised and masked, [batch, frames, mels].

        Returns:
            float32 [batch, frames, mels].
        """
        tokens, grid, _ = self.encoder(spectrogram)
        if self.decode == "tokens":
            by_token = cast(Tensor, self.decoder(self.projector(tokens).transpose(1, 2))).float()
            return _stretched(by_token, spectrogram.shape[1]).transpose(1, 2)
        shape = (*grid, self.encoder.config.stride[1], -1)
        projected = self.projector(tokens[:, PREFIX_TOKENS:]).reshape(len(tokens), *shape)
        # From [batch, rows, columns, frames of a column, channels] to [batch, rows x channels, all these frames].
        over_time = projected.permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2)
        decoded = cast(Tensor, self.decoder(over_time)).float()  # [batch, mels, columns x frames of a column]
        return _stretched(decoded, spectrogram.shape[1]).transpose(1, 2)

    def make_masks(self, length: int, frames: Tensor, row: Tensor, epoch: Tensor) -> Tensor:
        """Draws what is masked in a batch of clips of `length` frames, with padding; the others are as in `forward`.

        While training it depends on seed, epoch and row; in evaluation on seed and row only.

        Returns:
            bool [batch, length, mels], all False in padding.
        """
        keys = fold(self.seed, epoch if self.training else EVALUATION, row)
        masked = spec_mask((length, self.encoder.config.mels), keys, frames, **self.masks)
        return masked & (torch.arange(length, device=frames.device) < frames[:, None]).unsqueeze(2)

    @torch.no_grad()
    def rebuilt(self, spectrogram: Tensor, frames: Tensor, row: Tensor) -> Rebuilt:
        """Rebuilds the whole spectrogram of normalised clips; see `RebuildingObjective`."""
        masked = self.make_masks(spectrogram.shape[1], frames, row, torch.zeros_like(row))
        return Rebuilt.from_tensors(spectrogram, masked, self.reconstruct(spectrogram.masked_fill(masked, 0.0)))

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Turns summed figures into those that are reported: mean squared errors, in normalised units.

        `mse` is that of all frames of sound, which is the `loss`, `masked_mse` that of what was masked.
        """
        mse = float(sums["mse"]) / float(sums["count"])
        return {"loss": mse, "mse": mse, "masked_mse": float(sums["masked_mse"]) / max(float(sums["masked_count"]), 1)}

    def head_state(self) -> dict[str, Tensor]:
        """Trained weights beside the encoder's, to save with it: `projector.weight`, `decoder.0.weight` and so on."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `head_state` returned.

        Raises:
            ModelError: Where a part is missing or has another shape.
        """
        load_heads(
            self.head_state(),
            state,
            advice="They belong to another objective than reconstruction, or to other channels, another decoder_width, "
            "or another width or patch.",
        )


def _stretched(values: Tensor, frames: int) -> Tensor:
    """Interpolates [batch, mels, length] linearly to [batch, mels, frames].

    As `torch.nn.functional.interpolate`, whose backward pass on CUDA has no deterministic form; that of a choice has.
    """
    length = values.shape[2]
    if length == frames:
        return values
    place = (torch.arange(frames, device=values.device) + 0.5) * (length / frames) - 0.5
    place = place.clamp(0, length - 1)
    left = place.long()
    right = (left + 1).clamp(max=length - 1)
    return torch.lerp(values.index_select(2, left), values.index_select(2, right), place - left)


def _build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: ReconstructionSettings
) -> ReconstructionObjective:
    del data
    return ReconstructionObjective(
        encoder,
        normalisation=normalisation,
        channels=settings.channels,
        decoder_width=settings.decoder_width,
        decode=settings.decode,
        seed=settings.seed,
        time_masks=settings.time_masks,
        time_mask=settings.time_mask_width,
        frequency_masks=settings.frequency_masks,
        frequency_mask=settings.frequency_mask_width,
    )


OBJECTIVE = ObjectiveSpec(settings=ReconstructionSettings, build=_build, patches_may_overlap=True)
