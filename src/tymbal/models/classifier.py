"""An encoder with a head: layer norm and a linear layer on the pooled tokens (AST, SSAST)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.pooling import ATTENTION, AttentivePooling, pool, pooled_width

__all__ = ["SpectrogramClassifier"]


class SpectrogramClassifier(nn.Module):
    """Scores of labels from a spectrogram.

    Args:
        encoder: The encoder. Its mask token is frozen: a classifier masks nothing, and a parameter without a gradient
            stops distributed training.
        labels: Number of labels.
        pooling: `mean`, `rows`, `cls`, `all` or `attention`; see `tymbal.models.pooling`.
        dropout: Dropout before the linear layer.
        skip_padding: Pool over the patches that hold sound, not over those behind the end of a short clip. Without
            effect on `cls`.
        head_eps: Epsilon of the head's layer norm. `None` is the encoder's, the only one that a Hugging Face
            configuration can express; SSAST has 1e-5 here.
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
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.mask_token.requires_grad = False
        self.pooling = pooling
        self.skip_padding = skip_padding and pooling != "cls"
        width = pooled_width(pooling, encoder.config)
        self.attentive = AttentivePooling(encoder.config) if pooling == ATTENTION else None
        self.head_norm = nn.LayerNorm(width, eps=encoder.config.layer_norm_eps if head_eps is None else head_eps)
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
        output = self.encoder(spectrogram, prefix_only=self.pooling == "cls")
        real = None
        if self.skip_padding and frames is not None:
            real = self.encoder.config.real_columns(frames, output.grid[1])
        if self.attentive is not None:
            return cast(Tensor, self.attentive(output.tokens, grid=output.grid, real_columns=real))
        return pool(output.tokens, how=self.pooling, grid=output.grid, real_columns=real)

    def forward(self, spectrogram: Tensor, *, frames: Tensor | None = None) -> Tensor:
        """Normalised spectrograms [batch, frames, mels] to logits [batch, labels]; `frames` as in `embed`."""
        pooled = self.embed(spectrogram, frames=frames)
        return cast(Tensor, self.head(self.head_dropout(self.head_norm(pooled))))
