"""Distillation: a student learns to give a teacher's vectors of the clip from a view of it.

A teacher that has heard much (a large model, another program's embeddings) says of each clip what it hears: a vector
for each of a few equal parts of its time, or one (Hinton et al. 2015, arXiv:1503.02531; vectors instead of scores as in
FitNets, Romero et al. 2015, arXiv:1412.6550). The student sees the clip with another pitch, tempo and colour, never
mixed with other clips, for of a mixture the teacher would say something else. Its tokens are pooled by rows of mel bins
and equal parts of the time, standardised over the batch, and projected to all of the teacher's vectors side by side:
each part of the student hears the teacher's at its own place.

Teacher vectors are standardised number by number over the training clips, so that none rules by its scale. They are
computed once and read with the clips (`store.vectors`); with `teacher_views` a teacher that reads the same
spectrograms is asked about each view itself instead.

Logged beside the loss: `fit`, the share of the teacher's variance that is met (1 minus squared error over variance, of
standardised vectors; 0 is what the mean gives), and `teacher_cosine`, the mean cosine to these vectors.
The best model is the one that meets the teacher best on the clean validation clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tymbal.errors import SettingsError
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import SpectrogramClassifier, Standardisation, pool_cells
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.models.folder import LoadedModel, load_model
from tymbal.objectives.contract import ObjectiveSpec, View, load_heads
from tymbal.objectives.lejepa import (
    LeJEPAObjective,
    LeJEPASettings,
    drawn_views,
    settle_padding,
    visible_patches,
)
from tymbal.randomness import EVALUATION, fold
from tymbal.settings import DataChoice
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.settings.fields import check, setting
from tymbal.settings.training import ENDLESS
from tymbal.store.base import SpectrogramSource
from tymbal.views.spectrogram_views import Patches, drawn_warps, spectrogram_views

__all__ = ["OBJECTIVE", "DistillObjective", "DistillSettings", "Target", "TeacherEncoder"]

_VIEW = 977  # tells this view from those of an objective beside it
_PASSES = 30.0
_SEEN_OF_SQUARES = 0.4
"""On ESC-10 by BirdNET, four processor minutes: 61 % of the teacher's variance are met, 44 % where all is seen."""
_LEAST_DEVIATION = 1e-6
_MOST_NUMBERS = 2048
"""Rows of mel bins of a teacher's tokens are kept apart as long as a vector has no more numbers than this."""


