"""The store that a training command is given, or that is made of the sound that it is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tymbal import config
from tymbal.errors import StoreError
from tymbal.settings import FeatureSettings
from tymbal.store.store import Store
from tymbal.training.processes import processes

__all__ = ["open_source"]


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
