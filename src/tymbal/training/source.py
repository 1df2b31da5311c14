"""The spectrograms that a training command is given, or that are made of the sound that it is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tymbal import config
from tymbal.errors import StoreError
from tymbal.models.description import ModelDescription
from tymbal.settings import FeatureSettings, PtSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.store import Store
from tymbal.training.processes import processes

__all__ = ["features_of", "open_source", "statistics"]


def open_source(source: str | os.PathLike[str], run: Path, features: FeatureSettings) -> Store:
    """Opens a store, or prepares a folder of sound or a manifest into `run/store` first and opens that.

    What was left out of the store is also named in `run/failures.csv`.

    Args:
        source: A store, a folder of sound files, or a manifest.
        run: The run folder.
        features: How spectrograms are made, where they have to be.

    Raises:
        StoreError: There is nothing at `source`; or it is not a store, and several processes train.
    """
    path = Path(source)
    if not path.exists():
        raise StoreError("there is no such store, folder of sound or manifest", path=path)
    if not (path / "store.json").is_file():
        if processes() > 1:
            raise StoreError(
                "this is not a store, and several processes cannot prepare one together",
                path=path,
                advice=f"Prepare it once: tymbal prepare {path} -o STORE. Then train from STORE.",
            )
        from tymbal.prepare import prepare

        prepare(path, run / "store", **config.to_keywords(features))
        path = run / "store"
    if (path / "failures.csv").is_file():
        shutil.copyfile(path / "failures.csv", run / "failures.csv")
    return Store.open(path)


def features_of(store: SpectrogramSource, origin: ModelDescription | None = None) -> FeatureSettings:
    """How the spectrograms of a store are made, for the description of a model that learns from them.

    Where nobody wrote it down, they are taken to be made as for the model that it starts from, or as AST and SSAST do.
    """
    if store.features is not None:
        return store.features
    return FeatureSettings(mel_bins=store.mels) if origin is None else origin.features


def statistics(
    settings: PtSettings, store: SpectrogramSource, origin: ModelDescription | None = None
) -> tuple[float, float]:
    """Mean and standard deviation to normalise by: those given, else the first model's, else the data's."""
    known = store if origin is None else origin
    mean = known.mean if settings.dataset_mean is None else settings.dataset_mean
    return mean, known.std if settings.dataset_std is None else settings.dataset_std
