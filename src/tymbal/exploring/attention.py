"""Where an encoder looks: the attention of its last block, and rollout through all of them.

Rollout (Abnar and Zuidema 2020, "Quantifying attention flow in transformers") multiplies the attention of the blocks,
half of each being what a token keeps of itself. Both are read where the model reads: from the class tokens where they
are what is pooled, else from the patches, whose mean is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tymbal.models.encoder import Block, SpectrogramEncoder

__all__ = ["MOST_TOKENS", "Attention", "attention", "readers"]

MOST_TOKENS = 2500
"""Above this number of tokens no attention is computed: it grows with the square."""


@dataclass(frozen=True)
class Attention:
    """Shares of attention that the tokens of one clip get; each sums to 1.

    Attributes:
        last: In the last block, the mean over its heads, [tokens].
        rollout: Through all blocks, [tokens].
    """

    last: Tensor
    rollout: Tensor


def readers(pooling: str | None, *, prefix: int, grid: tuple[int, int], real_columns: int) -> Tensor:
    """The tokens from which a model reads, int64.

    Args:
        pooling: How it pools; see `tymbal.models.pooling.pool`. `None` is as `mean`.
        prefix: Tokens in front of the patches.
        grid: Rows and columns of patches.
        real_columns: Columns at the start that hold sound.
    """
    rows, columns = grid
    front = torch.arange(prefix)
    patches = prefix + torch.arange(rows * columns).view(rows, columns)[:, :real_columns].flatten()
    if pooling == "cls":
        return front
    return torch.cat([front, patches]) if pooling is not None and pooling.startswith("all") else patches


@torch.inference_mode()
def attention(encoder: SpectrogramEncoder, x: Tensor, *, readers: Tensor) -> Attention:
    """Computes the attention inside an encoder, in float32.

    Args:
        encoder: In evaluation mode.
        x: One normalised spectrogram, [1, frames, mels].
        readers: Tokens from which it is read, int64 [readers].
    """
    found: list[Tensor] = []
    heads = encoder.config.heads

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(_weights(output[0].float(), heads))

    handles = [cast(Block, block).attention.qkv.register_forward_hook(keep) for block in encoder.blocks]
    try:
        encoder(x)
    finally:
        for handle in handles:
            handle.remove()
    last = found[-1][readers].mean(0)
    flow = torch.zeros_like(last)
    flow[readers] = 1 / len(readers)
    for weights in reversed(found):  # a row through the product of the blocks, from the last to the first
        flow = 0.5 * flow + 0.5 * flow @ weights
    return Attention(last.cpu(), flow.cpu())


def _weights(qkv: Tensor, heads: int) -> Tensor:
    """The mean over the heads of their attention, [tokens, 3 x width] to [tokens, tokens], head by head for memory."""
    length, width = qkv.shape[0], qkv.shape[1] // 3
    queries, keys = qkv.view(length, 3, heads, width // heads).permute(1, 2, 0, 3)[:2]  # [heads, tokens, channels]
    total = torch.zeros(length, length, device=qkv.device)
    for query, key in zip(queries, keys, strict=True):
        total += (query @ key.T / query.shape[1] ** 0.5).softmax(1)
    return total / heads
