"""From tokens to one embedding a clip: the mean over patches, over time with frequency rows kept apart, or cls."""

from __future__ import annotations

import torch
from torch import Tensor

from tymbal.errors import SettingsError
from tymbal.models.encoder import PREFIX_TOKENS, EncoderConfig

__all__ = ["POOLINGS", "pool", "pooled_width"]

POOLINGS = ("mean", "rows", "cls")


def pooled_width(how: str, config: EncoderConfig) -> int:
    """Length of an embedding that is pooled in this way."""
    _check(how)
    return config.grid[0] * config.width if how == "rows" else config.width


def pool(
    tokens: Tensor,
    *,
    how: str,
    grid: tuple[int, int],
    prefix: int = PREFIX_TOKENS,
    real_columns: Tensor | None = None,
) -> Tensor:
    """Pools the tokens of a clip into one embedding.

    Args:
        tokens: [batch, prefix + rows x columns, width].
        how: `mean` over all patches (SSAST's ft_avgtok); `rows`: the mean over time, the rows of mel bins side by side
            (M2D, Niizumi et al. 2023; ATST, Li et al. 2024), which keeps apart what sounds low and what high; `cls`:
            the mean of class and distillation token (AST, Hugging Face, SSAST's ft_cls).
        grid: Rows and columns of patches.
        prefix: Tokens in front of the patches.
        real_columns: Columns at the start of each clip that hold sound, [batch]: the rest, padding, is left out of
            `mean` and `rows`. `None` takes all.

    Returns:
        [batch, width], for `rows` [batch, rows x width].

    Raises:
        SettingsError: For an unknown way of pooling.
    """
    _check(how)
    if how == "cls":
        return tokens[:, :prefix].mean(1)
    patches = tokens[:, prefix:].reshape(tokens.shape[0], *grid, -1)  # [batch, rows, columns, width]
    if real_columns is None:
        by_row = patches.mean(2)
    else:
        real = torch.arange(grid[1], device=tokens.device) < real_columns.unsqueeze(1)  # [batch, columns]
        weight = (real / real_columns.unsqueeze(1)).to(patches.dtype)
        by_row = (patches * weight[:, None, :, None]).sum(2)
    return by_row.flatten(1) if how == "rows" else by_row.mean(1)


def _check(how: str) -> None:
    if how not in POOLINGS:
        raise SettingsError(f"pooling is {how!r}", advice=f"Set pooling to one of {', '.join(POOLINGS)}.")
