"""X-ARES (Zhang et al. 2025, github.com/jimbozhang/xares): an encoder that takes [batch, samples] of any length.

X-ARES makes the class of a file without arguments, so name the model in a file of your own, `my_encoder.py`:

    from tymbal.interfaces.xares import TymbalEncoder

    class MyEncoder(TymbalEncoder):
        def __init__(self):
            super().__init__("run")

    python -m xares.run my_encoder.py src/tasks/*.py
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tymbal.interfaces.waveform_encoder import WaveformEncoder
from tymbal.models.folder import LoadedModel

__all__ = ["TymbalEncoder"]


class TymbalEncoder(WaveformEncoder):
    """A model as X-ARES wants it; the arguments are those of `WaveformEncoder`.

    Attributes:
        sampling_rate: Rate of the sound that it takes, in Hz.
        output_dim: Length of an embedding.
        hop_size_in_ms: Milliseconds from one embedding to the next.
    """

    def __init__(self, model: str | Path | LoadedModel, *, pooling: str = "rows", layer: int | None = None) -> None:
        super().__init__(model, pooling=pooling, layer=layer)
        self.sampling_rate = self.sample_rate
        self.output_dim = self.dimensions
        self.hop_size_in_ms = self.hop_seconds * 1000

    def forward(self, audio: Tensor) -> Tensor:
        """Sounds [batch, samples], or one [samples], to embeddings along time [batch, time, output_dim]."""
        return self.columns(audio if audio.ndim == 2 else audio[None]).values
