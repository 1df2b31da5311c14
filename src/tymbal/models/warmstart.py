"""Starting from what another model has learned, and saying what was taken.

The encoder keeps the width, depth, heads and patch of the source. Its position embeddings are fitted to the wanted clip
length and stride. A source that fits nowhere is an error, never a random model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tymbal.errors import ModelError
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder, resize_positions
from tymbal.models.folder import open_checkpoint
from tymbal.models.weights import Checkpoint, fill

__all__ = ["TransferReport", "warm_encoder", "warm_start"]


@dataclass(frozen=True)
class TransferReport:
    """What came from where.

    Attributes:
        taken: Weights that are those of the source.
        resized: Weights that were fitted to another grid of patches.
        new: Weights that the source lacks.
        left: Weights of the source that were not used.
        assumed: What the source does not tell, in words.
        head: What became of the head of a classifier, in words.
    """

    taken: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]
    assumed: str | None = None
    head: str | None = None

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} weights taken"]
        for word, names in (("resized", self.resized), ("new", self.new), ("left behind", self.left)):
            if names:
                shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
                parts.append(f"{len(names)} {word} ({shown})")
        if self.assumed:
            parts.append(f"assumed: {self.assumed}")
        if self.head:
            parts.append(f"head: {self.head}")
        return "; ".join(parts)


def warm_start(
    source: str | Path,
    *,
    config: EncoderConfig,
    keep_stride: bool = False,
    cut: bool | None = None,
    source_stride: tuple[int, int] | None = None,
    source_heads: int | None = None,
) -> tuple[SpectrogramEncoder, TransferReport, ModelDescription]:
    """Makes an encoder from another model's weights.

    Args:
        source: As for `tymbal.load_model`.
        config: What is wanted. Frames, mel bins, stride and dropout are taken from it; width, depth, heads, patch and
            the like from the source.
        keep_stride: Take the stride, too, from the source.
        cut: How position embeddings are fitted to shorter clips: cut out of the middle or squeezed. `None` cuts those
            of SSAST files, as SSAST does, and squeezes others.
        source_stride: Stride of a file that does not tell, of SSAST's fine-tuning or a script.
        source_heads: Attention heads of a file of a script, which does not tell.

    Returns:
        The encoder, in training mode; what was taken; and the description of the source.

    Raises:
        ModelError: Where the source is no model, is damaged, or its patches do not fit the wanted spectrograms.
    """
    checkpoint = open_checkpoint(source, stride=source_stride, heads=source_heads)
    encoder, report = warm_encoder(checkpoint, path=str(source), config=config, keep_stride=keep_stride, cut=cut)
    return encoder, report, checkpoint.description


def warm_encoder(
    checkpoint: Checkpoint, *, path: str, config: EncoderConfig, keep_stride: bool = False, cut: bool | None = None
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
    )
    tensors = dict(checkpoint.encoder)
    resized: tuple[str, ...] = ()
    if target.grid != origin.grid:
        by_cutting = checkpoint.door == "ssast" if cut is None else cut
        positions = _positions(tensors, origin, path=path)
        tensors["position_embedding"] = resize_positions(positions, origin.grid, target.grid, cut=by_cutting)
        resized = ("position_embedding",)
    encoder = SpectrogramEncoder(target)
    new = () if "mask_token" in tensors else ("mask_token",)
    for name in new:
        tensors[name] = encoder.state_dict()[name]
    fill(encoder, tensors, path=path)
    taken = tuple(name for name in encoder.state_dict() if name not in resized and name not in new)
    left = (*checkpoint.head, *checkpoint.objective, *checkpoint.left)
    assumed = checkpoint.description.provenance.get("assumed") if checkpoint.door in ("ssast", "script") else None
    return encoder, TransferReport(taken, resized, new, left, assumed)


def _positions(tensors: dict[str, Tensor], origin: EncoderConfig, *, path: str) -> Tensor:
    """The position embeddings of the source, if they are what its description says."""
    wanted = (1, origin.prefix_tokens + origin.num_patches, origin.width)
    found = tensors.get("position_embedding", torch.empty(0))
    if tuple(found.shape) != wanted:
        raise ModelError(
            f"its position embeddings are {tuple(found.shape)}, but its description says {wanted}", path=path
        )
    return found
