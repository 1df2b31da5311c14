"""From tokens to one embedding a clip, and an encoder with a head on it.

A head reads embeddings after a layer norm, as AST's and SSAST's do, or standardised: each number by its own mean and
deviation over clips, which keeps apart what a layer norm over rows and parts of the time weighs against each other.

`ASTModel` gives tokens after its final norm. Such scripts apply that norm once more, average all tokens, those of class
and distillation with the patches, and put a linear layer on top. The second norm is a quirk and not a choice: with
other weights than 1 and 0 it scales and shifts twice. A model that was trained like that gives its scores only so.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from tymbal.compute.processes import gather_batch
from tymbal.errors import SettingsError
from tymbal.models.encoder import PREFIX_TOKENS, EncoderConfig, SpectrogramEncoder

__all__ = [
    "ATTENTION",
    "GRIDS",
    "POOLINGS",
    "SCRIPT_POOLING",
    "AttentivePooling",
    "ScriptClassifier",
    "SpectrogramClassifier",
    "Standardisation",
    "pool",
    "pool_cells",
    "pooled_width",
]

GRIDS = {"grid2": 2, "grid4": 4, "grid8": 8}
"""Poolings that keep order in time, with the number of equal parts of a clip's sound."""

POOLINGS = ("mean", "rows", "cls", "all", *GRIDS)
"""Ways of pooling that have no weights."""

_LEAST_VARIANCE = 1e-5
_MOMENTUM = 0.1
_FEWEST = 8
"""Of `Standardisation`: what is added to a variance, how fast running ones follow, fewest clips that say enough."""

ATTENTION = "attention"
"""Pooling by `AttentivePooling`."""


