"""A vision transformer over spectrograms: patches in, tokens out.

It is the encoder of AST (Gong, Chung & Glass 2021) and SSAST (Gong et al. 2022): a spectrogram is cut into patches of
mel bins x frames, each becomes a token, a class and a distillation token go in front, learned position embeddings are
added, and pre-norm transformer blocks follow. With the same weights it computes what `transformers.ASTModel` and
SSAST's timm encoder compute. What it adds:

- clips of any length: position embeddings are resized, in two dimensions, to the grid at hand;
- masked tokens (`mask`: replaced by a learned token, as in SSAST) and visible tokens only (`visible`: the others are
  never computed, as in MAE, He et al. 2022);
- a convolutional stem (`EncoderConfig.stem`): two cheap convolutions that a spectrogram passes before it is cut
  (Xiao et al. 2021, "Early convolutions help transformers see better", arXiv:2106.14881);
- fused attention, gradient checkpointing, `torch.compile` without graph breaks.

Patches are numbered frequency first: patch `k = row * columns + column`, row 0 holding the lowest mel bins. Inside a
patch, too, mel bins come before frames. Both are the order of SSAST and Hugging Face.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tymbal.errors import ModelError, SettingsError
from tymbal.models.attention import attend

__all__ = [
    "PREFIX_TOKENS",
    "STEM_STRIDE",
    "Block",
    "EncoderConfig",
    "EncoderOutput",
    "SpectrogramEncoder",
    "resize_positions",
    "take_columns",
    "take_rows",
]

PREFIX_TOKENS = 2
"""Tokens in front of the patches: class and distillation token, as in DeiT and AST."""

STEM_STRIDE = 4
"""Bins and frames of a spectrogram that become one of the stem's output."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of an encoder.

    Attributes:
        width: Length of a token.
        depth: Number of blocks.
        heads: Attention heads.
        mels: Mel bins of a spectrogram.
        frames: Frames of the spectrograms for which the position embeddings are made. Others can be encoded too.
        patch: Mel bins and frames of a patch.
        stride: Mel bins and frames from one patch to the next; less than the patch lets patches overlap.
        mlp_ratio: Hidden width of a block's perceptron over `width`.
        layer_norm_eps: Epsilon of all layer norms.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Dropout after the embeddings, the attention and the perceptron.
        attention_dropout: Dropout of the attention weights.
        attend_to_padding: Whether tokens attend to patches behind the end of a short clip, as in AST and SSAST. Where
            they do not, what a clip is padded with, and how far, changes nothing.
        positions: What clips shorter than `frames` take of the position embeddings: all, squeezed (`resize`), those of
            the middle (`cut`), or the first ones. Longer clips stretch them.
        stem: Channels of the first of two convolutions (3x3, stride 2, GELU; the second has twice as many) that a
            spectrogram passes before it is cut; 0 is none. A patch then also sees the 3 frames and bins before its
            own, and nothing behind them. Sides of patches and strides are multiples of 4.

    Raises:
        SettingsError: Where the parts do not fit each other.
    """

    width: int
    depth: int
    heads: int
    mels: int = 128
    frames: int = 1024
    patch: tuple[int, int] = (16, 16)
    stride: tuple[int, int] = (16, 16)
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attend_to_padding: bool = True
    positions: Literal["resize", "cut", "first"] = "resize"
    stem: int = 0

    def __post_init__(self) -> None:
        # Tuples come back from JSON as lists, and a frozen dataclass with lists cannot be hashed or compared.
        object.__setattr__(self, "patch", tuple(self.patch))
        object.__setattr__(self, "stride", tuple(self.stride))
        if len(self.patch) != 2 or len(self.stride) != 2:
            raise SettingsError("patch and stride of an encoder are two numbers each")
        if not (0 < self.mlp_ratio < math.inf and 0 < self.layer_norm_eps < math.inf):
            raise SettingsError("mlp_ratio and layer_norm_eps of an encoder must be above 0")
        if not (0 <= self.dropout < 1 and 0 <= self.attention_dropout < 1):
            raise SettingsError("dropout of an encoder is a fraction from 0 to below 1")
        if min(self.width, self.depth, self.heads, *self.patch, *self.stride) < 1:
            raise SettingsError("width, depth, heads, patch and stride of an encoder must be 1 or more")
        if self.width % self.heads:
            raise SettingsError(
                f"the encoder's width {self.width} is not a multiple of its {self.heads} heads",
                advice="Heads of 64 are usual: width 192 with 3 heads, 384 with 6, 768 with 12.",
            )
        if self.stem < 0 or (self.stem and any(side % STEM_STRIDE for side in (*self.patch, *self.stride))):
            raise SettingsError(
                f"a stem of {self.stem} channels does not fit patches of {self.patch[0]}x{self.patch[1]} every "
                f"{self.stride[0]}x{self.stride[1]}",
                advice=f"With a stem their sides are multiples of {STEM_STRIDE}; 0 channels are no stem.",
            )
        if self.mels < self.patch[0]:
            raise SettingsError(
                f"a patch of {self.patch[0]} mel bins is taller than a spectrogram of {self.mels}",
                advice=f"Choose a patch of at most {self.mels} mel bins, or more mel bins.",
            )
        self.grid_of(self.frames)

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches."""
        return PREFIX_TOKENS

    @property
    def grid(self) -> tuple[int, int]:
        """Rows (frequency) and columns (time) of patches in `frames` frames."""
        return self.grid_of(self.frames)

    @property
    def num_patches(self) -> int:
        """Patches in `frames` frames."""
        rows, columns = self.grid
        return rows * columns

    @property
    def patch_area(self) -> int:
        """Numbers in a patch."""
        return self.patch[0] * self.patch[1]

    @property
    def projected_area(self) -> int:
        """Numbers that are projected to a token: those of a patch, or what the stem makes of them."""
        return self.patch_area // STEM_STRIDE**2 * 2 * self.stem if self.stem else self.patch_area

    @property
    def cuts_apart(self) -> bool:
        """Whether patches lie side by side and each becomes a token by itself: then some can be given alone."""
        return self.patch == self.stride and not self.stem

    @property
    def hidden_width(self) -> int:
        """Hidden width of a block's perceptron."""
        return round(self.width * self.mlp_ratio)

    def grid_of(self, frames: int) -> tuple[int, int]:
        """Rows and columns of patches in a spectrogram of `frames` frames; a rest narrower than a patch is left out.

        Raises:
            SettingsError: Where not a single patch fits.
        """
        if frames < self.patch[1]:
            raise SettingsError(
                f"a clip of {frames} frames is shorter than one patch of {self.patch[1]} frames",
                advice=f"Pad clips to at least {self.patch[1]} frames, or choose a narrower patch.",
            )
        rows = (self.mels - self.patch[0]) // self.stride[0] + 1
        columns = (frames - self.patch[1]) // self.stride[1] + 1
        return rows, columns

    def real_columns(self, frames: Tensor, columns: int) -> Tensor:
        """Columns, of `columns`, that hold at least one of the first `frames` frames: [batch] to [batch].

        The others lie wholly in padding. At least one column counts as real, so that no clip is without patches.
        """
        return ((frames + self.stride[1] - 1) // self.stride[1]).clamp(1, columns)


class EncoderOutput(NamedTuple):
    """The outputs of an encoder.

    Attributes:
        tokens: After the final norm: [batch, prefix + patches, width], where patches are all or the visible ones.
        grid: Rows and columns of the patches of the input.
        hidden_states: The embeddings and then the output of every block, before the final norm, if requested.
    """

    tokens: Tensor
    grid: tuple[int, int]
    hidden_states: tuple[Tensor, ...] | None


class SpectrogramEncoder(nn.Module):
    """A vision transformer over spectrograms; see the module's text.

    Args:
        config: Its shape.

    Attributes:
        config: Its shape.
        gradient_checkpointing: Recompute the activations of each block in the backward pass, while training.
        mask_token: Takes the place of masked patches. Every encoder has one, so that any can be pretrained.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        if config.stem:
            self.stem = nn.Sequential(
                nn.Conv2d(1, config.stem, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(config.stem, 2 * config.stem, 3, stride=2, padding=1),
                nn.GELU(),
            )
        self.patch_projection = nn.Linear(config.projected_area, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.position_embedding = nn.Parameter(torch.empty(1, PREFIX_TOKENS + config.num_patches, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal of 0.02 (ViT, DeiT); stem and projection keep PyTorch's own for convolutions."""
        for token in (self.cls_token, self.distillation_token, self.mask_token, self.position_embedding):
            nn.init.trunc_normal_(token, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def freeze_below(self, last: int) -> None:
        """Freezes all but the last blocks and, as it belongs to them, the final norm.

        Args:
            last: Number of blocks at the end that stay as they are; with 0 the final norm is frozen, too.

        Raises:
            SettingsError: The encoder has fewer blocks.
        """
        depth = self.config.depth
        if last > depth:
            raise SettingsError(
                f"{last} blocks are to be trained, but the encoder has {depth}",
                advice=f"Set train to all, or to at most {depth}.",
            )
        trained = [*self.blocks[depth - last :], self.norm] if last else []
        self.requires_grad_(requires_grad=False)
        for module in trained:
            module.requires_grad_(requires_grad=True)

    def patchify(self, spectrogram: Tensor) -> Tensor:
        """Cuts spectrograms [batch, frames, mels] into patches [batch, patches, patch area]."""
        (tall, wide), (down, right) = self.config.patch, self.config.stride
        patches = spectrogram.transpose(1, 2).unfold(1, tall, down).unfold(2, wide, right)
        return patches.flatten(3).flatten(1, 2)

    def seen(self, spectrogram: Tensor) -> Tensor:
        """What of each patch is projected to its token: [batch, patches, projected area].

        Without a stem these are the patches; with one, what it makes of them: mel bins, then frames, then channels.
        """
        if not self.config.stem:
            return self.patchify(spectrogram)
        (tall, wide), (down, right) = self.config.patch, self.config.stride
        rows, columns = self.config.grid_of(spectrogram.shape[1])
        # Whole patches only: an odd rest would be padded, and its end seen.
        used = spectrogram[:, : (columns - 1) * right + wide, : (rows - 1) * down + tall]
        # Channels last: two thirds of the time on a CPU.
        picture: Tensor = self.stem(used.transpose(1, 2).unsqueeze(1).to(memory_format=torch.channels_last))
        tall, wide, down, right = (side // STEM_STRIDE for side in (tall, wide, down, right))
        patches = picture.unfold(2, tall, down).unfold(3, wide, right)  # [batch, channels, rows, columns, bins, frames]
        return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings [1, prefix + patches, width] for a grid of rows and columns.

        They are resized in every call and not remembered: next to the blocks this costs nothing, and a copy would be
        wrong as soon as the weights change.
        """
        own = self.config.grid
        positions: Tensor = self.position_embedding
        if self.config.positions != "resize" and grid[1] < own[1]:
            positions = take_columns(positions, own, grid[1], which=self.config.positions)
            own = (own[0], grid[1])
        return resize_positions(positions, own, grid)

    def forward(
        self,
        spectrogram: Tensor,
        *,
        mask: Tensor | None = None,
        visible: Tensor | None = None,
        frames: Tensor | None = None,
        columns: int | None = None,
        hidden_states: bool = False,
        prefix_only: bool = False,
    ) -> EncoderOutput:
        """Encodes normalised spectrograms.

        Args:
            spectrogram: Normalised, [batch, frames, mels]; any number of frames from one patch on. With `columns` the
                `visible` patches of it instead, [batch, visible, patch area], as `patchify` cuts them.
            mask: Patches that are replaced by the mask token: bool, [batch, patches].
            visible: Patches that are encoded at all, by number, in any order: int64, [batch, visible].
            frames: Frames of sound in each clip, int64 [batch], for encoders that do not attend to padding. `None`: all
                are.
            columns: Columns of patches in the whole spectrogram, where its `visible` patches are given in its stead;
                not with a stem.
            hidden_states: Also give the output of every block.
            prefix_only: Give the tokens in front of the patches alone, all that cls pooling looks at: the last block
                then computes no others.

        Returns:
            Tokens after the final norm, with their grid.

        Raises:
            ModelError: Where the mel bins are not those of the encoder.
            SettingsError: Where the clip is shorter than one patch.
        """
        if mask is not None and visible is not None:
            raise ValueError("give mask or visible, not both: what is not visible is not there to be masked")
        if columns is None:
            if spectrogram.shape[-1] != self.config.mels:
                raise ModelError(
                    f"the spectrogram has {spectrogram.shape[-1]} mel bins, but the encoder is made for "
                    f"{self.config.mels}",
                    advice="Give it as [batch, frames, mels], prepared with the mel bins of the model.",
                )
            grid = self.config.grid_of(spectrogram.shape[1])
            patches = self.seen(spectrogram)
            if visible is not None:
                patches = take_rows(patches, visible)  # before the projection: patches that are not seen cost nothing
        else:
            grid, patches = (self.config.grid[0], columns), spectrogram
        tokens = self._embed(patches, self.positions(grid), mask=mask, visible=visible)
        attended = None
        if frames is not None and not self.config.attend_to_padding:
            attended = self._attended(frames, grid, visible)
        states = [tokens] if hidden_states else []
        for number, block in enumerate(self.blocks, 1):
            only = PREFIX_TOKENS if prefix_only and number == len(self.blocks) else None
            if self.gradient_checkpointing and self.training:
                tokens = cast(Tensor, checkpoint(block, tokens, only, attended, use_reentrant=False))
            else:
                tokens = block(tokens, only, attended)
            if hidden_states:
                states.append(tokens)
        return EncoderOutput(self.norm(tokens), grid, tuple(states) if hidden_states else None)

    def _attended(self, frames: Tensor, grid: tuple[int, int], visible: Tensor | None) -> Tensor:
        """Which tokens may be attended to: those in front and patches that hold sound, bool [batch, 1, 1, tokens]."""
        real = self.config.real_columns(frames, grid[1])[:, None]
        patches = torch.arange(grid[0] * grid[1], device=frames.device)[None] if visible is None else visible
        return F.pad(patches % grid[1] < real, (PREFIX_TOKENS, 0), value=True)[:, None, None]

    def _embed(self, patches: Tensor, positions: Tensor, *, mask: Tensor | None, visible: Tensor | None) -> Tensor:
        """Patches [batch, patches, projected area] to tokens [batch, prefix + patches, width] with their positions.

        With `visible` these patches are those, in its order.
        """
        batch = patches.shape[0]
        prefix_positions, patch_positions = positions[:, :PREFIX_TOKENS], positions[:, PREFIX_TOKENS:]
        if visible is not None:
            patch_positions = patch_positions[0].index_select(0, visible.flatten()).view(*visible.shape, -1)
        tokens = self.patch_projection(patches)
        if mask is not None:
            # Not a choice by the mask: broadcast, it takes a CPU five times as long, its backward pass three times.
            share = mask.unsqueeze(-1).to(tokens.dtype)
            tokens = torch.lerp(tokens, self.mask_token.to(tokens.dtype).expand_as(tokens), share)
        prefix = torch.cat([self.cls_token, self.distillation_token], dim=1) + prefix_positions
        tokens = torch.cat([prefix.expand(batch, -1, -1), tokens + patch_positions], dim=1)
        return cast(Tensor, self.dropout(tokens))


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a perceptron, each added to its input."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.width, config.hidden_width)
        self.fc2 = nn.Linear(config.hidden_width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, only: int | None = None, attended: Tensor | None = None) -> Tensor:
        """Tokens [batch, tokens, width] to tokens of the same shape, or to the first `only` of them.

        `attended` says which tokens may be attended to, bool [batch, 1, 1, tokens]; None is all.
        """
        tokens = tokens[:, :only] + self.dropout(self.attention(self.norm1(tokens), only, attended))
        return tokens + cast(Tensor, self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(tokens))))))


class Attention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.projection = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor, only: int | None = None, attended: Tensor | None = None) -> Tensor:
        """As `Block`: tokens [batch, tokens, width] to tokens of the same shape, or to the first `only` of them."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        mixed = attend(qkv, self.dropout if self.training else 0.0, attended, only)
        return cast(Tensor, self.projection(mixed))


def resize_positions(
    positions: Tensor, source: tuple[int, int], target: tuple[int, int], *, cut: bool = False
) -> Tensor:
    """Fits position embeddings to another grid of patches.

    Args:
        positions: [1, prefix + rows x columns, width]; those of the prefix stay as they are.
        source: Rows and columns that they are made for.
        target: Rows and columns of the result.
        cut: Where the target is shorter, take the middle of the source instead of squeezing it, time first and then
            frequency, as AST and SSAST do at fine-tuning. (SSAST's own cut along frequency has a wrong end index and
            fails; this is the one that it means.)

    Returns:
        [1, prefix + rows x columns, width] for the target's rows and columns. Resizing is bilinear.
    """
    if source == target:
        return positions
    prefix, patches = positions[:, :PREFIX_TOKENS], positions[:, PREFIX_TOKENS:]
    image = patches.transpose(1, 2).reshape(1, -1, *source)  # [1, width, rows, columns]
    if cut:
        for dim in (3, 2):
            missing = image.shape[dim] - target[dim - 2]
            if missing > 0:
                start = image.shape[dim] // 2 - target[dim - 2] // 2
                image = image.narrow(dim, start, target[dim - 2])
    if image.shape[2:] != target:
        image = F.interpolate(image.float(), size=target, mode="bilinear", align_corners=False).to(image.dtype)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1)


def take_columns(positions: Tensor, grid: tuple[int, int], columns: int, *, which: Literal["cut", "first"]) -> Tensor:
    """Takes position embeddings of neighbouring columns of patches: those of the middle (`cut`) or the first.

    Args:
        positions: [1, prefix + rows x columns, width].
        grid: Their rows and columns.
        columns: How many columns to take, at most as many as there are.
        which: Which ones.

    Returns:
        [1, prefix + rows x columns, width], columns being those taken.
    """
    start = grid[1] // 2 - columns // 2 if which == "cut" else 0
    patches = positions[:, PREFIX_TOKENS:].reshape(1, *grid, -1).narrow(2, start, columns)
    return torch.cat([positions[:, :PREFIX_TOKENS], patches.flatten(1, 2)], dim=1)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values` [batch, n, width] by number, int64 [batch, m]: [batch, m, width].

    Whole rows are copied, where a gather along the second dimension would look up each number: a tenth of the time.
    """
    batch, length, width = values.shape
    begin = torch.arange(batch, device=index.device)[:, None] * length
    return values.reshape(-1, width).index_select(0, (begin + index).flatten()).view(batch, -1, width)
