"""HEAR, the Holistic Evaluation of Audio Representations (Turian et al. 2022, hearbenchmark.com/hear-api.html).

    hear-validator tymbal.interfaces.hear -m run
    python -m heareval.embeddings.runner tymbal.interfaces.hear --model run

Timestamps are the middles of the columns of patches: every 160 ms with patches of 16 frames, every 20 ms with those of
2, which is within the 50 ms that HEAR suggests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tymbal.interfaces.waveform_encoder import WaveformEncoder
from tymbal.models.description import AUDIOSET_MEAN, AUDIOSET_STD, ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import LoadedModel
from tymbal.progress import tell
from tymbal.settings import FeatureSettings

__all__ = ["HearModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


class HearModel(WaveformEncoder):
    """A model as HEAR wants it.

    Attributes:
        scene_embedding_size: Length of a scene embedding.
        timestamp_embedding_size: Length of a timestamp embedding.
    """

    def __init__(self, model: str | LoadedModel, *, pooling: str = "rows", layer: int | None = None) -> None:
        super().__init__(model, pooling=pooling, layer=layer)
        self.scene_embedding_size = self.timestamp_embedding_size = self.dimensions


def load_model(model_file_path: str = "", *, pooling: str = "rows", layer: int | None = None) -> torch.nn.Module:
    """Loads a model.

    Args:
        model_file_path: A run, a model folder, a Hugging Face or SSAST checkpoint. Without one, which only the
            validator does, it is an encoder with random weights.
        pooling: `mean` of the rows of patches, or `rows`, side by side.
        layer: Number of blocks to go through; `None` is all of them and the final norm.
    """
    if model_file_path:
        return HearModel(model_file_path, pooling=pooling, layer=layer)
    tell("No model was given: these are random weights. Give a run or a model folder.", warning=True)
    return HearModel(_random(), pooling=pooling, layer=layer)


def get_timestamp_embeddings(audio: Tensor, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Embeddings along time.

    Args:
        audio: Mono sounds in [-1, 1] at the model's rate, [sounds, samples].
        model: The model from `load_model`.

    Returns:
        float32 [sounds, timestamps, timestamp_embedding_size], and the timestamps in milliseconds, float32
        [sounds, timestamps].
    """
    columns = _checked(model).columns(audio)
    timestamps = (columns.seconds * 1000).float().expand(len(audio), -1)
    return columns.values, timestamps


def get_scene_embeddings(audio: Tensor, model: torch.nn.Module) -> Tensor:
    """One embedding a sound: float32 [sounds, scene_embedding_size]; the arguments are as above."""
    return _checked(model).scene(audio)


def _checked(model: torch.nn.Module) -> HearModel:
    if not isinstance(model, HearModel):
        raise TypeError(f"the model is a {type(model).__name__}, not one that load_model gave")
    return model


def _random() -> LoadedModel:
    config = EncoderConfig(width=192, depth=12, heads=3)
    encoder = SpectrogramEncoder(config).eval()
    description = ModelDescription(
        encoder=config, features=FeatureSettings(), mean=AUDIOSET_MEAN, std=AUDIOSET_STD, padding=0.0
    )
    return LoadedModel(encoder, description, {})
