"""The spectrograms that a training command is given, or that are made of the sound that it is given."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tymbal import config
from tymbal.audio.manifest import Manifest
from tymbal.audio.sources import read_source
from tymbal.compute.processes import on_rank_zero, processes
from tymbal.errors import SettingsError, StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.features.normalisation import Normalisation, NormalizeBy
from tymbal.models.description import ModelDescription
from tymbal.progress import tell
from tymbal.settings import (
    FeatureSettings,
    FinetuneSettings,
    PretrainSettings,
    PtSettings,
    SoundSettings,
    TrainingSettings,
)
from tymbal.store.base import SpectrogramSource
from tymbal.store.packed.format import DESCRIPTION
from tymbal.store.packed.packed_store import Store
from tymbal.store.pt.pt_folder import open_with
from tymbal.store.pt.pt_list import holds_pt
from tymbal.store.pt.pt_store import PtStore

__all__ = [
    "RECORD",
    "features_of",
    "is_sound",
    "normalisation_of",
    "open_source",
    "subsample",
    "without_sound_settings",
]

Chosen = TypeVar("Chosen", PretrainSettings, FinetuneSettings)

FAILURES = "failures.csv"

RECORD = "spectrograms.parquet"
"""What a run knows of its `.pt` files."""

_ONLY_PT = ("data_dir", "data_val_dir", "layout")
_ONLY_PREPARING = ("data_val", "label_csv", "frames", "mel_bins", "validation")
_ONLY_SOUND = ("window", "sample_rate", "group_pattern")


def open_source(
    source: str | os.PathLike[str], run: Path, features: FeatureSettings, settings: PtSettings
) -> SpectrogramSource:
    """Opens spectrograms, or prepares a folder of sound or a manifest into `run/store` first and opens that.

    What was left out is also named in `run/failures.csv`.

    Args:
        source: A store; a folder or a list of `.pt` files; a folder or a list of sound files.
        run: The run folder.
        features: How spectrograms are made, where they have to be.
        settings: How `.pt` files are read. Of sound files, the label table, the validation list or fraction, frames
            and mel bins are taken from it; where they are `SoundSettings`, too, all of these.

    Raises:
        StoreError: There is nothing at `source`; or it is sound, and several processes train.
        SettingsError: Settings for `.pt` files are given, but it is something else.
    """
    path = Path(source)
    if not path.exists():
        raise StoreError("there is no such store, folder of sound or manifest", path=path)
    if (path / DESCRIPTION).is_file():
        _refuse(settings, path, "a store, which has all of this in it", _ONLY_PT + _ONLY_PREPARING)
        _refuse_padding(settings, path)
        return _opened(path, run)
    if settings.data_dir is not None or holds_pt(path):
        return on_rank_zero(lambda: _open_pt(path, run, settings))
    _refuse(settings, path, "not of .pt files", _ONLY_PT)
    _refuse_padding(settings, path)
    if processes() > 1:
        raise StoreError(
            "this is not a store, and several processes cannot prepare one together",
            path=path,
            advice=f"Prepare it once: tymbal prepare {path} -o STORE. Then train from STORE.",
        )
    return _opened(_prepared(path, run, features, settings), run)


def is_sound(source: str | os.PathLike[str], settings: PtSettings) -> bool:
    """Whether there are sound files or a list of them, not spectrograms."""
    path = Path(source)
    spectrograms = (path / DESCRIPTION).is_file() or settings.data_dir is not None or holds_pt(path)
    return path.exists() and not spectrograms


def subsample(store: SpectrogramSource, run: Path, settings: TrainingSettings) -> int:
    """One clip in how many is still to be taken: what was prepared into the run was thinned on the way."""
    return 1 if store.path.absolute() == (run / "store").absolute() else settings.every


def without_sound_settings(source: str | os.PathLike[str], settings: Chosen) -> Chosen:
    """Settings without those of a recipe that are for sound, where the source is spectrograms, whose clips are made.

    Raises:
        SettingsError: The user gave some, and not a recipe.
    """
    path, wanted = Path(source), [name for name in _ONLY_SOUND if getattr(settings, name) is not None]
    if not wanted or not path.exists() or is_sound(path, settings):
        return settings
    by_recipe = _recipe(settings)
    given = [name for name in wanted if getattr(settings, name) != by_recipe.get(name)]
    if given:
        raise SettingsError(
            f"{given[0]} is for sound: {path} holds spectrograms, whose clips are made",
            advice=f"Leave out {' and '.join(given)}, or give the folder of sound.",
        )
    return replace(settings, window=None, sample_rate=None, group_pattern=None)


def _recipe(settings: PtSettings) -> dict[str, Any]:
    """Defaults of the recipe that the settings have chosen, if any."""
    chosen = [each for each in getattr(type(settings), "recipes", ()) if getattr(settings, each.setting) == each.value]
    return {name: value for recipe in chosen for name, value in recipe.defaults.items()}


def _opened(store: Path, run: Path) -> Store:
    if (store / FAILURES).is_file():
        shutil.copyfile(store / FAILURES, run / FAILURES)
    return Store.open(store)


def _open_pt(path: Path, run: Path, settings: PtSettings) -> PtStore:
    """Opens `.pt` files; a run that has a checkpoint goes on with the clips that it was begun with."""
    begun = any((run / "checkpoints").glob("checkpoint-*"))
    return open_with(path, settings, failures_to=run / FAILURES, record=run / RECORD, settled=begun)


def _prepared(path: Path, run: Path, features: FeatureSettings, settings: PtSettings) -> Path:
    """Prepares sound into the run folder; gives the store."""
    from tymbal.prepare import prepare

    keywords = config.to_keywords(features)
    if settings.mel_bins is not None:
        keywords["mel_bins"] = settings.mel_bins
    cut = settings.frames is None
    if isinstance(settings, SoundSettings):
        if settings.sample_rate is not None:
            keywords["sample_rate"] = settings.sample_rate
        keywords |= {"window": settings.window, "group_pattern": settings.group_pattern}
        # A length in frames alone crops, as SSAST does. The recipes are for clips, and lose nothing of longer files.
        cut = cut or settings.window is not None or "window" in _recipe(settings)
    every = settings.every if isinstance(settings, TrainingSettings) else 1
    if every > 1:
        tell(f"Of every class and split one clip in {every} is prepared")
    sound: Path | Manifest = path
    if settings.data_val is not None:
        sound = _together(path, Path(settings.data_val))
    prepared = prepare(
        sound,
        run / "store",
        label_csv=settings.label_csv,
        validation=settings.validation,
        frames=settings.frames,
        longer="windows" if cut else "crop-start",
        every=every,
        **keywords,
    )
    if prepared.failures:
        count = len(prepared.failures)
        tell(f"{count:,} files or parts of files were left out: {run / FAILURES} says why", warning=True)
    return run / "store"


def _together(train: Path, validation: Path) -> Manifest:
    """One manifest of two lists of sound files."""
    clips = [
        replace(clip, split=split, id=f"{split}/{clip.id}")
        for split, part in (("train", train), ("validation", validation))
        for clip in read_source(part).clips
    ]
    return Manifest(tuple(clips), train.absolute().parent)


def _refuse(settings: PtSettings, path: Path, what: str, names: tuple[str, ...]) -> None:
    """Refuses settings that would have no effect."""
    plain = PtSettings()
    given = [name for name in names if getattr(settings, name) != getattr(plain, name)]
    if given:
        raise SettingsError(
            f"{given[0]} is for other data: {path} is {what}",
            advice=f"Leave out {' and '.join(given)}, or give the list or folder that belongs to it.",
        )


def _refuse_padding(settings: PtSettings, path: Path) -> None:
    """Refuses a choice of padding where nothing is trained, and a model has settled it."""
    if not isinstance(settings, TrainingSettings):
        _refuse(settings, path, "not of .pt files", ("padding",))


def features_of(store: SpectrogramSource, origin: ModelDescription | None = None) -> FeatureSettings:
    """How the spectrograms of a store are made, for the description of a model that learns from them.

    Where nobody wrote it down, they are taken to be made as for the model that it starts from, or as AST and SSAST do.
    """
    if store.features is not None:
        return store.features
    return FeatureSettings(mel_bins=store.mels) if origin is None else origin.features


def normalisation_of(
    settings: PretrainSettings | FinetuneSettings, store: SpectrogramSource, origin: ModelDescription | None = None
) -> Normalisation:
    """How spectrograms are normalised: as the settings say, else as the first model knows it, else by the data's."""
    known = store if origin is None else origin
    by: NormalizeBy = "clip" if origin is None else origin.normalize
    padding = known.padding if settings.padding is None else {"silence": LOG_FLOOR, "zeros": 0.0}[settings.padding]
    return Normalisation(
        mean=known.mean if settings.dataset_mean is None else settings.dataset_mean,
        std=known.std if settings.dataset_std is None else settings.dataset_std,
        padding=padding,
        by=by if settings.normalize == "auto" else settings.normalize,
    )
