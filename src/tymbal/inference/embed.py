"""Embeddings of the clips of a store by a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.errors import ModelError
from tymbal.inference.encode import check_layer, encode_layers
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.store.base import SpectrogramSource

__all__ = ["check_features", "embed_layers", "embed_store"]


def embed_store(
    encoder: SpectrogramEncoder,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    description: ModelDescription,
    poolings: Sequence[str],
    layer: int | None = None,
    skip_padding: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Embeds rows of a store.

    Args:
        encoder: The encoder; it is moved to the device and put into evaluation mode.
        store: Where the spectrograms are.
        rows: Which of them, [clips].
        description: How the encoder's model normalises and pads.
        poolings: Ways of pooling, all from one pass.
        layer: Number of blocks to go through; 0 is the embedded patches. `None` is all of them and the final norm.
        skip_padding: Pool over the patches that hold sound, not over those of silence behind a short clip.
        batch_size: Clips a batch.
        device: Where to compute.
        dtype: Arithmetic, bfloat16 or float16; `None` is float32.
        progress: Told of each batch.

    Returns:
        For each pooling [clips, dimensions].

    Raises:
        ModelError: The store's mel bins are not the encoder's.
        SettingsError: There is no such layer.
    """
    found = embed_layers(
        encoder,
        store,
        rows,
        description=description,
        poolings=poolings,
        layers=[layer],
        skip_padding=skip_padding,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    return {how: found[how, layer] for how in poolings}


def embed_layers(
    encoder: SpectrogramEncoder,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    description: ModelDescription,
    poolings: Sequence[str],
    layers: Sequence[int | None],
    skip_padding: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, int | None], NDArray[np.float32]]:
    """Embeds rows of a store from several layers in one pass; the arguments are those of `embed_store`.

    Returns:
        For each pooling and layer [clips, dimensions].

    Raises:
        ModelError: The store's mel bins are not the encoder's.
        SettingsError: There is no such layer.
    """
    for layer in layers:
        check_layer(encoder, layer)
    device = torch.device(device)
    encoder = encoder.to(device).eval()
    found: dict[tuple[str, int | None], list[Tensor]] = {(how, layer): [] for how in poolings for layer in layers}
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        store.announce(rows[start + batch_size : start + 2 * batch_size])
        frames = torch.from_numpy(store.real_frames[part].astype(np.int64)).to(device)
        raw = torch.from_numpy(store.gather(part)).to(device)
        x = description.normalisation(raw, frames)
        encoded = encode_layers(encoder, x, frames, layers=layers, skip_padding=skip_padding, dtype=dtype)
        for (how, layer), parts in found.items():
            parts.append(encoded[layer].pooled(how).cpu())
        if progress is not None:
            progress.advance(len(part))
    return {place: torch.cat(parts).numpy() for place, parts in found.items()}


def check_features(store: SpectrogramSource, description: ModelDescription, *, path: Any = None) -> None:
    """Refuses a store whose spectrograms are not the ones that the model has learned from.

    Of spectrograms that others computed only the number of mel bins is known.

    Raises:
        ModelError: They differ, and in what.
    """
    from tymbal.config import diff

    if store.features is not None:
        lines = diff(description.features, store.features)
    else:
        lines = diff({"mel_bins": description.features.mel_bins}, {"mel_bins": store.mels})
    if lines:
        raise ModelError(
            f"the model and the store {store.path} are made with other spectrograms:\n  " + "\n  ".join(lines),
            path=path,
            advice="Prepare the sound again with the settings of the model, the values on the left.",
        )