@dataclass(frozen=True, kw_only=True)
class DistillSettings(LeJEPASettings):
    """Learning from a teacher. Settings of lejepa that are not about views or parts, and mixing, are for `with lejepa`.

    Attributes:
        epochs: Passes over the training clips. Where they are not given 30, or as many as fit into `max_minutes`.
        teacher: Who teaches: a model (run, model folder, Hugging Face AST, SSAST); a table of another model's
            embeddings (.parquet, .csv, or .npy beside its .rows.csv); or a .yaml that says how to run its ONNX files.
        teacher_parts: Vectors that the teacher gives of each clip, for equal parts of its time. `None` is 1 where the
            student compares one part; else of a model as many as the student compares, of others as many as it has, at
            most 8.
        teacher_views: Ask the teacher, a model of the same spectrograms, about each view itself; else about the clip
            as it is, once.
        teacher_loss: How far the student is from the teacher: `squared` error, `cosine` distance or `smooth_l1`, each
            of standardised vectors.
        student_norm: What is done to the student's pooled tokens before they are projected: `batch` standardises
            them, `none` nothing.
        projection_layers: Layers of the projection to the teacher's vectors: 1 is linear.
        seen: Fraction of the patches of sound that the student sees of its view. `None` is all of patches as high as
            the spectrogram, 0.4 of others: of the same minutes it makes more steps, and meets more of the teacher.
        with_: Learn by another objective, too, and what its loss weighs: `lejepa 0.5`.
    """

    epochs: float = setting(ENDLESS, by_data=True, first=True, group="training")
    objective: Literal["distill"] = "distill"  # type: ignore[assignment]
    teacher: str | None = setting(None, path=True, first=True, example="configs/speech_embedding.yaml")
    teacher_parts: int | None = setting(None, first=True, example="4")
    teacher_views: bool = setting(False, first=True)
    teacher_loss: Literal["squared", "cosine", "smooth_l1"] = setting("squared", first=True)
    student_norm: Literal["batch", "none"] = "batch"
    projection_layers: int = 1
    seen: float | None = setting(None, by_data=True, example="0.4", before=1.0)
    with_: tuple[str, ...] = setting((), first=True, example="lejepa 0.5")

    compares_views: ClassVar[bool] = True

    def __post_init__(self) -> None:
        LeJEPASettings.__post_init__(self)
        parts = self.teacher_parts
        check(parts is None or parts >= 1, "teacher_parts", parts, "1 or more")
        check(self.projection_layers in (1, 2), "projection_layers", self.projection_layers, "1 or 2")
        check(self.seen is None or 0 < self.seen <= 1, "seen", self.seen, "a fraction above 0, at most 1")
        check(self.with_ == () or self.joined_weight > 0, "with", " ".join(self.with_), "lejepa and a weight above 0")

    @property
    def joined_weight(self) -> float:
        """What the loss of the objective beside weighs; 0 where there is none, or what is given makes no sense."""
        if len(self.with_) not in (1, 2) or self.with_[0] != "lejepa":
            return 0.0
        try:
            weight = float(self.with_[1]) if len(self.with_) == 2 else 1.0
        except ValueError:
            return 0.0
        return weight if math.isfinite(weight) else 0.0

    def fitted(self, choice: DataChoice) -> Self:
        """These settings with all that they leave to the data."""
        fitted = LeJEPASettings.fitted(self, choice)
        if self.epochs == ENDLESS and self.max_minutes is not None:
            fitted = replace(fitted, epochs=ENDLESS)
        elif self.epochs == ENDLESS:
            fitted = replace(fitted, epochs=_PASSES)
        if self.seen is None:
            fitted = replace(fitted, seen=1.0 if choice.full_height else _SEEN_OF_SQUARES)
        # Clips of many speakers in a batch do no harm where nothing spreads them.
        return fitted if self.with_ or self.batches != "auto" else replace(fitted, batches="mixed")


