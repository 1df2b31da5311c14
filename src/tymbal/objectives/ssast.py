"""SSAST: tell each masked patch from the others (`mpc`), rebuild it (`mpg`), or both (`joint`).

Gong, Lai, Chung & Glass 2022, "SSAST: Self-Supervised Audio Spectrogram Transformer". Given the same weights and masks
the losses are those of the reference implementation to float32's accuracy. What differs on purpose:

- `joint` is one pass of the encoder with one mask for both losses, the paper's algorithm; the reference makes two;
- all clips are computed at once, in batched tensor code, and a step never waits for the device;
- masks are drawn fairly (`tymbal.objectives.masks`), as a function of seed, epoch and clip; evaluation has fixed masks,
  so that epochs and runs compare;
- patches that hold only padding are neither masked nor learned from, unless requested;
- losses are float32 with any precision of the encoder, and count every clip equally, long or short;
- with `encode="visible"` the encoder sees the visible patches only and a light decoder predicts the rest: the same
  losses on another, faster model (MAE-AST, Baade et al. 2022; `tymbal.objectives.decoder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tymbal.errors import SettingsError
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder, take_rows
from tymbal.objectives.contract import ObjectiveSpec, Rebuilt, load_heads
from tymbal.objectives.decoder import VisibleDecoder
from tymbal.objectives.masks import CLUSTER, Masks, count_from, make_masks
from tymbal.randomness import EVALUATION, fold
from tymbal.settings import PretrainSettings
from tymbal.settings.fields import check, setting
from tymbal.store.base import SpectrogramSource

__all__ = ["OBJECTIVE", "TASKS", "SSASTObjective", "SSASTSettings", "contrast", "rebuild", "tell_apart"]

TASKS: dict[str, tuple[str, ...]] = {"joint": ("cpred", "gpred"), "mpc": ("cpred",), "mpg": ("gpred",)}
"""The objectives and the heads that each trains: `cpred` predicts patches to tell apart, `gpred` to rebuild."""


@dataclass(frozen=True, kw_only=True)
class SSASTSettings(PretrainSettings):
    """Masked patches: `joint`, `mpc` and `mpg`.

    Attributes:
        encode: What the encoder sees: `all` patches, the masked ones as a mask token (SSAST), or only the `visible`
            ones, with a light decoder that predicts the others: several times faster, and another model (MAE-AST,
            Baade et al. 2022).
        decoder_depth: Blocks of the decoder, with `visible`.
        decoder_width: Width of the decoder, with `visible`. `None` is that of the encoder.
        mask: How masked patches are drawn: `cluster` in squares, `uniform` singly, `frame` whole columns of time.
            `auto` is cluster for patches and uniform for frame patches.
        cluster_min: Shortest side of a cluster, in patches.
        cluster_max: Longest side of a cluster, in patches.
        mask_ratio: Fraction of the patches that is masked.
        mask_count: Number of masked patches, instead of the fraction.
        mask_padding: Also mask and rebuild patches that hold only padding (the reference does).
        mse_weight: Weight of the mpg loss in `joint`.
        normalize_targets: Rebuild each patch after standardising it (He et al. 2022), instead of the patch itself as in
            SSAST.
        target_floor: Deviation, in normalised units, whose square is added to the variance of a patch where it is
            standardised: the noise of flat and quiet patches, as of silence, would otherwise become as large as sound.
    """

    batch_size: int = 64
    learning_rate: float = 5e-4
    eval_every: float = 1
    size: Literal["auto", "mini", "tiny", "small", "base"] = "small"
    patch: str = "16x16"
    objective: Literal["joint", "mpc", "mpg"] = "joint"
    encode: Literal["all", "visible"] = "all"
    decoder_depth: int = 2
    decoder_width: int | None = setting(None, example="128")
    mask: Literal["auto", "cluster", "uniform", "frame"] = "auto"
    cluster_min: int = 3
    cluster_max: int = 5
    mask_ratio: float = 0.75
    mask_count: int | None = setting(None, example="400")
    mask_padding: bool = False
    mse_weight: float = 10.0
    normalize_targets: bool = setting(True, before=False)
    target_floor: float = setting(0.1, before=1e-3)

    def __post_init__(self) -> None:
        PretrainSettings.__post_init__(self)
        check(0 < self.mask_ratio < 1, "mask_ratio", self.mask_ratio, "a fraction between 0 and 1")
        check(self.mask_count is None or self.mask_count >= 1, "mask_count", self.mask_count, "1 or more")
        check(self.decoder_depth >= 1, "decoder_depth", self.decoder_depth, "1 or more")
        check(self.decoder_width is None or self.decoder_width >= 1, "decoder_width", self.decoder_width, "1 or more")
        check(self.cluster_min >= 1, "cluster_min", self.cluster_min, "1 or more")
        check(self.cluster_max >= self.cluster_min, "cluster_max", self.cluster_max, f"{self.cluster_min} or more")
        check(self.target_floor > 0, "target_floor", self.target_floor, "a number above 0")


class SSASTObjective(nn.Module):
    """Masked prediction of patches on an encoder.

    Args:
        encoder: The encoder to train.
        task: `joint`, `mpc` or `mpg`.
        normalisation: How spectrograms are normalised for the encoder.
        encode: What the encoder sees: `all` patches, masked ones as the mask token, or only the `visible` ones.
        decoder_depth: Blocks of the decoder, with `visible`.
        decoder_width: Its width, with `visible`. `None` is the encoder's.
        mask: `cluster`, `uniform`, `frame`, or `auto`: clusters for patches, single ones for frame patches.
        mask_ratio: Fraction of patches that is masked.
        mask_count: Number of masked patches, instead of the fraction.
        cluster: Shortest and longest side of a cluster, in patches.
        mask_padding: Also mask and rebuild patches that hold only padding, as the reference does.
        mse_weight: Weight of rebuilding in `joint`.
        normalize_targets: Rebuild patches after standardising each (He et al. 2022).
        target_floor: Deviation whose square is added to the variance of a patch where it is standardised.
        seed: Seed of the masks.

    Attributes:
        monitor: Name of the metric that tells better models, and whether higher is better. The reference keeps the
            model with the *highest* error in `mpg`; here it is the lowest.

    Raises:
        SettingsError: For an unknown task, or masks that do not fit clips of the encoder's length.
    """

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        *,
        task: str = "joint",
        normalisation: Normalisation,
        encode: str = "all",
        decoder_depth: int = 2,
        decoder_width: int | None = None,
        mask: str = "auto",
        mask_ratio: float = 0.75,
        mask_count: int | None = None,
        cluster: tuple[int, int] = CLUSTER,
        mask_padding: bool = False,
        mse_weight: float = 10.0,
        normalize_targets: bool = False,
        target_floor: float = 0.1,
        seed: int = 42,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise SettingsError(f"objective is {task!r}", advice=f"Set objective to one of {', '.join(TASKS)}.")
        if encode not in ("all", "visible"):
            raise SettingsError(f"encode is {encode!r}", advice="Set encode to all or visible.")
        if not 1 <= cluster[0] <= cluster[1]:
            raise SettingsError(
                f"clusters of {cluster[0]} to {cluster[1]} patches a side cannot be",
                advice="Give the shortest side, 1 or more, and then the longest.",
            )
        config = encoder.config
        self.encoder = encoder
        self.decoder = VisibleDecoder(config, depth=decoder_depth, width=decoder_width) if encode == "visible" else None
        # A classifier, where the encoder comes from one, freezes it. An encoder of visible patches has no use for it,
        # and an unused parameter stops distributed training; so would a head that is not the task's.
        self.encoder.mask_token.requires_grad = self.decoder is None
        self.task = task
        self.normalisation = normalisation
        self.mask_kind = mask if mask != "auto" else "cluster" if config.grid[0] > 1 else "uniform"
        self.mask_ratio = mask_ratio
        self.mask_count = mask_count
        self.cluster = cluster
        self.mask_padding = mask_padding
        self.mse_weight = mse_weight
        self.normalize_targets = normalize_targets
        self.target_floor = target_floor
        self.seed = seed
        self.monitor: tuple[str, bool] = ("mse", False) if task == "mpg" else ("acc", True)
        width = config.width if self.decoder is None else self.decoder.width
        self.heads = nn.ModuleDict({name: _head(width, config.patch_area) for name in TASKS[task]})
        self._count(config.grid)  # report clips too short to mask now, not in the first step

    def forward(self, spectrogram: Tensor, frames: Tensor, row: Tensor, epoch: Tensor, **_: Any) -> dict[str, Any]:
        """Computes the loss of a batch.

        Args:
            spectrogram: Log-mel values as they are stored, any float type: [batch, frames, mels].
            frames: Real frames of each clip, before padding: int64 [batch].
            row: Number of each clip in its store: int64 [batch].
            epoch: Epoch of each clip: int64 [batch].

        Returns:
            `loss`, a float32 scalar, and `sums`, sums over the clips (`count` of them) of what `metrics` reports.
        """
        spectrogram = self.normalisation(spectrogram, frames)
        masks = self.make_masks(spectrogram.shape[1], frames, row, epoch)
        tokens = self.predict(spectrogram, masks)
        return self.losses(tokens, self.encoder.patchify(spectrogram), masks.index, masks.valid)

    def predict(self, spectrogram: Tensor, masks: Masks) -> Tensor:
        """Computes the tokens that the heads read, without a look at the masked patches.

        Args:
            spectrogram: Normalised, [batch, frames, mels].
            masks: Which patches are masked.

        Returns:
            [batch, prefix + patches, width]: the encoder's tokens, or with `encode="visible"` the decoder's.
        """
        if self.decoder is None:
            return cast(Tensor, self.encoder(spectrogram, mask=masks.mask).tokens)
        visible = masks.visible
        encoded = self.encoder(spectrogram, visible=visible)
        return cast(Tensor, self.decoder(encoded.tokens, visible, encoded.grid))

    def make_masks(self, length: int, frames: Tensor, row: Tensor, epoch: Tensor) -> Masks:
        """Draws the masks of a batch of clips of `length` frames, with padding; the others are as in `forward`.

        While training they depend on seed, epoch and row; in evaluation on seed and row only.
        """
        config = self.encoder.config
        grid = config.grid_of(length)
        return make_masks(
            fold(self.seed, epoch if self.training else EVALUATION, row),
            grid,
            kind=self.mask_kind,
            count=self._count(grid),
            cluster=self.cluster,
            real_columns=None if self.mask_padding else config.real_columns(frames, grid[1]),
        )

    def losses(self, tokens: Tensor, patches: Tensor, index: Tensor, valid: Tensor | None = None) -> dict[str, Any]:
        """Computes the loss from predicted tokens and given masks.

        Args:
            tokens: The tokens that `predict` returned, [batch, prefix + patches, width].
            patches: The normalised patches, [batch, patches, patch area].
            index: Numbers of the masked patches, int64 [batch, masked].
            valid: Which of them count, bool [batch, masked]. `None` is all.

        Returns:
            As `forward`.
        """
        if valid is None:
            valid = torch.ones_like(index, dtype=torch.bool)
        masked_tokens = take_rows(tokens, index + PREFIX_TOKENS)
        true = take_rows(patches, index).float()
        sums: dict[str, Tensor] = {}
        if "cpred" in self.heads:
            sums["nce"], sums["acc"] = contrast(self.heads["cpred"](masked_tokens), true, valid)
        if "gpred" in self.heads:
            target = _standardise(true, floor=self.target_floor) if self.normalize_targets else true
            sums["mse"] = rebuild(self.heads["gpred"](masked_tokens), target, valid)
        sums = {name: by_clip.sum() for name, by_clip in sums.items()}
        loss = self._total(sums) / index.shape[0]
        count = torch.full_like(loss, index.shape[0], requires_grad=False)
        return {"loss": loss, "sums": {**{name: value.detach() for name, value in sums.items()}, "count": count}}

    @torch.no_grad()
    def rebuilt(self, spectrogram: Tensor, frames: Tensor, row: Tensor) -> Rebuilt:
        """What is rebuilt of normalised clips, see `RebuildingObjective`; of `mpc` where it would put the patches."""
        masks = self.make_masks(spectrogram.shape[1], frames, row, torch.zeros_like(row))
        tokens = self.predict(spectrogram, masks)[:, PREFIX_TOKENS:].float()
        patches = self.encoder.patchify(spectrogram).float()
        true = self._picture(patches)
        masked = masks.mask.unsqueeze(2)
        hidden = self._picture(masked.expand_as(patches))
        if "gpred" not in self.heads:
            laid, wrong = self._laid(tokens, patches, masks)
            return Rebuilt.from_tensors(true, hidden, self._picture(laid), wrong=wrong)
        rebuilt = self.heads["gpred"](tokens)
        if self.normalize_targets:
            spread = patches.var(-1, keepdim=True, unbiased=False).add(self.target_floor**2).sqrt()
            rebuilt = rebuilt * spread + patches.mean(-1, keepdim=True)
        return Rebuilt.from_tensors(true, hidden, self._picture(torch.where(masked, rebuilt, patches)))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turns summed figures into reported ones: `loss`, and of `nce`, `acc` and `mse` those of the task.

        `nce` is the mean cross entropy of identifying each masked patch of a clip, `acc` the fraction identified right,
        `mse` the mean squared error of rebuilding, in normalised units or, with `normalize_targets`, in deviations of
        each patch.
        """
        means = {name: float(value) / float(sums["count"]) for name, value in sums.items() if name != "count"}
        return {"loss": self._total(means), **means}

    def head_state(self) -> dict[str, Tensor]:
        """Trained weights beside the encoder's, to save with it: `cpred.0.weight`, `decoder.mask_token` and so on."""
        state = dict(self.heads.state_dict())
        if self.decoder is not None:
            state |= {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        return state

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `head_state` returned; heads or a decoder that this objective lacks are ignored.

        Raises:
            ModelError: A part is missing or has another shape.
        """
        load_heads(
            self.head_state(),
            state,
            advice=f"The heads belong to another objective than {self.task}, another encode or decoder, or another "
            "width or patch.",
        )

    def _laid(self, tokens: Tensor, patches: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Patches [batch, patches, area] with the masked ones where they would be put, and the share wrong, [batch]."""
        true = take_rows(patches, masks.index)
        choice = tell_apart(self.heads["cpred"](take_rows(tokens, masks.index)), true, masks.valid)[1]
        right = (choice == torch.arange(choice.shape[1], device=choice.device)) & masks.valid
        put = torch.where(masks.valid.unsqueeze(2), take_rows(true, choice), true)
        laid = patches.scatter(1, masks.index.unsqueeze(2).expand_as(put), put)
        return laid, 1 - right.sum(1) / masks.valid.sum(1)

    def _picture(self, patches: Tensor) -> Tensor:
        """Patches [batch, patches, area] as spectrograms [batch, frames, mels]."""
        config = self.encoder.config
        (rows, columns), (tall, wide) = config.grid, config.patch
        shaped = patches.reshape(len(patches), rows, columns, tall, wide).permute(0, 2, 4, 1, 3)
        return shaped.reshape(len(patches), columns * wide, rows * tall)

    def _count(self, grid: tuple[int, int]) -> int:
        return count_from(grid, kind=self.mask_kind, ratio=self.mask_ratio, count=self.mask_count)

    def _total(self, figures: Mapping[str, Any]) -> Any:
        if self.task == "joint":
            return figures["nce"] + self.mse_weight * figures["mse"]
        return figures["nce" if self.task == "mpc" else "mse"]


def contrast(predicted: Tensor, true: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Tells the masked patches of a clip apart (InfoNCE): no temperature, no norm, negatives from the same clip.

    As in the reference's code, each true patch is scored against all predictions of its clip and the softmax runs over
    the predictions (the paper's equation 1 has it the other way round). A prediction counts as right where its own
    patch gives it the highest probability of all patches.

    Args:
        predicted: [batch, masked, patch area].
        true: [batch, masked, patch area].
        valid: Which patches take part, bool [batch, masked], at least one a clip.

    Returns:
        Mean cross entropy and mean accuracy of each clip, float32, [batch] each.
    """
    chances, choice = tell_apart(predicted, true, valid)
    hit = choice == torch.arange(valid.shape[1], device=valid.device)
    return _mean(-chances.diagonal(dim1=1, dim2=2), valid), _mean(hit.float(), valid)


def tell_apart(predicted: Tensor, true: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Matches predictions with masked patches; the arguments are as in `contrast`.

    Returns:
        Log-probabilities of the predictions for each true patch, float32 [batch, true, predicted]; and for each
        prediction the number, among the masked ones, of the patch that gives it the highest, [batch, predicted].
    """
    with torch.autocast(predicted.device.type, enabled=False):
        scores = true.float() @ predicted.float().transpose(1, 2)
    # Sums: on a CPU a fill by a mask that is broadcast takes many times as long. Nothing is left of what is shut.
    shut = (~valid).float() * (torch.finfo(scores.dtype).min / 4)
    chances = (scores + shut.unsqueeze(1)).log_softmax(-1)
    return chances, (chances.detach() + shut.unsqueeze(2)).argmax(1)


def rebuild(predicted: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of the masked patches of each clip: float32 [batch]; the arguments are as in `contrast`."""
    return _mean((predicted.float() - true.float()).square().mean(-1), valid)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid values of each clip: [batch, masked] to [batch]."""
    return torch.where(valid, values, 0.0).sum(1) / valid.sum(1)


def _standardise(patches: Tensor, *, floor: float) -> Tensor:
    """Each patch to mean 0 and, where its deviation is far above the floor, variance 1; flat ones to 0."""
    return F.layer_norm(patches, patches.shape[-1:], eps=floor**2)


def _head(width: int, area: int) -> nn.Sequential:
    """SSAST's prediction head, with PyTorch's default initialisation as in SSAST."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, area))


def _build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: SSASTSettings
) -> SSASTObjective:
    del data
    return SSASTObjective(
        encoder,
        task=settings.objective,
        normalisation=normalisation,
        encode=settings.encode,
        decoder_depth=settings.decoder_depth,
        decoder_width=settings.decoder_width,
        mask=settings.mask,
        mask_ratio=settings.mask_ratio,
        mask_count=settings.mask_count,
        cluster=(settings.cluster_min, settings.cluster_max),
        mask_padding=settings.mask_padding,
        mse_weight=settings.mse_weight,
        normalize_targets=settings.normalize_targets,
        target_floor=settings.target_floor,
        seed=settings.seed,
    )


OBJECTIVE = ObjectiveSpec(settings=SSASTSettings, build=_build)
