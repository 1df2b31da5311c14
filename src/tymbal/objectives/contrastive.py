"""Contrastive learning: two views of a clip shall be alike, and unlike those of all other clips.

NT-Xent (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"): each view has to
find the other one of its clip among all views of the batch, by the cosine of their projections over a temperature. Both
directions count. Negatives come from all processes; other versions of the same clip are no negatives.

With `mask="crossed"` each view is also masked, the first one in whole columns of time, the second in whole rows of
frequency, and only what is visible is encoded: the views then agree without showing the same patches.

Clips that are shorter than their window have silence behind them, which a view may have moved. As in embedding and
probing it has no part in normalising a clip, nor in its embedding, else their length would separate clips.

A batch larger than memory is encoded in parts whose activations are computed again in the backward pass (gradient
caching, Gao et al. 2021): the loss is that of the whole batch.

Logged beside the loss: `alignment` and `uniformity` (Wang & Isola 2020), `acc`, how often the other view is the nearest
neighbour, and `rank`, the effective rank of the embeddings (Roy & Vetterli 2007): 1 where all are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tymbal.features.normalisation import Normalisation
from tymbal.features.statistics import LOG_FLOOR
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.objectives.contract import ObjectiveSpec, load_heads
from tymbal.progress import tell
from tymbal.randomness import bits, fold
from tymbal.settings import ViewPairSettings
from tymbal.settings.fields import check, setting
from tymbal.store.base import SpectrogramSource

__all__ = [
    "OBJECTIVE",
    "ContrastiveObjective",
    "ContrastiveSettings",
    "ViewMask",
    "crossed_masks",
    "effective_rank",
    "nt_xent",
]

ViewMask = Literal["none", "crossed"]

_EVALUATION = -1  # stands for the epoch in the keys of evaluation masks
_TIME, _FREQUENCY = 50, 51  # streams of random numbers
_COLLAPSED = 2.0
_SILENCE = LOG_FLOOR + 0.01  # what float16 leaves of it


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(ViewPairSettings):
    """Contrastive learning on two views of each clip.

    Attributes:
        temperature: Divisor of the cosines.
        projection: Width of the projection that views are compared in.
        view_mask: What the encoder sees of each view: all of it, or `crossed`: of one view whole columns of time are
            hidden, of the other whole rows of frequency, and only the rest is encoded.
        view_mask_ratio: Fraction of columns, and of rows, that is hidden then.
        chunk: Clips that are encoded at once; a larger batch is computed again by parts in the backward pass, so that
            it takes no more memory. `None` is the whole batch.
    """

    objective: Literal["contrastive"] = "contrastive"
    temperature: float = 0.1
    projection: int = 128
    view_mask: Literal["none", "crossed"] = "none"
    view_mask_ratio: float = 0.5
    chunk: int | None = setting(None, describes_model=False)

    def __post_init__(self) -> None:
        ViewPairSettings.__post_init__(self)
        check(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        check(self.projection >= 1, "projection", self.projection, "1 or more")
        check(0 < self.view_mask_ratio < 1, "view_mask_ratio", self.view_mask_ratio, "a fraction between 0 and 1")
        check(self.chunk is None or self.chunk >= 1, "chunk", self.chunk, "1 or more")


class ContrastiveObjective(nn.Module):
    """Two views of a clip against all others.

    Args:
        encoder: The encoder to train.
        normalisation: How spectrograms are normalised for the encoder.
        clips: A number a clip, of each row of the store, int64 [rows]: rows of one clip are no negatives of each other.
        padded: Whether the clip of each row is shorter than its window, bool [rows]. None is none of them.
        temperature: Divisor of the cosines.
        projection: Width of the projection.
        mask: `crossed` shows the encoder only a part of each view.
        mask_ratio: Fraction of columns, and of rows, that is hidden then.
        chunk: Clips that are encoded at once; None is the whole batch.
        seed: Seed of the masks.

    Attributes:
        monitor: Name of the metric that tells better models, and whether higher is better.
    """

    clips: Tensor
    padded: Tensor

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        *,
        normalisation: Normalisation,
        clips: Tensor,
        padded: Tensor | None = None,
        temperature: float = 0.1,
        projection: int = 128,
        mask: ViewMask = "none",
        mask_ratio: float = 0.5,
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
        width = encoder.config.width
        self.projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, projection))
        self.register_buffer("clips", clips.long(), persistent=False)
        padded = torch.zeros(len(clips), dtype=torch.bool) if padded is None else padded
        self.register_buffer("padded", padded, persistent=False)
        self._warned = False

    def forward(self, spectrogram: Tensor, row: Tensor, epoch: Tensor, **_: Any) -> dict[str, Any]:
        """Computes the loss of a batch.

        Args:
            spectrogram: Log-mel values of both views, any float type: [batch, 2, frames, mels].
            row: Row of each clip in its store: int64 [batch].
            epoch: Epoch of each clip: int64 [batch].

        Returns:
            `loss`, a float32 scalar, and `sums`, sums over the clips (`count` of them) of what `metrics` reports.
        """
        embeddings = torch.stack([self.embed(spectrogram[:, view], row, epoch, view=view) for view in range(2)])
        with torch.autocast(embeddings.device.type, enabled=False):
            projected = F.normalize(self._project(embeddings), dim=-1)
            loss, hits = nt_xent(projected, self.clips[row], temperature=self.temperature, everywhere=self.training)
            figures = self._figures(loss, hits, projected, embeddings)
        count = torch.full_like(loss, len(row), requires_grad=False)
        return {"loss": loss, "sums": {"count": count, **figures}}

    def embed(self, views: Tensor, row: Tensor, epoch: Tensor, *, view: int) -> Tensor:
        """Encodes one view of each clip: [batch, frames, mels] to the mean of its tokens of sound, [batch, width]."""
        size = len(views) if self.chunk is None else self.chunk
        if size >= len(views):
            return self._encode(views, row, epoch, view)
        parts = zip(torch.split(views, size), torch.split(row, size), torch.split(epoch, size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._encode(*part, view) for part in parts])
        return torch.cat([cast(Tensor, checkpoint(self._encode, *part, view, use_reentrant=False)) for part in parts])

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Turns summed figures into `loss`, `acc`, `alignment`, `uniformity` and `rank`; warns of a collapse."""
        count = float(sums["count"])
        rank = effective_rank(torch.as_tensor(sums["moment"]))
        figures = {name: float(sums[name]) / count for name in ("loss", "acc", "alignment", "uniformity")}
        if rank < _COLLAPSED and count > 1 and not self._warned:
            self._warned = True
            tell(
                f"The embeddings have collapsed: their effective rank is {rank:.2f}. Try a larger batch, a lower "
                "learning rate or another temperature, and look at the views (tymbal prepare --preview).",
                warning=True,
            )
        return {**figures, "rank": rank}

    def head_state(self) -> dict[str, Tensor]:
        """Trained weights beside the encoder's: the projection."""
        return {f"projection.{name}": value for name, value in self.projection.state_dict().items()}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `head_state` returned.

        Raises:
            ModelError: Where a part is missing or has another shape.
        """
        load_heads(self.head_state(), state, advice="They are of another projection.")

    def _encode(self, views: Tensor, row: Tensor, epoch: Tensor, view: int) -> Tensor:
        padding = (views <= _SILENCE).all(2) & self.padded[row][:, None]
        x = self.normalisation.without(views, padding)
        grid = self.encoder.config.grid_of(views.shape[1])
        patch, stride = self.encoder.config.patch[1], self.encoder.config.stride[1]
        heard = (~padding).unfold(1, patch, stride).any(2)[:, : grid[1]]
        weight = heard.unsqueeze(1).expand(-1, grid[0], -1).flatten(1).float()
        visible = None
        if self.mask == "crossed":
            keys = fold(self.seed, epoch if self.training else torch.full_like(epoch, _EVALUATION), row)
            visible = crossed_masks(keys, grid, ratio=self.mask_ratio, heard=heard)[view]
            weight = weight.gather(1, visible)
        # A view of nothing but silence is embedded, too.
        weight = torch.where(weight.any(1, keepdim=True), weight, 1.0).unsqueeze(2)
        tokens = self.encoder(x, visible=visible).tokens[:, PREFIX_TOKENS:].float()
        return cast(Tensor, (tokens * weight).sum(1) / weight.sum(1))

    def _project(self, embeddings: Tensor) -> Tensor:
        return cast(Tensor, self.projection(embeddings))

    @torch.no_grad()
    def _figures(self, loss: Tensor, hits: Tensor, projected: Tensor, embeddings: Tensor) -> dict[str, Tensor]:
        """Sums over the clips of the batch; `moment` is that of the embeddings' directions, [width + 1, width + 1]."""
        clips = projected.shape[1]
        distances = (projected[0] - projected[1]).square().sum(dim=1)
        flat = projected.flatten(0, 1)
        gram = flat @ flat.T
        others = ~torch.eye(len(flat), dtype=torch.bool, device=gram.device)
        spread = (torch.where(others, (-4 * (1 - gram)).exp(), 0.0).sum() / others.sum()).log()
        directions = F.normalize(embeddings.flatten(0, 1), dim=1)
        directions = F.pad(directions, (0, 1), value=1.0)  # the last column counts and sums
        return {
            "loss": loss.detach() * clips,
            "acc": hits.sum() / 2,
            "alignment": distances.sum(),
            "uniformity": spread * clips,
            "moment": directions.T @ directions,
        }