@dataclass(frozen=True)
class Target:
    """What the teacher's vectors are like, over the training clips.

    Attributes:
        mean: Mean of each number, float32 [parts, width].
        deviation: Standard deviation of each number, float32 [parts, width].
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, data: SpectrogramSource) -> Target:
        """That of a store's teacher; a single number where the store has none, which draws views all the same.

        Raises:
            SettingsError: The teacher says the same of all clips.
        """
        if data.taught is None:
            return cls(torch.zeros(1, 1), torch.ones(1, 1))
        rows = data.rows() if data.taught.learned is None else data.taught.learned
        mean, deviation = data.taught.moments(rows[data.taught.known(rows)])
        if not deviation.max() > _LEAST_DEVIATION * max(1.0, float(np.abs(mean).max())):
            raise SettingsError(
                "the teacher says the same of all clips, from which nothing can be learned",
                path=str(data.taught.facts.get("teacher", "")),
                advice="Does it hear the sound at the right rate and scale?",
            )
        return cls(*(torch.from_numpy(each.astype(np.float32)) for each in (mean, deviation)))


class TeacherEncoder:
    """A teacher that reads the same spectrograms; its weights are neither trained nor saved with the student.

    Args:
        loaded: The model.
        parts: Vectors that it gives of a clip.

    Attributes:
        width: Numbers of a vector.
    """

    def __init__(self, loaded: LoadedModel, *, parts: int) -> None:
        module = loaded.module
        self.encoder = (module.encoder if isinstance(module, SpectrogramClassifier) else module).eval()
        self.encoder.requires_grad_(requires_grad=False)
        self.normalisation = loaded.description.normalisation
        self.parts = parts
        config = self.encoder.config
        self._apart = config.grid[0] * config.width <= _MOST_NUMBERS
        self.width = config.grid[0] * config.width if self._apart else config.width

    @torch.no_grad()
    def __call__(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        """Vectors of clips [batch, frames, mels] as they are stored: float32 [batch, parts, width]."""
        return self.encoded(self.normalisation(spectrogram, frames), frames)

    @torch.no_grad()
    def encoded(self, x: Tensor, frames: Tensor) -> Tensor:
        """Vectors of clips [batch, frames, mels] that are normalised as it knows them."""
        self.encoder.to(x.device)
        output = self.encoder(x, frames=frames)
        real = self.encoder.config.real_columns(frames, output.grid[1])
        tokens = output.tokens[:, PREFIX_TOKENS:].float()
        cells = pool_cells(tokens, grid=output.grid, parts=self.parts, real_columns=real)
        by_row = cells.view(len(cells), output.grid[0], self.parts, -1)
        vectors: Tensor = by_row.transpose(1, 2).flatten(2) if self._apart else by_row.mean(1)
        return vectors


class DistillObjective(nn.Module):
    """A student that gives a teacher's vectors.

    Args:
        encoder: What is trained.
        normalisation: How spectrograms are normalised for the encoder.
        settings: Parts, loss and projection.
        views: How the student's views are drawn; clips are never mixed.
        target: What the teacher's vectors are like.
        frames: Mean number of frames of sound in a clip.
        teacher: Asked about each view, in training; None learns from the vectors that come with the clips.
        joined: An objective on the same encoder that is learned beside.
        seed: Seed of views.

    Attributes:
        monitor: Name of the metric that tells better models, and whether higher is better.
        compares_clips: Whether the loss is that of a whole batch, see `tymbal.objectives.contract.Objective`.
    """

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        *,
        normalisation: Normalisation,
        settings: DistillSettings,
        views: SpectrogramViews,
        target: Target,
        frames: float,
        teacher: TeacherEncoder | None = None,
        joined: LeJEPAObjective | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # Unused parameters stop distributed training.
        self.encoder.mask_token.requires_grad = False
        self.normalisation = normalisation
        self.views = replace(views, mix=0.0)
        self.seed = seed
        self._teacher = teacher
        config = encoder.config
        rows, columns = config.grid
        self.settings = settings = settings.fitted(DataChoice(full_height=rows == 1))
        self.parts = settings.parts or 1
        real = min(max(math.ceil(frames / config.stride[1]), 1), columns)
        seen = 1.0 if settings.seen is None else settings.seen
        self._seen = max(1, round(seen * rows * real)) if seen < 1 else None
        self.monitor: tuple[str, bool] = (
            "teacher_cosine" if settings.teacher_loss == "cosine" else "fit",
            True,
        )
        self.register_buffer("target_mean", target.mean)
        self.register_buffer("target_deviation", target.deviation)
        width, given = rows * self.parts * config.width, target.mean.numel()
        self.norm: nn.Module = Standardisation(width) if settings.student_norm == "batch" else nn.Identity()
        hidden = settings.projection_hidden * config.width
        layers = [nn.Linear(width, given)]
        if settings.projection_layers == 2:
            layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, given)]  # type: ignore[list-item]
        self.projection = nn.Sequential(*layers)
        self.joined = None if joined is None else joined.beside()
        self.compares_clips = joined is not None

    target_mean: Tensor
    target_deviation: Tensor

    def forward(
        self, spectrogram: Tensor, frames: Tensor, row: Tensor, epoch: Tensor, target: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Computes the loss of a batch.

        Args:
            spectrogram: Log-mel values, any float type, [batch, frames, mels].
            frames: Frames of sound, int64 [batch].
            row: Row of each clip in its store, int64 [batch].
            epoch: Epoch of each clip, int64 [batch].
            target: The teacher's vectors of the clips, float32 [batch, parts, width]; None asks it about each view.

        Returns:
            `loss`, a float32 scalar, and `sums`, sums over the clips (`count` of them) of what `metrics` reports.
        """
        keys = fold(self.seed, epoch if self.training else torch.full_like(epoch, EVALUATION), row)
        clips = self.normalisation(spectrogram, frames)
        grid = self.encoder.config.grid_of(clips.shape[1])
        if self.training:
            # A teacher that is asked, and a function of the user's own, are given whole views.
            whole = self._teacher is not None or not self.encoder.config.cuts_apart or bool(self.views.functions)
            view, ends, visible = self._view(clips, frames, keys, whole=whole)
            if self._teacher is not None:
                target = self._teacher(_as_stored(view, clips, spectrogram, frames), ends)
            columns = None if whole or visible is None else grid[1]
            given = self._projected(view, ends, grid, visible, columns)
        else:
            given = self._projected(clips, frames, grid)
        if target is None:
            raise ValueError("the clips come without the teacher's vectors, and there is no teacher to ask")
        with torch.autocast(given.device.type, enabled=False):
            wanted = self.standardised(target)
            count = torch.full((), len(row), dtype=torch.float32, device=given.device)
            loss = self._distance(given, wanted)
            sums = {
                "count": count,
                "error": (given - wanted).detach().square().sum(),
                "variance": wanted.square().sum(),
                "teacher_cosine": F.cosine_similarity(given.detach(), wanted, dim=2).mean(1).sum(),
            }
        if self.joined is not None:
            beside = self.joined(spectrogram=spectrogram, frames=frames, row=row, epoch=epoch)
            sums |= {f"lejepa_{name}": value for name, value in beside["sums"].items() if name != "count"}
            loss = loss + self.settings.joined_weight * beside["loss"]
        return {"loss": loss, "sums": {**sums, "loss": loss.detach() * count}}

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Turns summed figures into `loss`, `fit`, `teacher_cosine`, and those of an objective beside."""
        count = float(sums["count"])
        means = {name: float(sums[name]) / count for name in sums if name not in ("count", "error", "variance")}
        return {"fit": 1 - float(sums["error"]) / max(float(sums["variance"]), 1e-12), **means}

    def standardised(self, vectors: Tensor) -> Tensor:
        """The teacher's vectors [batch, parts, width], number by number over the training clips; constant ones as 0."""
        deviation = self.target_deviation
        least = _LEAST_DEVIATION * torch.maximum(self.target_mean.abs(), torch.ones_like(deviation))
        scaled = (vectors.float() - self.target_mean) / deviation.clamp(min=1e-30)
        return torch.where(deviation > least, scaled, 0.0)

    @torch.no_grad()
    def predicted(self, clips: Tensor, frames: Tensor) -> Tensor:
        """What the student takes for the teacher's standardised vectors of normalised clips: [batch, parts, width]."""
        return self._projected(clips, frames, self.encoder.config.grid_of(clips.shape[1]))

    def head_state(self) -> dict[str, Tensor]:
        """What is trained beside the encoder, and the scale of the teacher's vectors."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `head_state` gave.

        Raises:
            ModelError: Where a part is missing or has another shape.
        """
        load_heads(self.head_state(), state, advice="It is of another teacher, patch or number of parts.")

    @torch.no_grad()
    def shown(self, spectrogram: Tensor, frames: Tensor, row: Tensor, *, epoch: int = 0) -> dict[str, View]:
        """As of `tymbal.objectives.contract.ViewingObjective`."""
        keys = fold(self.seed, torch.full_like(row, epoch), row)
        view, ends, visible = self._view(spectrogram, frames, keys)
        shown = {"the student's view": View.from_tensors(view, ends, visible, self.encoder.config)}
        return shown if self.joined is None else {**shown, **self.joined.shown(spectrogram, frames, row, epoch=epoch)}

    def _view(
        self, clips: Tensor, frames: Tensor, keys: Tensor, *, whole: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The student's view of each clip, or the patches alone that it sees of it, where it does not see all.

        With its frames of sound, and the numbers of the patches that are seen.
        """
        drawn_keys, length = fold(keys, _VIEW), clips.shape[1]
        warps = drawn_warps(frames, drawn_keys, self.views, most=length)
        visible, config = self._visible(warps.ends, keys, length), self.encoder.config
        view, ends = spectrogram_views(
            clips,
            frames,
            drawn_keys,
            self.views,
            padding=self.normalisation.normal_padding,
            scale=None,  # nothing is mixed
            warps=warps,
            patches=None if whole or visible is None else Patches(config.patch, config.grid_of(length), visible),
        )
        return view, ends, visible

    def _visible(self, ends: Tensor, keys: Tensor, length: int) -> Tensor | None:
        """Numbers of the patches that the student sees of views of so many frames, [batch, seen]; None is all."""
        config = self.encoder.config
        if self._seen is None:
            return None
        rows, columns = config.grid_of(length)
        heard = torch.arange(columns, device=ends.device) < config.real_columns(ends, columns)[:, None]
        return visible_patches(fold(keys, _VIEW), heard.repeat(1, rows), self._seen)

    def _projected(
        self,
        view: Tensor,
        ends: Tensor,
        grid: tuple[int, int],
        visible: Tensor | None = None,
        columns: int | None = None,
    ) -> Tensor:
        """What the student makes of views, or of their patches: float32 [batch, parts of the teacher, width]."""
        config = self.encoder.config
        encoded = self.encoder(view, visible=visible, frames=ends, columns=columns)
        tokens = encoded.tokens[:, PREFIX_TOKENS:]
        real = config.real_columns(ends, grid[1])
        cells = pool_cells(tokens, grid=grid, parts=self.parts, real_columns=real, patches=visible)
        with torch.autocast(cells.device.type, enabled=False):
            projected: Tensor = self.projection(self.norm(cells.float().flatten(1)))
            return projected.view(-1, *self.target_mean.shape)

    def _distance(self, given: Tensor, wanted: Tensor) -> Tensor:
        if self.settings.teacher_loss == "cosine":
            return (1 - F.cosine_similarity(given, wanted, dim=2)).mean()
        return (F.mse_loss if self.settings.teacher_loss == "squared" else F.smooth_l1_loss)(given, wanted)


def _as_stored(view: Tensor, clips: Tensor, spectrogram: Tensor, frames: Tensor) -> Tensor:
    """Views of normalised clips on the scale of the store, which other models normalise in their own way.

    What lies behind their ends is not on it: whoever normalises them replaces that by padding.
    """
    mean, deviation = _clip_moments(spectrogram.float(), frames)
    own_mean, own_deviation = _clip_moments(clips, frames)
    return (view - own_mean) * (deviation / own_deviation.clamp(min=1e-6)) + mean


def _clip_moments(values: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the sound of each clip [batch, frames, mels]: [batch, 1, 1] both."""
    behind = (torch.arange(values.shape[1], device=frames.device) >= frames[:, None]).unsqueeze(2)
    count = (frames.clamp(min=1) * values.shape[2]).view(-1, 1, 1)
    mean = values.masked_fill(behind, 0.0).sum((1, 2), keepdim=True) / count
    squares = (values - mean).masked_fill(behind, 0.0).square().sum((1, 2), keepdim=True)
    return mean, (squares / count).sqrt()


def _build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: DistillSettings
) -> DistillObjective:
    views, frames = drawn_views(settings), float(data.real_frames.mean())
    settle_padding(encoder, data, settings)
    shared: dict[str, Any] = {"normalisation": normalisation, "settings": settings, "frames": frames}
    joined = LeJEPAObjective(encoder, views=views, seed=settings.seed, **shared) if settings.with_ else None
    teacher = None
    if settings.teacher_views and settings.teacher is not None and data.taught is not None:
        teacher = TeacherEncoder(load_model(settings.teacher), parts=data.taught.parts)
    return DistillObjective(
        encoder, views=views, target=Target.of(data), teacher=teacher, joined=joined, seed=settings.seed, **shared
    )


OBJECTIVE = ObjectiveSpec(settings=DistillSettings, build=_build)
