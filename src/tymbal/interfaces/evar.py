"""EVAR, the evaluation package for audio representations of Niizumi et al. (github.com/nttcslab/eval-audio-repr).

In a checkout of EVAR, put a file `evar/ar_tymbal.py` beside the others, name it in `lineareval.py` as they are, and
write the configuration that `config` gives to `config/tymbal.yaml`:

    from tymbal.interfaces.evar import AR_Tymbal

    python lineareval.py config/tymbal.yaml cremad
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tymbal.interfaces.waveform_encoder import WaveformEncoder
from tymbal.models.classifier import pooled_width
from tymbal.models.folder import load_model

__all__ = ["AR_Tymbal", "config"]

_POOLING = "rows"


class AR_Tymbal(WaveformEncoder):  # noqa: N801 - EVAR names its classes so
    """A model with the methods of EVAR's `BaseAudioRepr`.

    Args:
        cfg: EVAR's configuration; `weight_file` is the model.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(str(cfg.weight_file), pooling=_POOLING)
        self.cfg = cfg

    def precompute(self, device: torch.device | str, data_loader: Any) -> None:
        """Does nothing: how spectrograms are normalised belongs to the model, not to the data of a task."""

    def encode_frames(self, batch_audio: Tensor) -> Tensor:
        """Sounds [batch, samples] to embeddings along time [batch, dimensions, time]."""
        return self.columns(batch_audio).values.transpose(1, 2)

    def forward(self, batch_audio: Tensor) -> Tensor:
        """Sounds [batch, samples] to embeddings [batch, dimensions]."""
        return self.scene(batch_audio)


def config(model: str | Path) -> dict[str, Any]:
    """EVAR's configuration of a model, to be written as YAML."""
    description = load_model(model).description
    features = description.features
    return {
        "audio_repr": "ar_tymbal.AR_Tymbal",
        "weight_file": str(model),
        "feature_d": pooled_width(_POOLING, description.encoder),
        "sample_rate": features.sample_rate,
        "n_fft": 1 << (features.window_samples - 1).bit_length(),
        "window_size": features.window_samples,
        "hop_size": features.shift_samples,
        "n_mels": features.mel_bins,
        "f_min": features.low_freq,
        "f_max": features.high_freq or features.sample_rate / 2,
        "mean": description.mean,
        "std": description.std,
    }
