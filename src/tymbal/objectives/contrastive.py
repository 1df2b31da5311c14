"""Contrastive learning: two views of a clip shall be alike, and unlike those of all other clips.

NT-Xent (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"): each view has to
find the other one of its clip among all views of the batch, by the cosine of their projections over a temperature. Both
directions count. Negatives come from all processes; other versions of the same clip are no negatives.

Views come in pairs, or are drawn here from one spectrogram a clip (`tymbal.views.spectrogram_views`), so that any store
will do. With `view_mask` the encoder sees only a part of each: random patches, or with `crossed` masks of the first one
whole columns of time, of the second whole rows of frequency: what both must agree on is then not to be found in the
same places. Visible tokens are pooled by rows of mel bins and equal parts of the clip's own time, side by side: a mean
over all of them would not tell a low sound from a high one, nor a word from its reverse. The projection has batch norm,
of the batch of all processes.

Clips that are shorter than their window have silence behind them, which a view may have moved. As in embedding and
probing it has no part in normalising a clip, nor in its embedding, else their length would separate clips.
Where it lies is known from the clip's length and from what was drawn; of pairs on the disk the index tells which clips
are short, and the value of a frame whether it is silence. Masked cells have no part in it, either.

A batch larger than memory is encoded in parts whose activations are computed again in the backward pass (gradient
caching, Gao et al. 2021): the loss is that of the whole batch.

Logged beside the loss: `alignment` and `uniformity` (Wang & Isola 2020), `acc`, how often the other view is the nearest
neighbour, `chance`, the loss of guessing, and `rank`, the effective rank of the embeddings (Roy & Vetterli 2007): 1
where all are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tymbal.compute.processes import gather_batch, processes, rank
from tymbal.errors import SettingsError
from tymbal.features.normalisation import LOG_FLOOR, Normalisation
from tymbal.models.classifier import pool_cells
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.objectives.contract import ObjectiveSpec, View, load_heads
from tymbal.objectives.lejepa import visible_patches
from tymbal.progress import tell
from tymbal.randomness import EVALUATION, bits, fold
from tymbal.settings import ViewPairSettings
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.settings.fields import check, setting
from tymbal.store.base import SpectrogramSource
from tymbal.views.augmentation_config import read_spectrogram_views
from tymbal.views.spectrogram_views import spectrogram_views

__all__ = [
    "OBJECTIVE",
    "ContrastiveObjective",
    "ContrastiveSettings",
    "ViewMask",
    "crossed_masks",
    "effective_rank",
    "nt_xent",
]

ViewMask = Literal["none", "crossed", "random"]

_TIME, _FREQUENCY = 50, 51  # streams of random numbers
_COLLAPSED = 2.0
_SILENCE = LOG_FLOOR + 0.01  # what float16 leaves of it
_CHANCE = 0.95
_STILL_AT_CHANCE = 3


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(ViewPairSettings):
    """Contrastive learning on two views of each clip.

    Attributes:
        temperature: Divisor of the cosines.
        projection: Width of the projection that views are compared in.
        projection_norm: Batch norm in the projection, which is then twice as wide inside as the encoder.
        projection_parts: Equal parts of a clip's time that the projection sees side by side, each by rows of mel bins.
            0 is one mean over all patches.
        negatives: What a view is told from: the views of `all` other clips of the batch, or of those of its own `group`
            (recorder, speaker) only, so that telling groups apart is of no use.
        view_mask: What the encoder sees of each view: all of it; `random` patches of its sound; or `crossed`: of one
            view whole columns of time are hidden, of the other whole rows of frequency. What is hidden costs nothing.
        view_mask_ratio: Fraction of patches, or of columns and of rows, that is hidden then.
        view_padding: How it is known where a view has no sound: `carried` from the clip's length and from what was
            drawn, where views are made in the course of the training, and without a part for masked cells in the mean
            and the deviation of a clip; or `found` by its value alone, as runs of earlier versions do.
        chunk: Clips that are encoded at once; a larger batch is computed again by parts in the backward pass, so that
            it takes no more memory. `None` is the whole batch.
    """

    draws_views: ClassVar[bool] = True

    batch_size: int = 64
    learning_rate: float = 5e-4
    eval_every: float = 1
    objective: Literal["contrastive"] = "contrastive"
    temperature: float = 0.1
    projection: int = 128
    projection_norm: bool = setting(True, before=False)
    projection_parts: int = setting(4, before=0)
    negatives: Literal["all", "group"] = setting("all", before="all")
    view_mask: Literal["none", "crossed", "random"] = "none"
    view_mask_ratio: float = 0.5
    view_padding: Literal["carried", "found"] = setting("carried", before="found", describes_model=False)
    chunk: int | None = setting(None, describes_model=False, example="64")

    def __post_init__(self) -> None:
        ViewPairSettings.__post_init__(self)
        check(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        check(self.projection >= 1, "projection", self.projection, "1 or more")
        check(self.projection_parts >= 0, "projection_parts", self.projection_parts, "0 or more")
        check(0 < self.view_mask_ratio < 1, "view_mask_ratio", self.view_mask_ratio, "a fraction between 0 and 1")
        check(self.chunk is None or self.chunk >= 1, "chunk", self.chunk, "1 or more")

    @property
    def carries_padding(self) -> bool:
        """Whether fresh views come with what is sound in them, and what is masked."""
        return self.view_padding == "carried"


class _Views(NamedTuple):
    """One view of each of some clips, as `ContrastiveObjective.embed` is given it."""

    views: Tensor
    row: Tensor
    epoch: Tensor
    heard: Tensor | None
    masked: Tensor | None


class ContrastiveObjective(nn.Module):
    """Two views of a clip against all others.

    Args:
        encoder: The encoder to train.
        normalisation: How spectrograms are normalised for the encoder.
        clips: A number a clip, of each row of the store, int64 [rows]: rows of one clip are no negatives of each other.
        padded: Whether the clip of each row is shorter than its window, bool [rows]. None is none of them.
        temperature: Divisor of the cosines.
        projection: Width of the projection.
        norm: Batch norm in the projection, of the batch of all processes.
        parts: Parts of a clip's time that the projection sees, by rows; 0 is one mean over all patches.
        groups: The group of each clip, by its number, int64 [clips]: others' clips are no negatives. None is one group.
        mask: `random` or `crossed` shows the encoder only a part of each view.
        mask_ratio: Fraction of patches, or of columns and of rows, that is hidden then.
        real: Mean number of frames of sound in a clip: it decides how many patches a random mask shows. None is all.
        carried: Leave masked cells out of a clip's mean and deviation, and evaluate whole batches.
        views: How views are drawn from single spectrograms; None where it is given pairs.
        chunk: Clips that are encoded at once; None is the whole batch.
        seed: Seed of views and masks.

    Attributes:
        monitor: Name of the metric that tells better models, and whether higher is better.
        compares_clips: Whether it is evaluated by whole batches, see `tymbal.objectives.contract.Objective`.
    """

    clips: Tensor
    padded: Tensor
    groups: Tensor | None

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        *,
        normalisation: Normalisation,
        clips: Tensor,
        padded: Tensor | None = None,
        temperature: float = 0.1,
        projection: int = 128,
        norm: bool = False,
        parts: int = 0,
        groups: Tensor | None = None,
        mask: ViewMask = "none",
        mask_ratio: float = 0.5,
        real: float | None = None,
        carried: bool = False,
        views: SpectrogramViews | None = None,
        chunk: int | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # Unused parameters stop distributed training.
        self.encoder.mask_token.requires_grad = False
        self.normalisation = normalisation
        self.temperature = temperature
        self.mask = mask
        self.mask_ratio = mask_ratio
        self.chunk = chunk
        self.seed = seed
        self.monitor: tuple[str, bool] = ("acc", True)
        self.norm = norm
        self.parts = parts
        self.carried = self.compares_clips = carried
        self.views = views
        config = encoder.config
        width, (rows, columns) = config.width, config.grid
        seen = columns if real is None else min(max(math.ceil(real / config.stride[1]), 1), columns)
        self._shown = max(1, round((1 - mask_ratio) * rows * seen))
        cells = max(rows * parts, 1)
        if norm:
            inner: list[nn.Module] = [nn.Linear(cells * width, 2 * width), nn.BatchNorm1d(2 * width), nn.GELU()]
            self.projection = nn.Sequential(*inner, nn.Linear(2 * width, projection))
        else:
            inner = [nn.Linear(cells * width, width), nn.GELU()]
            self.projection = nn.Sequential(*inner, nn.Linear(width, projection))
        self.register_buffer("clips", clips.long(), persistent=False)
        self.register_buffer("groups", None if groups is None else groups.long(), persistent=False)
        padded = torch.zeros(len(clips), dtype=torch.bool) if padded is None else padded
        self.register_buffer("padded", padded, persistent=False)
        self._warned = False
        self._idle = 0

    def forward(
        self,
        spectrogram: Tensor,
        row: Tensor,
        epoch: Tensor,
        *,
        frames: Tensor | None = None,
        heard: Tensor | None = None,
        masked: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Computes the loss of a batch.

        Args:
            spectrogram: Log-mel values of both views, any float type: [batch, 2, frames, mels]; or of the clips, where
                views are drawn here: [batch, frames, mels].
            row: Row of each clip in its store: int64 [batch].
            epoch: Epoch of each clip: int64 [batch].
            frames: Frames of sound in each clip, int64 [batch], where views are drawn here.
            heard: Which frames of each view are sound, bool [batch, 2, frames]. None finds silence by its value.
            masked: Which cells of each view are masked, bool [batch, 2, frames, mels]. None finds them by their value.

        Returns:
            `loss`, a float32 scalar, and `sums`, sums over the clips (`count` of them) of what `metrics` reports.
        """
        if self.views is not None and frames is not None:
            spectrogram, heard = self._drawn(spectrogram, frames, row, epoch, self.views)
        views = [
            self.embed(
                spectrogram[:, view],
                row,
                epoch,
                view=view,
                heard=None if heard is None else heard[:, view],
                masked=None if masked is None else masked[:, view],
            )
            for view in range(2)
        ]
        embeddings = torch.stack(views)
        with torch.autocast(embeddings.device.type, enabled=False):
            # Batch norm wants the whole batch; without it each process projects its own part.
            together = self.norm and self.training
            everyone = gather_batch(embeddings, dim=1) if together else embeddings
            clips = gather_batch(self.clips[row]) if together else self.clips[row]
            projected = F.normalize(self._project(everyone.float()), dim=-1)
            everywhere = self.training and not self.norm
            found = _compare(projected, clips, temperature=self.temperature, everywhere=everywhere, groups=self.groups)
            figures = self._figures(found, len(row), projected, embeddings)
        count = torch.full_like(found.loss, len(row), requires_grad=False)
        return {"loss": found.loss, "sums": {"count": count, **figures}}

    def embed(
        self,
        views: Tensor,
        row: Tensor,
        epoch: Tensor,
        *,
        view: int,
        heard: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> Tensor:
        """Encodes one view of each clip, and pools its tokens of sound.

        Args:
            views: [batch, frames, mels]; already normalised where views are drawn here.
            row: Row of each clip in its store, int64 [batch].
            epoch: Epoch of each clip, int64 [batch].
            view: Number of the view, 0 or 1.
            heard: Which frames are sound, bool [batch, frames]; None finds silence by its value.
            masked: Which cells are masked, bool [batch, frames, mels]; None finds them by their value.

        Returns:
            [batch, width], or with parts [batch, rows x parts x width].
        """
        given = _Views(views, row, epoch, heard, masked)
        size = len(views) if self.chunk is None else self.chunk
        if size >= len(views):
            return self._encode(given, view)
        count = math.ceil(len(views) / size)
        split = ([None] * count if one is None else torch.split(one, size) for one in given)
        parts = [_Views(*part) for part in zip(*split, strict=True)]
        if not torch.is_grad_enabled():
            return torch.cat([self._encode(part, view) for part in parts])
        return torch.cat([cast(Tensor, checkpoint(self._encode, part, view, use_reentrant=False)) for part in parts])

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Turns summed figures into `loss`, `acc`, `alignment`, `uniformity`, `chance` and `rank`.

        Warns of a collapse, and where the loss of some evaluations in a row is that of guessing, with `alarm_chance`.
        """
        count = float(sums["count"])
        directions = effective_rank(torch.as_tensor(sums["moment"]))
        figures = {name: float(sums[name]) / count for name in ("loss", "acc", "alignment", "uniformity", "chance")}
        figures["rank"] = directions
        if not self.training:
            self._idle = self._idle + 1 if figures["loss"] > _CHANCE * figures["chance"] else 0
            if self._idle == _STILL_AT_CHANCE:
                figures["alarm_chance"] = 1.0
                tell(
                    f"The loss has stayed at chance for {_STILL_AT_CHANCE} evaluations: {figures['loss']:.2f}, where "
                    f"guessing has {figures['chance']:.2f}. Try weaker views, a longer --warmup, a higher "
                    "--learning-rate, or another --patch (128x4 for short vocal sound).",
                    warning=True,
                )
        if directions < _COLLAPSED and count > 1 and not self._warned:
            self._warned = True
            tell(
                f"The embeddings have collapsed: their effective rank is {directions:.2f}. Try a larger batch, a lower "
                "learning rate or another temperature, and look at the views (tymbal prepare --preview).",
                warning=True,
            )
        return figures

    def head_state(self) -> dict[str, Tensor]:
        """Trained weights beside the encoder's: the projection."""
        return {f"projection.{name}": value for name, value in self.projection.state_dict().items()}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `head_state` returned.

        Raises:
            ModelError: Where a part is missing or has another shape.
        """
        load_heads(self.head_state(), state, advice="They are of another projection.")

    @torch.no_grad()
    def _drawn(
        self, spectrogram: Tensor, frames: Tensor, row: Tensor, epoch: Tensor, views: SpectrogramViews
    ) -> tuple[Tensor, Tensor]:
        """Draws two views of each clip: normalised [batch, 2, frames, mels], and their sound, bool [batch, 2, frames].

        In training the clips of all processes may be laid over each other.
        """
        clips = self.normalisation(spectrogram, frames)
        others, lengths, first = clips, frames, 0
        if self.training and views.mix > 0:
            others, lengths = gather_batch(clips), gather_batch(frames)
            first = 0 if len(others) == len(clips) else rank() * len(clips)
        return self._views_of(clips, frames, self._keys(row, epoch), views, (others, lengths, first))

    def _views_of(
        self,
        clips: Tensor,
        frames: Tensor,
        keys: Tensor,
        views: SpectrogramViews,
        others: tuple[Tensor, Tensor, int],
    ) -> tuple[Tensor, Tensor]:
        """Two views of each of some normalised clips, as `_drawn`; with those laid over them, and their place there."""
        drawn, ends = spectrogram_views(
            clips,
            frames,
            fold(keys, torch.arange(2, device=keys.device)[:, None]).flatten(),
            views,
            padding=self.normalisation.normal_padding,
            scale=2 * self.normalisation.std,
            others=others[:2],
            first=others[2],
        )
        heard = torch.arange(drawn.shape[1], device=drawn.device) < ends[:, None]
        pairs = drawn.view(2, -1, *drawn.shape[1:]).transpose(0, 1)
        return pairs, heard.view(2, -1, heard.shape[1]).transpose(0, 1)

    @torch.no_grad()
    def shown(self, spectrogram: Tensor, frames: Tensor, row: Tensor, *, epoch: int = 0) -> dict[str, View]:
        """As of `tymbal.objectives.contract.ViewingObjective`.

        Raises:
            SettingsError: The views are not drawn from spectrograms, but of a store of pairs or of the waveform.
        """
        if self.views is None:
            raise SettingsError(
                "the views of this objective are made from the waveform",
                advice="Look at them with: tymbal prepare --preview.",
            )
        epochs = torch.full_like(row, epoch)
        keys = fold(self.seed, epochs, row)
        drawn, heard = self._views_of(spectrogram, frames, keys, self.views, (spectrogram, frames, 0))
        config, views = self.encoder.config, {}
        for view in range(2):
            grid = config.grid_of(drawn.shape[2])
            columns = heard[:, view].unfold(1, config.patch[1], config.stride[1]).any(2)[:, : grid[1]]
            visible = self._visible(keys, columns, grid, view)
            views[f"view {view + 1}"] = View.from_tensors(drawn[:, view], heard[:, view].sum(1), visible, config)
        return views

    def _keys(self, row: Tensor, epoch: Tensor) -> Tensor:
        return fold(self.seed, epoch if self.training else torch.full_like(epoch, EVALUATION), row)

    def _encode(self, part: _Views, view: int) -> Tensor:
        views, row, epoch, heard, masked = part
        if heard is None:
            heard = ~((views <= _SILENCE).all(2) & self.padded[row][:, None])
        if self.views is not None:
            x = views
        else:
            if self.carried and masked is None:
                masked = views <= _SILENCE
            x = self.normalisation.without(views, ~heard, masked=masked if self.carried else None)
        grid = self.encoder.config.grid_of(views.shape[1])
        patch, stride = self.encoder.config.patch[1], self.encoder.config.stride[1]
        columns = heard.unfold(1, patch, stride).any(2)[:, : grid[1]]
        visible = self._visible(self._keys(row, epoch), columns, grid, view)
        tokens = self.encoder(x, visible=visible).tokens[:, PREFIX_TOKENS:].float()
        if self.parts:
            return self._cells(tokens, columns, grid, visible)
        weight = columns.unsqueeze(1).expand(-1, grid[0], -1).flatten(1).float()
        if visible is not None:
            weight = weight.gather(1, visible)
        # A view of nothing but silence is embedded, too.
        weight = torch.where(weight.any(1, keepdim=True), weight, 1.0).unsqueeze(2)
        return cast(Tensor, (tokens * weight).sum(1) / weight.sum(1))

    def _visible(self, keys: Tensor, columns: Tensor, grid: tuple[int, int], view: int) -> Tensor | None:
        """Numbers of the patches that the encoder sees, int64 [batch, visible]; None is all."""
        if self.mask == "none":
            return None
        if self.mask == "crossed":
            return crossed_masks(keys, grid, ratio=self.mask_ratio, heard=columns)[view]
        return visible_patches(fold(keys, view), columns.repeat(1, grid[0]), min(self._shown, grid[0] * grid[1]))

    def _cells(self, tokens: Tensor, columns: Tensor, grid: tuple[int, int], visible: Tensor | None) -> Tensor:
        """Pools by rows and equal parts of the columns with sound, one behind the other wherever they lie."""
        place = (~columns).long().argsort(dim=1, stable=True).argsort(dim=1)
        row = torch.arange(grid[0], device=place.device)[:, None]
        numbers = (row * grid[1] + place[:, None]).flatten(1)
        patches = numbers if visible is None else numbers.gather(1, visible)
        real = columns.sum(1)
        return pool_cells(tokens, grid=grid, parts=self.parts, real_columns=real, patches=patches).flatten(1)

    def _project(self, embeddings: Tensor) -> Tensor:
        """Projections of [views, batch, cells x width]."""
        if self.norm:  # the statistics are those of both views
            return cast(Tensor, self.projection(embeddings.flatten(0, 1)).view(*embeddings.shape[:2], -1))
        return cast(Tensor, self.projection(embeddings))

    @torch.no_grad()
    def _figures(self, found: _Found, own: int, projected: Tensor, embeddings: Tensor) -> dict[str, Tensor]:
        """Sums over the `own` clips of this process; `moment` is that of the embeddings' directions.

        Where the clips of all processes are projected, their mean counts for each of those of this one.
        """
        clips = projected.shape[1]
        distances = (projected[0] - projected[1]).square().sum(dim=1)
        flat = projected.flatten(0, 1)
        gram = flat @ flat.T
        others = ~torch.eye(len(flat), dtype=torch.bool, device=gram.device)
        spread = (torch.where(others, (-4 * (1 - gram)).exp(), 0.0).sum() / others.sum()).log()
        if self.parts:  # the directions of the mean, whose number does not grow with that of the parts
            embeddings = embeddings.view(*embeddings.shape[:2], -1, self.encoder.config.width).mean(2)
        directions = F.normalize(embeddings.flatten(0, 1), dim=1)
        directions = F.pad(directions, (0, 1), value=1.0)  # the last column counts and sums
        return {
            "loss": found.loss.detach() * own,
            "acc": found.hits.sum() / 2 * (own / clips),
            "alignment": distances.sum() * (own / clips),
            "uniformity": spread * own,
            "chance": found.chance * own,
            "moment": directions.T @ directions,
        }


def nt_xent(
    projected: Tensor,
    clips: Tensor,
    *,
    temperature: float,
    everywhere: bool = False,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """NT-Xent: the cross entropy of identifying each clip's other view among the views of all clips.

    Args:
        projected: Both views of each clip, of length 1, float32 [2, batch, width].
        clips: A number a clip, int64 [batch].
        temperature: Divisor of the cosines.
        everywhere: Take the clips of all processes as negatives, where there are several.
        groups: The group of each clip by its number, int64 [numbers]: only clips of one group are negatives of each
            other. None is one group.

    Returns:
        Mean cross entropy of both directions, and whether the other view is the nearest of all, bool [2 * batch].
    """
    found = _compare(projected, clips, temperature=temperature, everywhere=everywhere, groups=groups)
    return found.loss, found.hits


class _Found(NamedTuple):
    """The loss, whether the other view is the nearest, bool [2 * batch], and the loss of guessing."""

    loss: Tensor
    hits: Tensor
    chance: Tensor


def _compare(
    projected: Tensor, clips: Tensor, *, temperature: float, everywhere: bool, groups: Tensor | None
) -> _Found:
    own = projected.flatten(0, 1)
    views, names = projected, clips
    first = 0
    if everywhere and processes() > 1:
        views, names, first = _gathered(projected, clips)
    everything, numbers = views.flatten(0, 1), names.repeat(2)
    total = len(names)
    place = first + torch.arange(len(clips), device=clips.device)
    itself, other = torch.cat([place, total + place]), torch.cat([total + place, place])
    scores = own @ everything.T / temperature
    alike = clips.repeat(2)[:, None] == numbers[None, :]
    if groups is not None:
        alike |= groups[clips].repeat(2)[:, None] != groups[numbers][None, :]
    alike = alike.scatter(1, other[:, None], False)  # noqa: FBT003
    alike = alike.scatter(1, itself[:, None], True)  # noqa: FBT003
    scores = scores.masked_fill(alike, -torch.inf)
    chance = (~alike).sum(dim=1).float().log().mean()
    return _Found(F.cross_entropy(scores, other), scores.argmax(dim=1) == other, chance)


def crossed_masks(
    keys: Tensor, grid: tuple[int, int], *, ratio: float, heard: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Visible patches of both views: of the first whole columns of time are hidden, of the second whole rows.

    Args:
        keys: A key a clip, int64 [batch].
        grid: Rows (frequency) and columns (time) of patches.
        ratio: Fraction of columns, and of rows, that is hidden; at least one stays.
        heard: Columns that hold sound, bool [batch, columns], of which the same fraction is hidden; None is all.

    Returns:
        Numbers of the visible patches, ascending: int64 [batch, visible] of each view.
    """
    rows, columns = grid
    row, column = torch.arange(rows, device=keys.device), torch.arange(columns, device=keys.device)
    visible = _visible(keys, columns, ratio, _TIME, heard)
    first = (row[None, :, None] * columns + visible[:, None, :]).flatten(1)
    visible = _visible(keys, rows, ratio, _FREQUENCY)
    second = (visible[:, :, None] * columns + column[None, None, :]).flatten(1)
    return first, second


def effective_rank(moment: Tensor) -> float:
    """Exponential of the entropy of the covariance's eigenvalues: the number of directions that are in use.

    Args:
        moment: Sum of the outer products of the embeddings, each with a 1 behind it, [width + 1, width + 1].
    """
    moment = moment.double()
    mean = moment[:-1, -1] / moment[-1, -1]
    covariance = moment[:-1, :-1] / moment[-1, -1] - mean[:, None] * mean[None, :]
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    if float(values.sum()) < 1e-9:
        return 1.0
    share = values / values.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-30).log()).sum()))


