"""What an objective makes of masked clips, as pictures: what was hidden, and what stands there afterwards.

`joint` and `mpg` rebuild masked patches, `reconstruction` the whole spectrogram. `mpc` rebuilds nothing, but solves a
puzzle: of the hidden patches of a clip it tells which one belongs where, and that can be laid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import TypeIs

from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.objectives.masks import Masks
from tymbal.objectives.reconstruction import ReconstructionObjective
from tymbal.objectives.ssast import SSASTObjective, tell_apart

__all__ = ["Rebuilding", "Rebuilt", "can_rebuild", "rebuilt_by"]

Rebuilding = SSASTObjective | ReconstructionObjective
"""The objectives of which there is something to draw."""


@dataclass(frozen=True)
class Rebuilt:
    """Clips as they are, what of them was hidden, and what the objective made of the rest.

    Attributes:
        true: Normalised spectrograms, float32 [clips, frames, mels].
        hidden: What the encoder did not see, bool [clips, frames, mels].
        made: Rebuilt spectrograms, float32 [clips, frames, mels].
        error: Of each clip the mean squared error of what was hidden, [clips]; of a puzzle the share of patches that
            lie wrong.
        puzzle: Whether patches were laid, and not rebuilt.
    """

    true: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    made: NDArray[np.float32]
    error: NDArray[np.float32]
    puzzle: bool


def can_rebuild(objective: nn.Module) -> TypeIs[Rebuilding]:
    """Whether there is something to draw."""
    return isinstance(objective, Rebuilding)


@torch.no_grad()
def rebuilt_by(objective: Rebuilding, spectrograms: Tensor, frames: Tensor, rows: Tensor) -> Rebuilt:
    """Masks clips as in every evaluation, and has them rebuilt.

    Args:
        objective: In evaluation mode.
        spectrograms: Log-mel values as they are stored, [clips, frames, mels], on the device of the objective.
        frames: Real frames of each, int64 [clips].
        rows: Numbers in the store, on which the masks depend, int64 [clips].
    """
    epoch = torch.zeros_like(rows)
    if isinstance(objective, ReconstructionObjective):
        clean = objective.normalisation(spectrograms, frames)
        masked = objective.make_masks(clean.shape[1], frames, rows, epoch)
        made = objective.reconstruct(clean.masked_fill(masked, 0.0)).float()
        return _rebuilt(clean, masked, made)
    x = objective.normalisation(spectrograms, frames)
    masks = objective.make_masks(x.shape[1], frames, rows, epoch)
    tokens, patches = objective.predict(x, masks)[:, PREFIX_TOKENS:].float(), objective.encoder.patchify(x).float()
    encoder = objective.encoder
    true = _picture(encoder, patches)
    hidden = _picture(encoder, masks.mask.unsqueeze(2).expand_as(patches))
    if "gpred" in objective.heads:
        made = objective.heads["gpred"](tokens)
        if objective.normalize_targets:
            spread = patches.var(-1, keepdim=True, unbiased=False).add(1e-6).sqrt()
            made = made * spread + patches.mean(-1, keepdim=True)
        return _rebuilt(true, hidden, _picture(encoder, torch.where(masks.mask.unsqueeze(2), made, patches)))
    laid, wrong = _laid(objective, tokens, patches, masks)
    return _as_arrays(true, hidden, _picture(encoder, laid), wrong, puzzle=True)


def _laid(objective: SSASTObjective, tokens: Tensor, patches: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """Patches [clips, patches, area] with the hidden ones where the objective would put them, and the share wrong."""

    def chosen(values: Tensor) -> Tensor:
        return values.gather(1, masks.index.unsqueeze(2).expand(-1, -1, values.shape[2]))

    true = chosen(patches)
    choice = tell_apart(objective.heads["cpred"](chosen(tokens)), true, masks.valid)[1]
    right = (choice == torch.arange(choice.shape[1], device=choice.device)) & masks.valid
    put = true.gather(1, choice.unsqueeze(2).expand_as(true))
    put = torch.where(masks.valid.unsqueeze(2), put, true)
    laid = patches.scatter(1, masks.index.unsqueeze(2).expand_as(put), put)
    return laid, 1 - right.sum(1) / masks.valid.sum(1)


def _rebuilt(true: Tensor, hidden: Tensor, made: Tensor) -> Rebuilt:
    count = hidden.sum((1, 2)).clamp(min=1)  # masks of reconstruction may all happen to have no width
    error = torch.where(hidden, (made - true).square(), 0.0).sum((1, 2)) / count
    return _as_arrays(true, hidden, made, error, puzzle=False)


def _as_arrays(true: Tensor, hidden: Tensor, made: Tensor, error: Tensor, *, puzzle: bool) -> Rebuilt:
    floats = [each.float().cpu().numpy() for each in (true, made, error)]
    return Rebuilt(floats[0], hidden.cpu().numpy(), floats[1], floats[2], puzzle)


def _picture(encoder: SpectrogramEncoder, patches: Tensor) -> Tensor:
    """Patches [batch, patches, area] as pictures [batch, frames, mels]."""
    config = encoder.config
    (rows, columns), (tall, wide) = config.grid, config.patch
    shaped = patches.reshape(len(patches), rows, columns, tall, wide).permute(0, 2, 4, 1, 3)
    return shaped.reshape(len(patches), columns * wide, rows * tall)
