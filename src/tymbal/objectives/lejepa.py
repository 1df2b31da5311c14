"""LeJEPA: all views of a clip shall be embedded alike, and the embeddings of all clips together as a standard normal.

LeJEPA (Balestriero and LeCun 2025, arXiv:2511.08544) on views that are drawn from spectrograms: a few global ones, of
which the encoder sees half of the patches, and local ones, of which it sees a fifth; what is hidden is never computed.
The loss is (1 - w) times the mean squared distance of every view from the mean of the global ones, plus w times
SIGReg, which compares the embeddings of each view with a standard normal along random directions. There is no teacher,
no negative and no stopped gradient: what keeps embeddings from collapsing is SIGReg.

Visible tokens are pooled by rows of mel bins and by equal parts of the clip's own time, side by side, so that order in
time is not lost. With several processes the batch of all of them is gathered before clips are mixed and before the
projection: batch norm and SIGReg see what one process with that batch would.

Logged beside the loss: `agreement` (the first term), `sigreg` (the second), `acc`, how often the other global view of a
clip is the nearest among those of its batch, and `icc`, the intraclass correlation of the global views: which part of
what embeddings differ in is the clips' own. The best model is the one with the highest on the validation clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tymbal.compute.processes import gather_batch, rank
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import pool_cells
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.models.encoder_choice import is_filled
from tymbal.objectives.contract import ObjectiveSpec, View, load_heads
from tymbal.randomness import BITS, EVALUATION, bits, fold, uniform
from tymbal.settings import DataChoice, PretrainSettings
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.settings.fields import check, setting
from tymbal.settings.training import ENDLESS
from tymbal.store.base import SpectrogramSource
from tymbal.views.augmentation_config import read_spectrogram_views
from tymbal.views.spectrogram_views import Patches, Warps, drawn_warps, spectrogram_views

__all__ = [
    "OBJECTIVE",
    "LeJEPAObjective",
    "LeJEPASettings",
    "drawn_views",
    "settle_padding",
    "sigreg",
    "visible_patches",
]

_VISIBLE, _DIRECTIONS = 63, 64  # streams of random numbers
_OF_COLUMNS: dict[str, Any] = {"kept": 0.5, "kept_local": 0.2, "parts": 4, "sigreg_weight": 0.1}
_OF_SQUARES: dict[str, Any] = {"kept": 0.25, "kept_local": 0.1, "parts": 1, "sigreg_weight": 0.05}
"""What is seen of a view and compared, of patches as high as the spectrogram and of others."""
_PASSES = 30.0
"""Epochs with patches as high as the spectrogram, also where there are minutes for more: then few clips are learned by
heart, noise and all (digits, a speaker of the training clips left out: 34 passes read 67.7 %, 68 passes 63.3)."""


@dataclass(frozen=True, kw_only=True)
class LeJEPASettings(PretrainSettings):
    """LeJEPA on views that are drawn from spectrograms.

    Attributes:
        epochs: Passes over the training clips. Where they are not given: 30 with patches as high as the spectrogram;
            with others 100, or as many as fit into `max_minutes`.
        augmentations: YAML file that says, under `spectrogram_views`, how views are drawn; or a function of one's own
            that changes spectrograms, as `mypackage:tilted`, which then makes the views alone. `None` is
            configs/audio_augmentation_config.yaml where it is there, else the defaults.
        view_strength: What all strengths of the views are multiplied by.
        mixing: How another clip is laid over a view: its `levels` are averaged with the clip's own, so that quiet parts
            change as much as loud ones; or its `energies` are added, as sound in air does, which changes quiet parts
            most. `auto` adds energies where clips differ in their spectra alone, hardly in how they unfold (insects,
            engines), else averages levels.
        global_views: Global views of each clip, 2 or more.
        local_views: Local views of each clip.
        kept: Fraction of the patches of sound that the encoder sees of a global view. `None` is a half of patches as
            high as the spectrogram, a quarter of others.
        kept_local: The same of a local view; a fifth, or a tenth.
        parts: Equal parts of a clip's time that are compared each by itself. `None` is 4 for patches as high as the
            spectrogram, 1 for others.
        batches: Whether the clips of a batch are `mixed`, or of one `group` (speaker, recorder), so that they are not
            spread by what tells groups apart. `auto` is the latter where most clips are of groups that fill batches.
        sigreg_weight: Weight of SIGReg; the other term has 1 minus this. `None` is 0.1 for patches as high as the
            spectrogram, 0.05 for others.
        slices: Random directions of SIGReg, drawn anew each step.
        points: Points of its integral, on [-5, 5].
        projection: Width of the embeddings that are compared.
        projection_hidden: Hidden width of the projection, in widths of the encoder.
        attend_to_padding: Whether tokens attend to patches behind the end of a short clip. `None` is: where clips fill
            their window to nine tenths or more on average, so that stock transformers computes the same.
    """

    compares_views: ClassVar[bool] = True

    epochs: float = setting(ENDLESS, by_data=True, first=True, group="training")
    objective: Literal["lejepa"] = "lejepa"
    augmentations: str | None = setting(None, path=True, describes_model=False, example="configs/short_clips.yaml")
    view_strength: float = 1.0
    mixing: Literal["auto", "levels", "energies"] = setting(
        "auto", by_data=True, before="energies", describes_model=False
    )
    global_views: int = 2
    local_views: int = 1
    kept: float | None = setting(None, by_data=True, example="0.5")
    kept_local: float | None = setting(None, by_data=True, example="0.2")
    parts: int | None = setting(None, by_data=True, example="4")
    batches: Literal["auto", "group", "mixed"] = setting("auto", by_data=True, describes_model=False)
    sigreg_weight: float | None = setting(None, by_data=True, example="0.1")
    slices: int = 64
    points: int = 17
    projection: int = 64
    projection_hidden: int = 2
    attend_to_padding: bool | None = None

    def __post_init__(self) -> None:
        PretrainSettings.__post_init__(self)
        check(self.view_strength >= 0, "view_strength", self.view_strength, "0 or more")
        check(self.global_views >= 2, "global_views", self.global_views, "2 or more")
        check(self.local_views >= 0, "local_views", self.local_views, "0 or more")
        for name in ("kept", "kept_local"):
            value = getattr(self, name)
            check(value is None or 0 < value <= 1, name, value, "a fraction above 0, at most 1")
        check(self.parts is None or self.parts >= 1, "parts", self.parts, "1 or more")
        for name in ("slices", "projection", "projection_hidden"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(self.points >= 3, "points", self.points, "3 or more")
        weight = self.sigreg_weight
        check(weight is None or 0 < weight < 1, "sigreg_weight", weight, "a fraction between 0 and 1")

    @property
    def groups_batches(self) -> bool:
        """Whether the clips of a batch are to be of one group."""
        return self.batches == "group"

    @property
    def depends_on_structure(self) -> bool:
        """Whether anything is left to how the sound unfolds in time."""
        return self.mixing == "auto" or super().depends_on_structure

    def fitted(self, choice: DataChoice) -> Self:
        """These settings with all that they leave to the data; what is seen and compared depends on the patch."""
        settings = PretrainSettings.fitted(self, choice)
        defaults = _OF_COLUMNS if choice.full_height else _OF_SQUARES
        own = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.epochs == ENDLESS and (choice.full_height or self.max_minutes is None):
            own["epochs"] = _PASSES if choice.full_height else PretrainSettings.epochs
        if self.mixing == "auto":
            own["mixing"] = "energies" if choice.steady else "levels"
        if self.batches == "auto":
            own["batches"] = "group" if choice.grouped else "mixed"
        return replace(settings, **own)


class LeJEPAObjective(nn.Module):
    """Views of a clip that agree, and embeddings that are spread like a standard normal.

    Args:
        encoder: What is trained.
        normalisation: How spectrograms are normalised for the encoder.
        settings: Numbers of views, what is seen of them, parts and weights.
        views: How views are drawn.
        frames: Mean number of frames of sound in a clip: it decides how many patches a view shows.
        seed: Seed of views, visible patches and directions.

    Attributes:
        monitor: Name of the metric that tells better models, and whether higher is better.
        compares_clips: The loss is that of a whole batch, see `tymbal.objectives.contract.Objective`.
    """

    compares_clips = True

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        *,
        normalisation: Normalisation,
        settings: LeJEPASettings,
        views: SpectrogramViews,
        frames: float,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # Unused parameters stop distributed training.
        self.encoder.mask_token.requires_grad = False
        self.normalisation = normalisation
        self.views = views
        self.seed = seed
        # Not the loss: that new groups (speakers, recorders) are no standard normal says nothing against a model.
        self.monitor: tuple[str, bool] = ("icc", True)
        config = encoder.config
        rows, columns = config.grid
        self.settings = settings = settings.fitted(DataChoice(full_height=rows == 1))
        real = min(max(math.ceil(frames / config.stride[1]), 1), columns)
        self._shown = tuple(max(1, round((kept or 1) * rows * real)) for kept in (settings.kept, settings.kept_local))
        self.parts = settings.parts or 1
        self._sigreg_weight = cast(float, settings.sigreg_weight)
        # A function of the user's own is given whole views.
        self._draws_what_is_seen = config.cuts_apart and not views.functions
        width, hidden = rows * self.parts * config.width, settings.projection_hidden * config.width
        self.projection = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.GELU(), nn.Linear(hidden, settings.projection)
        )

    def beside(self) -> Self:
        """This one as a part of another objective on the same encoder, whose weights are then the other's alone."""
        encoder = self.encoder
        del self.encoder
        object.__setattr__(self, "encoder", encoder)
        return self

    def forward(self, spectrogram: Tensor, frames: Tensor, row: Tensor, epoch: Tensor, **_: Any) -> dict[str, Any]:
        """Computes the loss of a batch.

        Args:
            spectrogram: Log-mel values, any float type, [batch, frames, mels].
            frames: Frames of sound, int64 [batch].
            row: Row of each clip in its store, int64 [batch].
            epoch: Epoch of each clip, int64 [batch].

        Returns:
            `loss`, a float32 scalar, and `sums`, sums over the clips (`count` of them) of what `metrics` reports.
        """
        keys = fold(self.seed, epoch if self.training else torch.full_like(epoch, EVALUATION), row)
        clips = self.normalisation(spectrogram, frames)
        globals_, locals_ = self.settings.global_views, self.settings.local_views
        cells = [self._pooled(clips, frames, keys, range(globals_), self._shown[0])]
        if locals_:
            cells.append(self._pooled(clips, frames, keys, range(globals_, globals_ + locals_), self._shown[1]))
        pooled, everyone = torch.cat(cells), keys
        if self.training:  # evaluation takes each process's batches apart
            pooled, everyone = gather_batch(pooled, dim=1), gather_batch(keys)
        with torch.autocast(pooled.device.type, enabled=False):
            projected = self.projection(pooled.float().flatten(0, 1)).unflatten(0, pooled.shape[:2])
            agreement = (projected - projected[:globals_].mean(0)).square().mean()
            distance = sigreg(projected, self._directions(everyone), points=self.settings.points)
            weight = self._sigreg_weight
            loss = (1 - weight) * agreement + weight * distance
        count = torch.full_like(loss, len(row), requires_grad=False)
        figures = {"loss": loss, "agreement": agreement, "sigreg": distance, "acc": _found(projected)}
        figures["icc"] = _intraclass_correlation(projected[:globals_])
        return {"loss": loss, "sums": {"count": count, **{name: f.detach() * count for name, f in figures.items()}}}

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Turns summed figures into `loss`, `agreement`, `sigreg`, `acc` and `icc`."""
        return {name: float(value) / float(sums["count"]) for name, value in sums.items() if name != "count"}

    def head_state(self) -> dict[str, Tensor]:
        """What is trained beside the encoder: the projection, with the statistics of its batch norm."""
        return {f"projection.{name}": value for name, value in self.projection.state_dict().items()}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `head_state` gave.

        Raises:
            ModelError: Where a part is missing or has another shape.
        """
        load_heads(self.head_state(), state, advice="It is of another projection, patch or number of parts.")

    def draw_views(
        self,
        clips: Tensor,
        frames: Tensor,
        keys: Tensor,
        *,
        warps: Warps | None = None,
        patches: Patches | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws views of normalised clips, one behind the other.

        Args:
            clips: Normalised, float32 [batch, frames, mels].
            frames: Frames of sound, int64 [batch].
            keys: A key a view, int64 [views x batch].
            warps: How they are warped, where it is known.
            patches: What is drawn of each; None is all.

        Returns:
            As `tymbal.views.spectrogram_views.spectrogram_views`.
        """
        others, lengths, first = clips, frames, 0
        if self.training and self.views.mix > 0:  # those that may be laid over a clip
            others, lengths = gather_batch(clips), gather_batch(frames)
            first = 0 if len(others) == len(clips) else rank() * len(clips)
        return spectrogram_views(
            clips,
            frames,
            keys,
            self.views,
            padding=self.normalisation.normal_padding,
            scale=2 * self.normalisation.std if self.settings.mixing == "energies" else None,
            others=(others, lengths),
            first=first,
            warps=warps,
            patches=patches,
        )

    @torch.no_grad()
    def shown(self, spectrogram: Tensor, frames: Tensor, row: Tensor, *, epoch: int = 0) -> dict[str, View]:
        """As of `tymbal.objectives.contract.ViewingObjective`; clips are laid over each other in the order given."""
        keys = fold(self.seed, torch.full_like(row, epoch), row)
        globals_, locals_ = self.settings.global_views, self.settings.local_views
        views: dict[str, View] = {}
        for number in range(globals_ + locals_):
            shown = self._shown[0 if number < globals_ else 1]
            drawn_keys = fold(keys, number)
            warps, _, visible = self._visible(frames, drawn_keys, spectrogram.shape[1], shown)
            drawn, ends = self.draw_views(spectrogram, frames, drawn_keys, warps=warps)
            place = number + 1 if number < globals_ else number + 1 - globals_
            name = f"{'global' if number < globals_ else 'local'} view {place}"
            views[name] = View.from_tensors(drawn, ends, visible, self.encoder.config)
        return views

    @torch.no_grad()
    def _visible(self, frames: Tensor, keys: Tensor, length: int, shown: int) -> tuple[Warps, Tensor, Tensor]:
        """Of views by their keys: how they are warped, their columns with sound, and the patches that are seen."""
        warps = drawn_warps(frames, keys, self.views, most=length)
        grid = self.encoder.config.grid_of(length)
        columns = self.encoder.config.real_columns(warps.ends, grid[1])
        heard = torch.arange(grid[1], device=columns.device) < columns[:, None]
        return warps, columns, visible_patches(keys, heard.repeat(1, grid[0]), shown)

    def _pooled(self, clips: Tensor, frames: Tensor, keys: Tensor, views: range, shown: int) -> Tensor:
        """Cells of the visible tokens of some views of each clip, [views, batch, rows x parts x width]."""
        drawn_keys = fold(keys, torch.arange(views.start, views.stop, device=keys.device)[:, None]).flatten()
        warps, columns, visible = self._visible(frames, drawn_keys, clips.shape[1], shown)
        grid = self.encoder.config.grid_of(clips.shape[1])
        patches = Patches(self.encoder.config.patch, grid, visible) if self._draws_what_is_seen else None
        drawn, ends = self.draw_views(clips, frames, drawn_keys, warps=warps, patches=patches)
        given = None if patches is None else grid[1]
        tokens = self.encoder(drawn, visible=visible, frames=ends, columns=given).tokens[:, PREFIX_TOKENS:]
        cells = pool_cells(tokens, grid=grid, parts=self.parts, real_columns=columns, patches=visible)
        return cells.view(len(views), len(keys), -1)

    def _directions(self, keys: Tensor) -> Tensor:
        """Directions of length 1, the same in all processes, another set for each batch: [projection, slices]."""
        width, slices = self.settings.projection, self.settings.slices
        drawn = uniform(keys[:1], width * slices, stream=_DIRECTIONS).view(width, slices)
        # From the middle of each of 2^24 steps, so that no number is infinite; the last middle rounds to 1 in float32.
        return F.normalize(torch.erfinv((2 * (drawn + 2.0**-BITS / 2) - 1).clamp(max=1 - 2.0**-BITS)), dim=0)


def sigreg(embeddings: Tensor, directions: Tensor, *, points: int = 17, reach: float = 5.0) -> Tensor:
    """Distance of embeddings from a standard normal: the Epps-Pulley statistic along directions, averaged.

    Along each direction it is the number of clips times the integral of |empirical characteristic function - that of
    the normal|^2, weighted with exp(-t^2 / 2), by the trapezoidal rule.

    Args:
        embeddings: float32 [views, batch, width].
        directions: Of length 1, [width, slices].
        points: Points of the rule.
        reach: They lie evenly from -reach to reach.

    Returns:
        A scalar: the mean over views and directions.
    """
    # The integrand is even: half of the points tell all.
    t = torch.linspace(-reach, reach, points, device=embeddings.device)
    normal = torch.exp(-t.square() / 2)
    rule = torch.full_like(t, 2 * reach / (points - 1))
    rule[0] = rule[-1] = reach / (points - 1)
    angles = (embeddings @ directions).unsqueeze(-1) * t  # [views, batch, slices, points]
    distance = (angles.cos().mean(1) - normal).square() + angles.sin().mean(1).square()
    return (distance @ (rule * normal)).mean() * embeddings.shape[1]


def visible_patches(keys: Tensor, heard: Tensor, count: int) -> Tensor:
    """Draws the patches that a view shows to the encoder, those of sound before those of padding.

    Args:
        keys: A key a view, int64 [batch].
        heard: Whether each patch holds sound, bool [batch, patches].
        count: Patches to show, of every view as many, so that shapes stay fixed.

    Returns:
        Their numbers, ascending, int64 [batch, count].
    """
    patches = heard.shape[1]
    count = min(count, patches)
    place = bits(keys, patches, stream=_VISIBLE) + (~heard).long() * (1 << BITS)
    # With its number behind it each place is another, so that which ones are taken does not depend on the sorting.
    place = place * patches + torch.arange(patches, device=place.device)
    return (place.topk(count, dim=1, largest=False, sorted=False).values % patches).sort(dim=1).values


@torch.no_grad()
def _found(projected: Tensor) -> Tensor:
    """How often the second view of a clip is the nearest, by distance, to its first: float32 scalar."""
    nearest = torch.cdist(projected[0], projected[1]).argmin(1)
    return (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()


@torch.no_grad()
def _intraclass_correlation(projected: Tensor) -> Tensor:
    """ICC(1) (Shrout and Fleiss 1979) of views of clips, [views, clips, width], over all numbers: float32 scalar."""
    views, clips = projected.shape[:2]
    means = projected.mean(0)
    between = views * (means - means.mean(0)).square().sum() / max(clips - 1, 1)
    within = (projected - means).square().sum() / (clips * (views - 1))
    return (between - within) / (between + (views - 1) * within).clamp(min=1e-12)


def drawn_views(settings: LeJEPASettings) -> SpectrogramViews:
    """How views are drawn: what the file of augmentations says, in the strength of the settings.

    Raises:
        SettingsError: The file cannot be read, or a function changes waveforms.
    """
    views = read_spectrogram_views(settings.augmentations)
    return views if settings.view_strength == 1 else views.times(settings.view_strength)


def settle_padding(encoder: SpectrogramEncoder, data: SpectrogramSource, settings: LeJEPASettings) -> None:
    """Settles whether a new encoder attends to padding; one that starts from weights goes on as it is."""
    if settings.from_ is None:
        attends = is_filled(data) if settings.attend_to_padding is None else settings.attend_to_padding
        encoder.config = replace(encoder.config, attend_to_padding=attends)


def _build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: LeJEPASettings
) -> LeJEPAObjective:
    settle_padding(encoder, data, settings)
    return LeJEPAObjective(
        encoder,
        normalisation=normalisation,
        settings=settings,
        views=drawn_views(settings),
        frames=float(data.real_frames.mean()),
        seed=settings.seed,
    )


OBJECTIVE = ObjectiveSpec(settings=LeJEPASettings, build=_build)
