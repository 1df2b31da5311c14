"""The classifier that scripts around Hugging Face's AST export, exactly as it computes.

`ASTModel` gives tokens after its final norm. Such scripts apply that norm once more, average all tokens, those of class
and distillation with the patches, and put a linear layer on top. The second norm is a quirk and not a choice: with
other weights than 1 and 0 it scales and shifts twice. A model that was trained like that gives its scores only so.
"""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import SpectrogramEncoder

__all__ = ["SCRIPT_POOLING", "ScriptClassifier"]

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
        tokens: Tensor = self.encoder.norm(self.encoder(spectrogram).tokens)
        return tokens.mean(1)