def _visible(keys: Tensor, count: int, ratio: float, stream: int, heard: Tensor | None = None) -> Tensor:
    """Numbers of the visible ones of `count` columns or rows, ascending: int64 [batch, visible]."""
    num_visible = min(max(count - round(ratio * count), 1), count)
    place = bits(keys, count, stream=stream).argsort(dim=1, stable=True).argsort(dim=1)
    if heard is not None:
        # Order: visible sound, then silence, then hidden sound.
        rank = torch.where(heard, place, place + count).argsort(dim=1).argsort(dim=1)
        sound = heard.sum(dim=1, keepdim=True)
        stays = rank < (sound - (ratio * sound).round()).clamp(min=1)
        place = place + count * torch.where(heard, torch.where(stays, 0, 2), 1)
    return place.argsort(dim=1)[:, :num_visible].sort(dim=1).values


def _gathered(projected: Tensor, clips: Tensor) -> tuple[Tensor, Tensor, int]:
    """Views and clips of all processes, and where those of this one begin; gradients flow to all of them."""
    counts: list[int] = gather_batch(torch.tensor([len(clips)], device=clips.device)).tolist()
    return gather_batch(projected, dim=1), gather_batch(clips), sum(counts[: rank()])


def _build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: ContrastiveSettings
) -> ContrastiveObjective:
    singles = data.views == 1 and data.samples is None
    frames = data.real_frames if singles else data.clip_frames()
    numbers = data.clip_numbers()
    return ContrastiveObjective(
        encoder,
        normalisation=normalisation,
        clips=torch.from_numpy(numbers),
        padded=torch.from_numpy(data.padded_clips()),
        temperature=settings.temperature,
        projection=settings.projection,
        norm=settings.projection_norm,
        parts=settings.projection_parts,
        groups=_groups(data, numbers) if settings.negatives == "group" else None,
        mask=settings.view_mask,
        mask_ratio=settings.view_mask_ratio,
        real=float(frames.mean()),
        carried=settings.carries_padding,
        views=read_spectrogram_views(settings.augmentations) if singles else None,
        chunk=settings.chunk,
        seed=settings.seed,
    )


def _groups(data: SpectrogramSource, numbers: NDArray[np.int64]) -> Tensor:
    """The group of each clip, by the clip's number; clips without one make up a group of their own.

    Raises:
        SettingsError: The data have no groups.
    """
    groups = torch.zeros(int(numbers.max()) + 1, dtype=torch.int64)
    groups[torch.from_numpy(numbers)] = torch.from_numpy(data.required_groups("negatives is group"))
    return groups


OBJECTIVE = ObjectiveSpec(settings=ContrastiveSettings, build=_build)
