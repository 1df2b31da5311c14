"""Starting from what another model has learned, its head too where that knows the labels, and saying what was taken.

The encoder keeps the width, depth, heads and patch of the source. Its position embeddings are fitted to the wanted clip
length and stride. A source that fits nowhere is an error, never a random model.

A head is taken with everything that it was trained with: how it pools, the epsilon of its norm, and the quirk of those
that scripts export. Its rows are put into the wanted order of labels. Where labels differ, a new head is drawn, and the
reason is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tymbal.errors import ModelError
from tymbal.models.classifier import SCRIPT_POOLING, ScriptClassifier, SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder, resize_positions, take_columns
from tymbal.models.folder import classifier_of, open_checkpoint
from tymbal.models.weights import Checkpoint, fill
from tymbal.progress import tell
from tymbal.settings import FeatureSettings, PretrainSettings, parse_patch

__all__ = [
    "POOLING",
    "HeadChoice",
    "TransferReport",
    "WarmClassifier",
    "features_at",
    "first_encoder",
    "warm_encoder",
    "warm_start",
    "warm_start_classifier",
]


PositionChoice = Literal["auto", "cut", "first", "resize"]
"""How position embeddings are fitted to shorter clips; see `warm_start`."""


@dataclass(frozen=True)
class TransferReport:
    """Which weights were taken, resized, new or left out.

    Attributes:
        taken: Weights that are those of the source.
        resized: Weights that were fitted to another grid of patches.
        new: Weights that the source lacks.
        left: Weights of the source that were not used.
        assumed: Assumptions where the source does not tell, in words.
        head: Where the classifier's head is from, in words.
        positions: How position embeddings were fitted to another grid of patches, in words.
    """

    taken: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]
    assumed: str | None = None
    head: str | None = None
    positions: str | None = None

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} weights taken"]
        for word, names in (("resized", self.resized), ("new", self.new), ("left behind", self.left)):
            if names:
                shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
                parts.append(f"{len(names)} {word} ({shown})")
        if self.positions:
            parts.append(f"position embeddings: {self.positions}")
        if self.assumed:
            parts.append(f"assumed: {self.assumed}")
        if self.head:
            parts.append(f"head: {self.head}")
        return "; ".join(parts)


def features_at(source: str | None, *, heads: int | None) -> FeatureSettings:
    """How sound that is not a store yet becomes spectrograms: as the weights to start from know it, if any.

    Args:
        source: The model that they are from.
        heads: Their attention heads, where they do not tell.

    Raises:
        ModelError: They cannot be read.
    """
    return FeatureSettings() if source is None else open_checkpoint(source, heads=heads).description.features


def first_encoder(
    settings: PretrainSettings, *, mels: int, frames: int, keep_stride: bool
) -> tuple[SpectrogramEncoder, ModelDescription | None]:
    """The encoder of a pretraining with its first weights; says where they are from.

    Args:
        settings: Its size, or the weights to start from.
        mels: Mel bins of the clips.
        frames: Frames of the clips.
        keep_stride: Whether to keep the patch stride of the weights to start from.

    Returns:
        The encoder, and the description of the model that the weights are from, if any.

    Raises:
        ModelError: The weights to start from cannot be read or do not fit.
    """
    width, depth, heads = settings.shape
    patch, stem = parse_patch(settings.patch), settings.stem
    config = EncoderConfig(
        width=width, depth=depth, heads=heads, mels=mels, frames=frames, patch=patch, stride=patch, stem=stem
    )
    if settings.from_ is None:
        also = f", a stem of {stem} channels" if stem else ""
        tell(f"Starting from random weights: {width} wide, {depth} blocks, {heads} heads{also}")
        return SpectrogramEncoder(config), None
    encoder, report, origin = warm_start(
        settings.from_,
        config=config,
        keep_stride=keep_stride,
        positions=settings.positions,
        source_heads=settings.heads,
    )
    tell(f"Starting from {settings.from_}: {report}")
    return encoder, origin


def warm_start(
    source: str | Path,
    *,
    config: EncoderConfig,
    keep_stride: bool = False,
    positions: PositionChoice = "auto",
    source_stride: tuple[int, int] | None = None,
    source_heads: int | None = None,
) -> tuple[SpectrogramEncoder, TransferReport, ModelDescription]:
    """Makes an encoder from another model's weights.

    Args:
        source: As for `tymbal.load_model`.
        config: The target. Frames, mel bins, stride and dropout are taken from it; width, depth, heads, patch and
            the like from the source.
        keep_stride: Take the stride, too, from the source.
        positions: How position embeddings are fitted to shorter clips: those of the middle (`cut`) or the `first` are
            taken, or all are squeezed (`resize`). `auto` cuts those of SSAST files, as SSAST does, and squeezes others.
        source_stride: Stride of a file that does not tell, of SSAST's fine-tuning or a script.
        source_heads: Attention heads of a file of a script, which does not tell.

    Returns:
        The encoder, in training mode; what was taken; and the description of the source.

    Raises:
        ModelError: Where the source is no model, is damaged, or its patches do not fit the target's spectrograms.
    """
    checkpoint = open_checkpoint(source, stride=source_stride, heads=source_heads)
    encoder, report = warm_encoder(
        checkpoint, path=str(source), config=config, keep_stride=keep_stride, positions=positions
    )
    return encoder, report, checkpoint.description


def warm_encoder(
    checkpoint: Checkpoint,
    *,
    path: str,
    config: EncoderConfig,
    keep_stride: bool = False,
    positions: PositionChoice = "auto",
) -> tuple[SpectrogramEncoder, TransferReport]:
    """As `warm_start`, from a checkpoint that was read from `path`."""
    origin = checkpoint.description.encoder
    if config.mels < origin.patch[0]:
        raise ModelError(
            f"its patches of {origin.patch[0]}x{origin.patch[1]} do not fit spectrograms of {config.mels} mel bins",
            path=path,
            advice=f"Prepare the sound with {origin.mels} mel bins, or start from another model.",
        )
    target = replace(
        origin,
        frames=config.frames,
        mels=config.mels,
        stride=origin.stride if keep_stride else config.stride,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        positions=origin.positions if positions == "auto" else positions,
    )
    tensors = dict(checkpoint.encoder)
    resized: tuple[str, ...] = ()
    words = None
    if target.grid != origin.grid:
        known = _positions(tensors, origin, path=path)
        tensors["position_embedding"], words = _fitted(known, origin, target, positions, door=checkpoint.door)
        resized = ("position_embedding",)
    encoder = SpectrogramEncoder(target)
    new = () if "mask_token" in tensors else ("mask_token",)
    for name in new:
        tensors[name] = encoder.state_dict()[name]
    fill(encoder, tensors, path=path)
    taken = tuple(name for name in encoder.state_dict() if name not in resized and name not in new)
    left = (*checkpoint.head, *checkpoint.objective, *checkpoint.left)
    provenance = checkpoint.description.provenance
    assumed = None if "verb" in provenance else provenance.get("assumed")  # what a verb of ours wrote says all itself
    return encoder, TransferReport(taken, resized, new, left, assumed, positions=words)


def _fitted(
    positions: Tensor, origin: EncoderConfig, target: EncoderConfig, choice: PositionChoice, *, door: str
) -> tuple[Tensor, str]:
    """Position embeddings for another grid of patches, and in words what was done.

    Columns that are cut away are those of time that the clips do not have; where the stride changes, too, what is left
    is resized to the columns of the new one. SSAST cuts by columns, whatever the stride, and also rows.
    """
    rows, columns = origin.grid
    if door == "ssast" and choice in ("auto", "cut"):
        fitted = resize_positions(positions, origin.grid, target.grid, cut=True)
        return fitted, f"cut as SSAST does, {rows}x{columns} to {target.grid[0]}x{target.grid[1]}"
    words = ""
    if choice in ("cut", "first") and target.frames < origin.frames:
        taken = origin.grid_of(max(target.frames, origin.patch[1]))[1]
        positions = take_columns(positions, origin.grid, taken, which=choice)
        words = f"the {'middle' if choice == 'cut' else 'first'} {taken} of {columns} columns"
        columns = taken
    if (rows, columns) != target.grid:
        positions = resize_positions(positions, (rows, columns), target.grid)
        words += ", " if words else ""
        words += f"{rows}x{columns} resized to {target.grid[0]}x{target.grid[1]}"
    return positions, words


def _positions(tensors: dict[str, Tensor], origin: EncoderConfig, *, path: str) -> Tensor:
    """The position embeddings of the source; raises unless their shape is what its description says."""
    expected = (1, origin.prefix_tokens + origin.num_patches, origin.width)
    positions = tensors.get("position_embedding", torch.empty(0))
    if tuple(positions.shape) != expected:
        raise ModelError(
            f"its position embeddings are {tuple(positions.shape)}, but its description says {expected}", path=path
        )
    return positions


POOLING = "mean"
"""Pooling of a new head by default."""

_NAMED = 5  # labels that a message names


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """How the classifier's head is to be made.

    Attributes:
        labels: Names of the labels, in the order of the scores.
        pooling: How it pools. `None` is as the head that is taken does, else as `otherwise` says.
        otherwise: Gives the pooling of a new head, of its encoder and the description of where that is from, if known.
        skip_padding: Whether it pools over patches with sound only. `None` is as the head that is taken, else true.
        dropout: Dropout before its linear layer.
        standardise: Whether a new one standardises what it pools, instead of a layer norm.
        eps: Epsilon of a new one's layer norm. `None` is the encoder's.
        new: Draw a new one in any case.
    """

    labels: Sequence[str]
    pooling: str | None = None
    otherwise: Callable[[SpectrogramEncoder, ModelDescription | None], str] = lambda *_: POOLING
    skip_padding: bool | None = None
    dropout: float = 0.0
    standardise: bool = False
    eps: float | None = None
    new: bool = False

    def draw(self, encoder: SpectrogramEncoder, source: ModelDescription | None) -> SpectrogramClassifier:
        """A classifier with a new head around an encoder, which is from a model of this description, if from any."""
        pooling = self.pooling or self.otherwise(encoder, source)
        if pooling == SCRIPT_POOLING:
            script = ScriptClassifier(encoder, len(self.labels))
            script.head_dropout.p = self.dropout
            return script
        return SpectrogramClassifier(
            encoder,
            len(self.labels),
            pooling=pooling,
            skip_padding=self.skip_padding is not False,
            dropout=self.dropout,
            head_eps=self.eps,
            standardise=self.standardise,
        )


@dataclass(frozen=True)
class WarmClassifier:
    """A classifier to go on with.

    Attributes:
        module: The classifier, in training mode.
        report: Which weights were taken.
        source: Description of the model that they are from.
        head_eps: Epsilon of the head's norm where it is not the encoder's.
    """

    module: SpectrogramClassifier
    report: TransferReport
    source: ModelDescription
    head_eps: float | None = None


def warm_start_classifier(
    source: str | Path,
    *,
    config: EncoderConfig,
    head: HeadChoice,
    keep_stride: bool = False,
    positions: PositionChoice = "auto",
    source_heads: int | None = None,
) -> WarmClassifier:
    """Makes a classifier from another model's weights.

    Args:
        source: As for `tymbal.load_model`.
        config: The target encoder, as for `tymbal.models.warm_start.warm_start`.
        head: The target head.
        keep_stride: Take the stride of the patches, too, from the source.
        positions: How position embeddings are fitted to shorter clips, as for `warm_start`.
        source_heads: Attention heads of a file that does not tell.

    Raises:
        ModelError: As `warm_start`.
    """
    checkpoint = open_checkpoint(source, heads=source_heads)
    encoder, report = warm_encoder(
        checkpoint, path=str(source), config=config, keep_stride=keep_stride, positions=positions
    )
    origin = checkpoint.description
    order, words = _fitting(checkpoint, head)
    if order is not None:
        known = replace(origin, encoder=encoder.config, labels=tuple(head.labels))
        if head.skip_padding is not None:
            known = replace(known, skip_padding=head.skip_padding)
        module = classifier_of(encoder, known)
        own = {name: value for name, value in module.state_dict().items() if not name.startswith("encoder.")}
        tensors = {n: v[order] if n in ("head.weight", "head.bias") else v for n, v in checkpoint.head.items()}
        if _shapes(own) == _shapes(tensors):
            encoded = {name: value for name, value in module.state_dict().items() if name.startswith("encoder.")}
            fill(module, {**encoded, **tensors}, path=str(source))
            module.head_dropout.p = head.dropout
            left = tuple(name for name in report.left if name not in tensors)
            report = replace(report, taken=(*report.taken, *tensors), left=left, head=words)
            return WarmClassifier(module.train(), report, origin, origin.head_eps)
        words = "new, since that of the source is for another number of mel bins"
    module = head.draw(encoder, origin)
    new = tuple(name for name in module.state_dict() if not name.startswith("encoder."))
    report = replace(report, new=(*report.new, *new), head=words)
    return WarmClassifier(module.train(), report, origin, head.eps)


def _fitting(checkpoint: Checkpoint, head: HeadChoice) -> tuple[list[int] | None, str | None]:
    """Matches the target's labels with the rows of the source's head.

    Returns:
        For each label its row in the source's head, or `None` for a new head; and a message, or `None` if the source
        has no head.
    """
    origin = checkpoint.description
    if not checkpoint.head:
        return None, None
    if head.new:
        return None, "new, as asked for"
    if origin.groups:
        return None, "new, since the labels of the source fall into groups that exclude each other"
    if head.pooling not in (None, origin.pooling):
        return None, f"new, since that of the source pools by {origin.pooling}, not by {head.pooling}"
    return _order(origin.labels, tuple(head.labels), unnamed=_unnamed(checkpoint), pooling=origin.pooling)


def _order(
    known: tuple[str, ...], requested: tuple[str, ...], *, unnamed: bool, pooling: str | None
) -> tuple[list[int] | None, str]:
    """For each requested label its index among the known ones, or `None` if the sets differ; and a message."""
    how = f"that of the source, pooling by {pooling}"
    if sorted(known) == sorted(requested):
        return [known.index(label) for label in requested], how
    if unnamed and len(known) == len(requested):
        unnamed_how = f"{how}; its labels have no names, and are taken in order for {_some(requested)}"
        return list(range(len(known))), unnamed_how
    if unnamed:
        return None, f"new, since that of the source has {len(known)} labels, not {len(requested)}"
    missing, new = ([label for label in a if label not in set(b)] for a, b in ((known, requested), (requested, known)))
    others = [f"{side} {_some(names)}" for side, names in (("only there", missing), ("only here", new)) if names]
    return None, f"new, since the labels of the source are others: {'; '.join(others)}"


def _unnamed(checkpoint: Checkpoint) -> bool:
    """Whether labels are numbers for want of names: as transformers writes them, and as we number those of SSAST."""
    prefix = {"huggingface": "LABEL_", "script": "LABEL_", "ssast": ""}.get(checkpoint.door)
    labels = checkpoint.description.labels
    return prefix is not None and labels == tuple(f"{prefix}{i}" for i in range(len(labels)))


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_NAMED]) + (", …" if len(labels) > _NAMED else "")


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}
