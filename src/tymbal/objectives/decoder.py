"""The light decoder of the visible-only form: the encoder sees a part of the patches, the decoder fills in the rest.

Encoding only what is visible makes a step several times cheaper: of SSAST's 512 patches 400 are masked, and twelve
blocks then work on 112 tokens instead of 512. It is the masked autoencoder (He et al. 2022), for SSAST's objectives
MAE-AST (Baade et al. 2022), and another model than SSAST: the encoder never meets a mask token, and the prediction is
made by the decoder, which is thrown away after pretraining.

The decoder's position embeddings are fixed sines and cosines of row and column, as in both papers, although the
encoder's are learned. The encoder's have to be, to exchange weights with AST and SSAST. Here nothing asks for it: fixed
ones fit clips of any length without being resized, they tell places apart from the first step on, and of what is thrown
away nothing has to be learned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from tymbal.errors import SettingsError
from tymbal.models.encoder import PREFIX_TOKENS, Block, EncoderConfig

__all__ = ["VisibleDecoder", "sine_positions"]


class VisibleDecoder(nn.Module):
    """Transformer blocks over all patches, of which the encoder saw some.

    Args:
        config: The shape of the encoder.
        depth: Number of blocks; two in MAE-AST.
        width: Their width, with attention heads as wide as the encoder's. `None` is the encoder's width, as in MAE-AST.

    Attributes:
        width: Length of a token.
        mask_token: Stands at the places of patches that the encoder did not see.

    Raises:
        SettingsError: Where the width does not fit the heads or the position embeddings.
    """

    def __init__(self, config: EncoderConfig, *, depth: int = 2, width: int | None = None) -> None:
        super().__init__()
        shape = _shape(config, depth, width or config.width)
        self.width = shape.width
        self.embed = nn.Linear(config.width, shape.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(depth))
        self.norm = nn.LayerNorm(shape.width, eps=config.layer_norm_eps)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():  # as the encoder's blocks
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decodes all patches from the visible ones.

        Args:
            tokens: The encoder's tokens of the visible patches, [batch, prefix + visible, encoder's width].
            visible: Their numbers, int64 [batch, visible].
            grid: Rows and columns of all patches.

        Returns:
            [batch, prefix + patches, width], after a final norm.
        """
        tokens = self.embed(tokens)
        prefix, visible_tokens = tokens[:, :PREFIX_TOKENS], tokens[:, PREFIX_TOKENS:]
        batch, count = tokens.shape[0], grid[0] * grid[1]
        unseen = self.mask_token.to(tokens.dtype).expand(batch, count, -1)
        # Whole rows, for the same reason as `take_rows`.
        place = (torch.arange(batch, device=visible.device)[:, None] * count + visible).flatten()
        patches = unseen.flatten(0, 1).index_copy(0, place, visible_tokens.flatten(0, 1)).view(batch, count, -1)
        tokens = torch.cat([prefix, patches + sine_positions(grid, self.width, device=tokens.device)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens))


def sine_positions(grid: tuple[int, int], width: int, *, device: torch.device | None = None) -> Tensor:
    """Sine-cosine position embeddings of a grid of patches.

    The first half of the numbers depends on the row (frequency), the second on the column (time); each half is the
    sines and then the cosines of Vaswani et al. 2017.

    Args:
        grid: Rows and columns of patches.
        width: Numbers per position, a multiple of 4.
        device: Device of the result.

    Returns:
        float32 [rows x columns, width], frequency first as all patches.
    """
    rate = 10_000.0 ** -torch.linspace(0, 1, width // 4 + 1, device=device)[:-1]
    row, column = (torch.arange(length, device=device).unsqueeze(1) * rate for length in grid)
    by_row, by_column = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (row, column))
    shape = (*grid, width // 2)
    return torch.cat([by_row.unsqueeze(1).expand(shape), by_column.expand(shape)], dim=2).flatten(0, 1)


def _shape(config: EncoderConfig, depth: int, width: int) -> EncoderConfig:
    head = config.width // config.heads
    if width % head or width % 4:
        unit = head if head % 4 == 0 else 4 * head
        raise SettingsError(
            f"the decoder's width {width} is not a multiple of {unit}",
            advice=f"Set decoder_width to a multiple of {unit}: its attention heads are as wide as the encoder's, "
            f"{head}, and its position embeddings need a multiple of 4.",
        )
    return replace(config, width=width, depth=depth, heads=width // head)