def pooled_width(how: str, config: EncoderConfig) -> int:
    """Length of an embedding that is pooled in this way."""
    if how != ATTENTION:
        _check(how)
    if how in GRIDS:
        return config.grid[0] * GRIDS[how] * config.width
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
            the mean of class and distillation token (AST, Hugging Face, SSAST's ft_cls); `all`: the mean over all
            patches, class and distillation token alike; `grid2`, `grid4`, `grid8`: rows and so many equal parts of
            the time side by side, see `pool_cells`.
        grid: Rows and columns of patches.
        prefix: Tokens in front of the patches.
        real_columns: Columns at the start of each clip that hold sound, [batch]: the rest, padding, is left out of
            all but `cls`. `None` takes all.

    Returns:
        [batch, width], for `rows` [batch, rows x width], for grids [batch, rows x parts x width].

    Raises:
        SettingsError: For an unknown way of pooling.
    """
    _check(how)
    if how == "cls":
        return tokens[:, :prefix].mean(1)
    if how in GRIDS:
        real = torch.full(tokens.shape[:1], grid[1], device=tokens.device) if real_columns is None else real_columns
        return pool_cells(tokens[:, prefix:], grid=grid, parts=GRIDS[how], real_columns=real).flatten(1)
    patches = tokens[:, prefix:].reshape(tokens.shape[0], *grid, -1)  # [batch, rows, columns, width]
    if real_columns is None:
        by_row = patches.mean(2)
    else:
        weight = (_is_real(real_columns, grid) / real_columns.unsqueeze(1)).to(patches.dtype)
        by_row = (patches * weight[:, None, :, None]).sum(2)
    if how == "rows":
        return by_row.flatten(1)
    if how == "mean":
        return by_row.mean(1)
    columns = torch.full(tokens.shape[:1], grid[1], device=tokens.device) if real_columns is None else real_columns
    share = (prefix / (prefix + grid[0] * columns)).to(patches.dtype).unsqueeze(1)
    return torch.lerp(by_row.mean(1), tokens[:, :prefix].mean(1), share)


def pool_cells(
    tokens: Tensor, *, grid: tuple[int, int], parts: int, real_columns: Tensor, patches: Tensor | None = None
) -> Tensor:
    """Pools tokens by rows of mel bins and by equal parts of the time that holds sound: order in time stays.

    A column of patches on the border of two parts counts for both, by its share in each. A cell without a token (where
    only some are encoded) takes the mean of its row, a row without any the mean of the clip.

    Args:
        tokens: Patch tokens, [batch, patches, width].
        grid: Rows and columns of all patches.
        parts: Parts of equal length.
        real_columns: Columns at the start of each clip that hold sound, int64 [batch].
        patches: Numbers of the patches whose tokens these are, int64 [batch, patches]; None is all, in order.

    Returns:
        [batch, rows x parts, width]; cells are ordered by row, then by time.
    """
    rows, columns = grid
    if patches is None:
        patches = torch.arange(rows * columns, device=tokens.device).expand(tokens.shape[0], -1)
    row, column = patches // columns, patches % columns
    length = (real_columns / parts)[:, None, None]
    begin = torch.arange(parts, device=tokens.device)[:, None] * length  # [batch, parts, 1]
    column = column[:, None, :].to(length.dtype)
    share = (torch.minimum(begin + length, column + 1) - torch.maximum(begin, column)).clamp(min=0)
    inside = row[:, None, :] == torch.arange(rows, device=tokens.device)[:, None]  # [batch, rows, patches]
    weight = inside.unsqueeze(2) * share.unsqueeze(1)  # [batch, rows, parts, patches]
    of_row = weight.sum(2, keepdim=True)
    of_clip = of_row.sum(1, keepdim=True)
    of_clip = torch.where(of_clip.any(3, keepdim=True), of_clip, 1.0)
    of_row = torch.where(of_row.any(3, keepdim=True), of_row, of_clip)
    weight = torch.where(weight.any(3, keepdim=True), weight, of_row).flatten(1, 2)
    weight = weight / weight.sum(2, keepdim=True)
    return torch.bmm(weight.to(tokens.dtype), tokens)


class AttentivePooling(nn.Module):
    """A mean over the patches whose weights are learned: each head attends with a query of its own to its channels.

    The query begins as zeros, at which all patches weigh the same; what is trained moves away from the mean as far as
    that helps. One learned query over the tokens is the attentive pooling of Safari, India and Hernando (2020); heads
    are those of the encoder, as in the attentive probes of Chen et al. (2023).

    Args:
        config: The encoder's.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.heads, config.width // config.heads))

    def forward(
        self, tokens: Tensor, *, grid: tuple[int, int], prefix: int = PREFIX_TOKENS, real_columns: Tensor | None = None
    ) -> Tensor:
        """Pools tokens as `pool` does, [batch, prefix + rows x columns, width] to [batch, width]."""
        heads, channels = self.query.shape
        patches = tokens[:, prefix:].reshape(tokens.shape[0], -1, heads, channels)  # [batch, patches, heads, channels]
        scores = (patches * self.query).sum(3) / channels**0.5  # [batch, patches, heads]
        if real_columns is not None:
            real = _is_real(real_columns, grid)[:, None, :].expand(-1, grid[0], -1).flatten(1)
            scores = scores.masked_fill(~real.unsqueeze(2), -torch.inf)
        weights: Tensor = scores.softmax(1).unsqueeze(3)
        return (patches * weights).sum(1).flatten(1)


def _is_real(real_columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """The columns that hold sound, bool [batch, columns]."""
    return torch.arange(grid[1], device=real_columns.device) < real_columns.unsqueeze(1)


def _check(how: str) -> None:
    if how not in POOLINGS:
        raise SettingsError(f"pooling is {how!r}", advice=f"Set pooling to one of {', '.join(POOLINGS)}.")


class Standardisation(nn.Module):
    """Standardises each number of an embedding: minus its mean over clips, divided by its deviation.

    In training both are those of the batch, over all processes, and the running ones follow them, by which anything
    else is standardised: a batch norm (Ioffe and Szegedy 2015) without weights of its own. A batch of few clips says
    little of either; with fewer than eight, training uses the running ones, too.

    Args:
        width: Numbers of an embedding.

    Attributes:
        mean: Running mean, [width].
        variance: Running variance, [width].
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    @torch.no_grad()
    def begin(self, embeddings: Tensor) -> None:
        """Takes mean and variance from embeddings of clips, [clips, width]."""
        values = embeddings.double()
        self.mean.copy_(values.mean(0))
        self.variance.copy_(values.var(0, unbiased=False))

    @property
    def deviation(self) -> Tensor:
        """What embeddings are divided by, [width]."""
        return (self.variance + _LEAST_VARIANCE).sqrt()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Standardises embeddings [batch, width]; float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            values = embeddings.float()
            if not self.training:
                return (values - self.mean) / self.deviation
            everyone = gather_batch(values)
            mean, variance = everyone.mean(0), everyone.var(0, unbiased=False)
            with torch.no_grad():
                self.mean.lerp_(mean, _MOMENTUM)
                self.variance.lerp_(variance, _MOMENTUM)
            if len(everyone) < _FEWEST:
                return (values - self.mean) / self.deviation
            return (values - mean) / (variance + _LEAST_VARIANCE).sqrt()


class SpectrogramClassifier(nn.Module):
    """Scores of labels from a spectrogram.

    Args:
        encoder: The encoder. Its mask token is frozen: a classifier masks nothing, and a parameter without a gradient
            stops distributed training.
        labels: Number of labels.
        pooling: `mean`, `rows`, `grid2`, `grid4`, `grid8`, `cls`, `all` or `attention`; see `tymbal.models.classifier`.
        dropout: Dropout before the linear layer.
        skip_padding: Pool over the patches that hold sound, not over those behind the end of a short clip. Without
            effect on `cls`.
        head_eps: Epsilon of the head's layer norm. `None` is the encoder's, the only one that a Hugging Face
            configuration can express; SSAST has 1e-5 here.
        standardise: Whether the head has a `Standardisation` in the place of its layer norm.
        groups: Sizes of the groups of labels that exclude each other, where several classifiers stand side by side;
            together they are all labels. Empty for one classifier.
    """

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        labels: int,
        *,
        pooling: str = "mean",
        skip_padding: bool = False,
        dropout: float = 0.0,
        head_eps: float | None = None,
        standardise: bool = False,
        groups: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.groups = groups
        self.encoder.mask_token.requires_grad = False
        self.pooling = pooling
        self.skip_padding = skip_padding and pooling != "cls"
        width = pooled_width(pooling, encoder.config)
        self.attentive = AttentivePooling(encoder.config) if pooling == ATTENTION else None
        eps = encoder.config.layer_norm_eps if head_eps is None else head_eps
        self.head_norm = Standardisation(width) if standardise else nn.LayerNorm(width, eps=eps)
        self.head_dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def embed(self, spectrogram: Tensor, *, frames: Tensor | None = None) -> Tensor:
        """Computes what the head sees.

        Args:
            spectrogram: Normalised, [batch, frames, mels].
            frames: Frames of real sound, int64 [batch]. `None`: all are.

        Returns:
            [batch, pooled width].
        """
        output = self.encoder(spectrogram, frames=frames, prefix_only=self.pooling == "cls")
        real = None
        if self.skip_padding and frames is not None:
            real = self.encoder.config.real_columns(frames, output.grid[1])
        if self.attentive is not None:
            return cast(Tensor, self.attentive(output.tokens, grid=output.grid, real_columns=real))
        return pool(output.tokens, how=self.pooling, grid=output.grid, real_columns=real)

    def forward(self, spectrogram: Tensor, *, frames: Tensor | None = None) -> Tensor:
        """Normalised spectrograms [batch, frames, mels] to logits [batch, labels]; `frames` as in `embed`.

        With groups these are the log-odds of each label within its group: their sigmoid is the group's softmax.
        """
        pooled = self.embed(spectrogram, frames=frames)
        logits: Tensor = self.head(self.head_dropout(self.head_norm(pooled)))
        return (
            torch.cat([_log_odds(part) for part in logits.split_with_sizes(self.groups, 1)], 1)
            if self.groups
            else logits
        )


def _log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each label of a softmax against all others, [batch, labels]; of a single one its own logit."""
    count = logits.shape[1]
    if count == 1:
        return logits
    own = torch.eye(count, dtype=torch.bool, device=logits.device)
    return logits - logits.unsqueeze(1).masked_fill(own, -torch.inf).logsumexp(2)


SCRIPT_POOLING = "all-normed-twice"
"""What the pooling of these classifiers is called in a model's description."""


class ScriptClassifier(SpectrogramClassifier):
    """A linear layer on the mean over all tokens after the encoder's final norm, applied twice.

    Args:
        encoder: The encoder.
        labels: Number of labels.
    """

    def __init__(self, encoder: SpectrogramEncoder, labels: int) -> None:
        super().__init__(encoder, labels, pooling="cls")
        self.pooling = SCRIPT_POOLING
        self.register_module("head_norm", nn.Identity())

    @override
    def embed(self, spectrogram: Tensor, *, frames: Tensor | None = None) -> Tensor:
        tokens: Tensor = self.encoder.norm(self.encoder(spectrogram, frames=frames).tokens)
        return tokens.mean(1)
