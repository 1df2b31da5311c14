"""What an objective hides of clips and rebuilds of them: patches, or stretches of time and bands of frequency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.folder import LoadedModel
from tymbal.objectives.masks import Masks
from tymbal.objectives.reconstruction import ReconstructionObjective
from tymbal.objectives.ssast import TASKS, SSASTObjective
from tymbal.reporting.page import NotShownError

__all__ = ["Hiding", "hiding_of"]

Picture = NDArray[np.float32]


class Hiding(Protocol):
    """Clips through the eyes of an objective, with the masks of the evaluation: those of all epochs compare.

    Attributes:
        lead: What a reader has to know of the pictures.
    """

    lead: str

    @property
    def objective(self) -> SSASTObjective | ReconstructionObjective:
        """The objective, whose weights may change."""
        ...

    def take(self, raw: Tensor, frames: Tensor, row: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Takes clips, [clips, frames, mels], and gives them normalised, and what of them is hidden (bool)."""
        ...

    def rebuilt(self) -> list[tuple[Picture, float]]:
        """Each clip as it is rebuilt, and the mean squared error of what was hidden."""
        ...


def hiding_of(loaded: LoadedModel) -> Hiding:
    """What the objective of a pretrained model hides.

    Raises:
        NotShownError: It rebuilds nothing that could be drawn.
    """
    how = loaded.description.objective
    if not isinstance(loaded.module, SpectrogramEncoder) or how is None:
        raise NotShownError("the model was not pretrained by this run")
    name = how.get("objective")
    if name == "reconstruction":
        return _Stretches(loaded.module, loaded, how)
    if name not in TASKS:
        raise NotShownError(f"there is no picture for the objective {name}")
    if "gpred" not in TASKS[name]:
        raise NotShownError(
            f"the objective {name} tells patches apart and rebuilds none",
            advice="The objectives joint, mpg and reconstruction rebuild.",
        )
    return _Patches(loaded.module, loaded, how)


def _seed(loaded: LoadedModel) -> int:
    return int(loaded.description.provenance.get("settings", {}).get("seed", 42))


class _Stretches:
    """Reconstruction: the whole spectrogram from one with masked stretches and bands."""

    def __init__(self, encoder: SpectrogramEncoder, loaded: LoadedModel, how: Mapping[str, Any]) -> None:
        names = ("channels", "decoder_width", "time_masks", "time_mask", "frequency_masks", "frequency_mask")
        self._objective = ReconstructionObjective(
            encoder,
            normalisation=loaded.description.normalisation,
            seed=_seed(loaded),
            **{name: how[name] for name in names},
        ).eval()
        self.lead = (
            "Grey stretches and bands were hidden from the encoder. The pictures on the right are what it made of the "
            "rest, all of it anew; the number is the mean squared error of what was hidden, in normalised units."
        )

    @property
    def objective(self) -> ReconstructionObjective:
        return self._objective

    def take(self, raw: Tensor, frames: Tensor, row: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        self._clean = self.objective.normalisation(raw, frames)
        self._hidden = self.objective.make_masks(self._clean.shape[1], frames, row, torch.zeros_like(row))
        return self._clean.numpy(), self._hidden.numpy()

    def rebuilt(self) -> list[tuple[Picture, float]]:
        found = self.objective.reconstruct(self._clean.masked_fill(self._hidden, 0.0))
        errors = (found - self._clean).square()
        means = [float(error[mask].mean()) for error, mask in zip(errors, self._hidden, strict=True)]
        return list(zip(found.numpy(), means, strict=True))


class _Patches:
    """SSAST's: patches, each from the others."""

    def __init__(self, encoder: SpectrogramEncoder, loaded: LoadedModel, how: Mapping[str, Any]) -> None:
        objective = SSASTObjective(
            encoder,
            task=how["objective"],
            normalisation=loaded.description.normalisation,
            encode=how["encode"],
            decoder_depth=how["decoder_depth"],
            decoder_width=how["decoder_width"],
            mask=how["mask"],
            mask_ratio=how["mask_ratio"],
            mask_count=how["mask_count"],
            cluster=(how["cluster_min"], how["cluster_max"]),
            mask_padding=how["mask_padding"],
            normalize_targets=how["normalize_targets"],
            seed=_seed(loaded),
        ).eval()
        self._objective = objective
        self._masks: Masks
        share = objective.mask_count or f"{objective.mask_ratio:.0%}"
        self.lead = (
            f"Grey patches ({share} of them) were hidden from the encoder. In the pictures on the right they are what "
            "it made of the rest; the number is the mean squared error of them, in normalised units."
        )
        if objective.normalize_targets:
            self.lead += " It learned patches without their own mean and spread, which are given back here."

    @property
    def objective(self) -> SSASTObjective:
        return self._objective

    def take(self, raw: Tensor, frames: Tensor, row: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        encoder = self.objective.encoder
        self._clean = self.objective.normalisation(raw, frames)
        self._masks = self.objective.make_masks(self._clean.shape[1], frames, row, torch.zeros_like(row))
        hidden = self._masks.mask.unsqueeze(2).expand(-1, -1, encoder.config.patch_area)
        return _picture(encoder, encoder.patchify(self._clean)), _picture(encoder, hidden)

    def rebuilt(self) -> list[tuple[Picture, float]]:
        objective, mask = self.objective, self._masks.mask
        prefix = objective.encoder.config.prefix_tokens
        predicted = objective.heads["gpred"](objective.predict(self._clean, self._masks)[:, prefix:]).float()
        true = objective.encoder.patchify(self._clean)
        if objective.normalize_targets:
            spread = true.var(-1, keepdim=True, unbiased=False).add(1e-6).sqrt()
            predicted = predicted * spread + true.mean(-1, keepdim=True)
        together = torch.where(mask.unsqueeze(2), predicted, true)
        errors = (predicted - true).square().mean(-1)
        means = [float(each[own].mean()) for each, own in zip(errors, mask, strict=True)]
        return list(zip(_picture(objective.encoder, together), means, strict=True))


def _picture(encoder: SpectrogramEncoder, patches: Tensor) -> NDArray[Any]:
    """Patches [batch, patches, area] as pictures [batch, frames, mels]."""
    config = encoder.config
    (rows, columns), (tall, wide) = config.grid, config.patch
    shaped = patches.reshape(len(patches), rows, columns, tall, wide).permute(0, 2, 4, 1, 3)
    pictures: NDArray[Any] = shaped.reshape(len(patches), columns * wide, rows * tall).numpy()
    return pictures
