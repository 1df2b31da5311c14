"""Embeddings of a store for a probe, computed once for the same model, clips and settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tymbal.evaluation.cache import keep, kept, key_of
from tymbal.inference import embed
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.settings import ProbeSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.store import Store
from tymbal.training.device import choose_device, choose_precision

__all__ = ["embed_kept"]


def embed_kept(
    encoder: SpectrogramEncoder,
    description: ModelDescription,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    layers: Sequence[int | None],
    settings: ProbeSettings,
    lasting: bool,
    progress: Progress,
) -> dict[tuple[str, int | None], NDArray[np.float32]]:
    """Embeds rows of a store from several layers, or takes what an earlier probe has kept.

    Args:
        encoder: The encoder.
        description: How its model normalises.
        store: Where the spectrograms are.
        rows: Which of them, [clips].
        layers: Layers, as in `embed_layers`.
        settings: Poolings, device and whether embeddings are kept.
        lasting: Whether the store will still be there for the next probe.
        progress: Told of each batch.

    Returns:
        For each pooling and layer [clips, dimensions].
    """
    device, _ = choose_device(settings.device)
    dtype, _ = choose_precision(settings.precision, device)
    places = [(pooling, layer) for pooling in settings.pooling for layer in layers]
    keys: dict[tuple[str, int | None], str] = {}
    if settings.cache and lasting and isinstance(store, Store):
        how = {"skip_padding": settings.skip_padding, "device": device.type, "dtype": str(dtype)}
        common = key_of(encoder, description, store, rows, how)
        keys = {(pooling, layer): f"{common}-{pooling}-{layer}" for pooling, layer in places}
        held = {place: kept(key) for place, key in keys.items()}
        known = {place: values for place, values in held.items() if values is not None and len(values) == len(rows)}
        if len(known) == len(places):
            progress.advance(len(rows))
            return known
    found = embed.embed_layers(
        encoder,
        store,
        rows,
        description=description,
        poolings=settings.pooling,
        layers=layers,
        skip_padding=settings.skip_padding,
        batch_size=settings.batch_size,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    for place, key in keys.items():
        keep(key, found[place])
    return found
