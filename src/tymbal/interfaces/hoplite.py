"""Hoplite, the search engine of Perch (github.com/google-research/perch-hoplite): a model for its embedding zoo.

    from tymbal.interfaces.hoplite import HopliteModel

    model = HopliteModel("classifier")
    model.embed(waveform).embeddings       # [frames, 1, features]

A frame is a window of the length that the model was trained on. Hoplite's own `InferenceOutputs` is given where hoplite
is installed, else one with the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.errors import AudioError
from tymbal.inference.frontend import Embedder
from tymbal.inference.streaming import Window, cut_for, windows
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import load_model

__all__ = ["HopliteModel", "InferenceOutputs"]

_AT_ONCE = 32


@dataclass(frozen=True)
class InferenceOutputs:
    """A model's outputs, with the fields of hoplite's class of this name.

    Attributes:
        embeddings: float32 [frames, channels, features], with a leading batch dimension if `batched`.
        logits: Logits of the labels by name of the set, [frames, labels]; empty for an encoder.
        separated_audio: None: nothing is separated.
        batched: Whether the arrays have a leading batch dimension.
        frontend: None: spectrograms are not returned.
    """

    embeddings: NDArray[np.float32] | None
    logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    separated_audio: None = None
    batched: bool = False
    frontend: None = None


class HopliteModel:
    """A model with the methods of hoplite's `EmbeddingModel`.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        pooling: `mean`, `rows` or `cls`.
        device: The device to compute on.

    Attributes:
        sample_rate: Rate of the sound that it takes, in Hz.
        window_size_s: Seconds of a frame.
        hop_size_s: Seconds from one frame to the next.
        class_list: Names of the labels, in the order of the logits.
    """

    def __init__(self, model: str | Path, *, pooling: str = "mean", device: torch.device | str = "cpu") -> None:
        loaded = load_model(model)
        self._embedder = Embedder(loaded, pooling=pooling, device=device)
        self._classifier = loaded.module if isinstance(loaded.module, SpectrogramClassifier) else None
        if self._classifier is not None:
            self._classifier.to(device).eval()
        self._cut = cut_for(loaded.description)
        self.sample_rate = self._cut.rate
        self.window_size_s = self.hop_size_s = self._cut.length / self._cut.rate
        self.class_list = {"labels": loaded.description.labels} if loaded.description.labels else {}

    def embed(self, audio_array: NDArray[np.floating[Any]]) -> Any:
        """Embeds one sound [samples]: embeddings [frames, 1, features], logits [frames, labels]."""
        embeddings, logits = self._frames(np.asarray(audio_array, np.float32))
        return _outputs()(embeddings=embeddings[:, None], logits=logits, separated_audio=None, batched=False)

    def batch_embed(self, audio_batch: NDArray[np.floating[Any]]) -> Any:
        """Embeds sounds [batch, samples]: as `embed`, with a leading batch dimension."""
        outputs = [self._frames(np.asarray(audio, np.float32)) for audio in audio_batch]
        embeddings = np.stack([values for values, _ in outputs])[:, :, None]
        logits = {name: np.stack([part[name] for _, part in outputs]) for name in outputs[0][1]}
        return _outputs()(embeddings=embeddings, logits=logits, separated_audio=None, batched=True)

    def _frames(self, audio: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        if audio.ndim != 1 or len(audio) < self._cut.shortest:
            raise AudioError(
                f"sound must be [samples], at least {self._cut.shortest} of them, not {list(audio.shape)}",
                advice="Mix channels down first; give a longer clip.",
            )
        cut = windows([audio], length=self._cut.length, hop=self._cut.hop, shortest=self._cut.shortest)
        cut_windows = list(cut)
        parts = [self._batch(cut_windows[start : start + _AT_ONCE]) for start in range(0, len(cut_windows), _AT_ONCE)]
        embeddings = np.concatenate([values for values, _ in parts])
        logits = {name: np.concatenate([part[name] for _, part in parts]) for name in parts[0][1]}
        return embeddings, logits

    def _batch(self, batch: list[Window]) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        x, frames = self._embedder.front(batch, length=self._cut.length)
        logits = {}
        if self._classifier is not None:
            with torch.inference_mode():
                logits["labels"] = self._classifier(x, frames=frames).float().cpu().numpy()
        return self._embedder.clips(x, frames), logits


def _outputs() -> Any:
    """Hoplite's class where it is installed."""
    try:
        from perch_hoplite.zoo.zoo_interface import InferenceOutputs as Theirs
    except ImportError:
        return InferenceOutputs
    return Theirs