def nt_xent(projected: Tensor, clips: Tensor, *, temperature: float, everywhere: bool = False) -> tuple[Tensor, Tensor]:
    """NT-Xent: the cross entropy of identifying each clip's other view among the views of all clips.

    Args:
        projected: Both views of each clip, of length 1, float32 [2, batch, width].
        clips: A number a clip, int64 [batch].
        temperature: Divisor of the cosines.
        everywhere: Take the clips of all processes as negatives.

    Returns:
        Mean cross entropy of both directions, and whether the other view is the nearest of all, bool [2 * batch].
    """
    own = projected.flatten(0, 1)
    views, names = projected, clips
    first = 0
    if everywhere and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        views, names, first = _gathered(projected, clips)
    everything, numbers = views.flatten(0, 1), names.repeat(2)
    total = len(names)
    place = first + torch.arange(len(clips), device=clips.device)
    itself, other = torch.cat([place, total + place]), torch.cat([total + place, place])
    scores = own @ everything.T / temperature
    alike = clips.repeat(2)[:, None] == numbers[None, :]
    alike = alike.scatter(1, other[:, None], False)  # noqa: FBT003
    alike = alike.scatter(1, itself[:, None], True)  # noqa: FBT003
    scores = scores.masked_fill(alike, -torch.inf)
    return F.cross_entropy(scores, other), scores.argmax(dim=1) == other


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
    sizes = [torch.zeros(1, dtype=torch.int64, device=clips.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(clips)], device=clips.device))
    counts = [int(size) for size in sizes]
    missing = max(counts) - len(clips)  # where clips of a batch could not be read
    views = cast(tuple[Tensor, ...], dist_nn.all_gather(F.pad(projected, (0, 0, 0, missing))))  # type: ignore[no-untyped-call]
    names = [torch.empty(max(counts), dtype=torch.int64, device=clips.device) for _ in counts]
    dist.all_gather(names, F.pad(clips, (0, missing)))
    together = torch.cat([part[:, :count] for part, count in zip(views, counts, strict=True)], dim=1)
    numbers = torch.cat([part[:count] for part, count in zip(names, counts, strict=True)])
    return together, numbers, sum(counts[: dist.get_rank()])


def _build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: ContrastiveSettings
) -> ContrastiveObjective:
    return ContrastiveObjective(
        encoder,
        normalisation=normalisation,
        clips=torch.from_numpy(data.clip_numbers()),
        padded=torch.from_numpy(data.padded_clips()),
        temperature=settings.temperature,
        projection=settings.projection,
        mask=settings.view_mask,
        mask_ratio=settings.view_mask_ratio,
        chunk=settings.chunk,
        seed=settings.seed,
    )


OBJECTIVE = ObjectiveSpec(settings=ContrastiveSettings, build=_build)
