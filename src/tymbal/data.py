"""One door to data: this module alone decides what kind of data lies at a path.

    data = open_data("recordings", settings)
    data.has_sound                            True: it is a folder of sound files
    data.spectrograms(run, features)          prepared into run/store, and opened

A verb asks a `DataSource` what it holds and has it opened. What comes out is a store (`tymbal.store.base`), whose
properties tell the rest: labels, splits, views, waveforms, statistics.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import numpy.typing as npt

from tymbal.audio.failures import write_failures
from tymbal.audio.file_lists import labels_at, read_table
from tymbal.audio.hub_datasets import HubDataset, is_hub_dataset
from tymbal.audio.sources import AUDIO_SUFFIXES, sound_files
from tymbal.compute.processes import on_rank_zero, processes
from tymbal.errors import SettingsError, StoreError
from tymbal.files import address, read_json
from tymbal.progress import tell
from tymbal.settings import FeatureSettings, PretrainSettings, PtSettings, TrainingSettings, ViewPairSettings
from tymbal.settings.fields import nature, recipe_defaults
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import StoreDataset
from tymbal.store.packed.format import DESCRIPTION, FAILURES, SPECTROGRAMS, Description
from tymbal.store.packed.mirror import mirror, refresh
from tymbal.store.packed.packed_store import FOR_CONTRASTIVE, open_store
from tymbal.store.pairs.pair_files import GENERATED, metadata_files, read_metadata
from tymbal.store.pairs.pair_store import PairFileStore
from tymbal.store.pt.pt_folder import open_with
from tymbal.store.pt.pt_list import files_beside, pt_files
from tymbal.store.pt.pt_store import PtStore

__all__ = ["FAILURES", "RECORD", "DataSource", "dataset_of", "open_data", "subsample"]

Chosen = TypeVar("Chosen", bound=PtSettings)

RECORD = "spectrograms.parquet"
"""What a run knows of its `.pt` files."""

_HEAD = 1 << 16
_LISTS_PAIRS = re.compile(rb'"(train|val|validation|test)"\s*:\s*\[|"file"\s*:\s*"[^"]*\.pt"')


@dataclass(frozen=True)
class _Kind:
    """A kind of data that may lie at a path.

    Attributes:
        what: In words.
        packed: In the shards of a packed store.
        spectrograms: Single spectrograms, a row each.
        views: Pairs of views, a row each.
        waveforms: Waveforms of equal length, a row each.
        sound: Sound files, which are prepared before they have rows.
        negatives: Clips without a label were looked at: they have none of the labels.
    """

    what: str
    packed: bool = False
    spectrograms: bool = False
    views: bool = False
    waveforms: bool = False
    sound: bool = False
    negatives: bool = False


_NOTHING = _Kind("nothing")
_ON_HUB = _Kind("a data set on the Hugging Face Hub", sound=True)
_PT = _Kind("spectrograms in .pt files", spectrograms=True)
_PAIR_FILES = _Kind("pairs of views in .pt files", views=True)


def open_data(path: str | os.PathLike[str], settings: Chosen) -> DataSource[Chosen]:
    """Returns the data source of a path with data of any kind.

    Nothing is looked at before the first question; then one line on stderr says what it is. So a run that is finished
    does not need its data any more.

    Args:
        path: A packed store of spectrograms, pairs of views or waveforms, here or elsewhere (`s3://bucket/folder`); a
            folder or a list of `.pt` spectrograms; a folder of `.pt` pairs or its metadata; or sound: a folder, a
            list or manifest, one file.
        settings: How to find and read `.pt` files, and how to prepare sound.
    """
    return DataSource(path, settings)


class DataSource(Generic[Chosen]):
    """The data at a path: their kind, and the way to their rows.

    Attributes:
        path: The path; of a store elsewhere its folder in the cache.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Chosen) -> None:
        url = address(path)
        self._url = None if url is None or url.startswith("hf://") else url  # the Hub's names are opened by their kind
        self.path = Path(path) if self._url is None else mirror(self._url)
        self._settings = settings

    def __repr__(self) -> str:
        return f"DataSource({self._url or str(self.path)!r}: {self._kind.what})"

    @cached_property
    def _kind(self) -> _Kind:
        if self._url is not None:
            refresh(self._url)
        kind = _recognise(self.path, self._settings)
        if kind is not _NOTHING:
            named = HubDataset.parse(self.path) if kind is _ON_HUB else self._url or self.path
            tell(f"{named}: {kind.what}")
        return kind

    @property
    def what(self) -> str:
        """The kind of the data in words."""
        return self._kind.what

    @property
    def exists(self) -> bool:
        """Whether the path exists and holds anything."""
        return self._kind is not _NOTHING

    @property
    def is_packed(self) -> bool:
        """Whether its rows lie in the shards of a packed store, which does not change."""
        return self._kind.packed

    @property
    def has_rows(self) -> bool:
        """Whether it can be opened as it is: spectrograms, views or waveforms by row number."""
        return self._kind.spectrograms or self._kind.views or self._kind.waveforms

    @property
    def has_spectrograms(self) -> bool:
        """Whether it holds single spectrograms."""
        return self._kind.spectrograms

    @property
    def has_views(self) -> bool:
        """Whether it holds pairs of views."""
        return self._kind.views

    @property
    def has_waveforms(self) -> bool:
        """Whether it holds waveforms of equal length, to make fresh views of."""
        return self._kind.waveforms

    @property
    def has_sound(self) -> bool:
        """Whether it is sound files, which are prepared before they have rows."""
        return self._kind.sound

    @property
    def has_negatives(self) -> bool:
        """Whether clips without a label were looked at, so that they have none of the labels."""
        return self._kind.negatives

    @cached_property
    def settings(self) -> Chosen:
        """The settings; for sources other than sound, without a recipe's settings for cutting sound into clips.

        Raises:
            SettingsError: The user gave such settings, and not a recipe.
        """
        settings = self._settings
        only = (field for field in fields(settings) if nature(settings, field.name).only_for == ("sound",))
        defaults: dict[str, Any] = {field.name: field.default for field in only}
        sound_only = [name for name, default in defaults.items() if getattr(settings, name) != default]
        if not sound_only or not self.exists or self.has_sound:
            return settings
        by_recipe = recipe_defaults(settings)
        chosen = [name for name in sound_only if getattr(settings, name) != by_recipe.get(name)]
        if chosen:
            raise SettingsError(
                f"{chosen[0]} is for sound: {self.path} holds spectrograms, whose clips are made",
                advice=f"Leave out {' and '.join(chosen)}, or give the folder of sound.",
            )
        return replace(settings, **defaults)

    def store(self) -> SpectrogramSource:
        """Opens the rows as they are: spectrograms, pairs of views or waveforms.

        Raises:
            StoreError: There is nothing, it has no rows yet, or it is damaged.
        """
        if self.is_packed or not self.has_rows:  # of a missing store, open_store says what to do
            return open_store(self.path)
        return PairFileStore(self.path) if self.has_views else open_with(self.path, self._settings)

    def single_spectrograms(self) -> SpectrogramSource:
        """Opens single spectrograms.

        Raises:
            StoreError: There is nothing, it holds something else, or it is damaged.
        """
        if self._kind.views or self._kind.waveforms:
            what = "waveforms" if self._kind.waveforms else "pairs of augmented views"
            raise StoreError(f"holds {what}", path=self.path, advice=FOR_CONTRASTIVE)
        return self.store()

    def spectrograms(self, run: Path, features: FeatureSettings) -> SpectrogramSource:
        """Opens spectrograms; sound is prepared into `run/store` first.

        Files left out are also listed in `run/failures.csv`. Of `.pt` files the run keeps a record, by which it goes
        on with the clips that it was begun with.

        Args:
            run: The run folder, or any other folder that the opened store may need as long as it is used.
            features: How spectrograms of sound are made.

        Raises:
            StoreError: There is nothing; it holds views or waveforms; or it is sound, and several processes train.
            SettingsError: Settings for another kind of data are given.
        """
        if not self.exists:
            self._refuse_nothing()
        if self._kind.packed:
            self._refuse_useless("store", "a store, which has all of this in it")
            self._refuse_the_models("padding", "dataset_mean", "dataset_std")
            self._copy_failures(run)
            return self.single_spectrograms()
        if self._kind.views:
            return self.single_spectrograms()
        if self._kind.spectrograms:
            self._refuse_the_models("dataset_mean", "dataset_std")
            return on_rank_zero(lambda: self._pt(run))
        self._refuse_useless("sound", "not of .pt files")
        self._refuse_the_models("padding", "dataset_mean", "dataset_std")
        self._refuse_processes()
        from tymbal.prepare import prepare_spectrograms

        return prepare_spectrograms(self.path, run, features, self._settings)

    def view_pairs(self, run: Path, features: FeatureSettings | None = None) -> SpectrogramSource:
        """Opens what contrastive pretraining learns from: pairs of views, or what views are made of.

        They are made of waveforms, fresh in every epoch, or of single spectrograms, of which the objective draws them.
        Of sound the generated views are taken, if they are in their usual place; else waveforms are prepared into
        `run/store`. What was left out is named in `run/failures.csv`.

        Args:
            run: The run folder.
            features: How spectrograms of sound are made, where views are drawn from those. None is the default.

        Raises:
            StoreError: There is nothing, or something else; or it is sound, and several processes train.
        """
        settings = self._settings
        if not isinstance(settings, ViewPairSettings):
            raise TypeError("view_pairs takes the settings of an objective that learns from pairs")
        if not self.exists:
            self._refuse_nothing()
        if settings.draws_views and (
            settings.view_source == "spectrogram" or (settings.view_source == "auto" and self.has_spectrograms)
        ):
            return self.spectrograms(run, features or FeatureSettings())
        source = self if settings.view_source in ("fresh", "spectrogram") else self._generated() or self
        source._copy_failures(run)
        if source.has_views and settings.view_source in ("auto", "generated"):
            if source.is_packed:
                return source.store()
            pairs = PairFileStore(source.path, failures_to=run / FAILURES)
            write_failures(run / FAILURES, pairs.failures)
            return pairs
        usable = source.has_waveforms or source.has_sound
        if not usable or settings.view_source in ("generated", "spectrogram"):
            raise _no_views(source.path, generated=source.has_views)
        if source.has_waveforms:
            return source.store()
        self._refuse_processes(" --views 1 --write waveforms")
        from tymbal.prepare import prepare_waveforms

        return prepare_waveforms(self.path, run, settings)

    def _generated(self) -> DataSource[Chosen] | None:
        """Pairs in the usual place, if they were made of this sound."""
        place = DataSource(GENERATED, self._settings)
        if not self.has_sound or not (place.path.exists() and place.has_views):
            return None
        if place.is_packed:
            origin = Description.read(place.path).provenance.get("source")
        else:
            origin = read_metadata(place.path)[1].get("tymbal", {}).get("source")
        if origin is None or Path(origin) != self.path.absolute():
            return None
        tell(f"Its generated views are taken: {place.path}")
        return place

    def _copy_failures(self, run: Path) -> None:
        """Copies what the preparation of a store left out into the run folder."""
        if self.is_packed and (self.path / FAILURES).is_file():
            shutil.copyfile(self.path / FAILURES, run / FAILURES)

    def _pt(self, run: Path) -> PtStore:
        """Opens `.pt` files; a run that has a checkpoint goes on with the clips that it was begun with."""
        begun = any((run / "checkpoints").glob("checkpoint-*"))
        return open_with(self.path, self._settings, failures_to=run / FAILURES, record=run / RECORD, as_recorded=begun)

    def _refuse_nothing(self) -> NoReturn:
        raise StoreError("there is no such store, folder of sound or manifest", path=self.path)

    def _refuse_processes(self, more: str = "") -> None:
        if processes() > 1:
            train = "" if more else " Then train from STORE."
            raise StoreError(
                "this is not a store, and several processes cannot prepare one together",
                path=self.path,
                advice=f"Prepare it once: tymbal prepare {self.path} -o STORE{more or '.'}{train}",
            )

    def _refuse_useless(self, kind: str, what: str) -> None:
        """Refuses settings that are for other kinds of data, and would have no effect."""
        natures = {each.name: nature(PtSettings, each.name).only_for for each in fields(PtSettings)}
        given = self._given([name for name, kinds in natures.items() if kinds and kind not in kinds])
        if given:
            raise SettingsError(
                f"{given[0]} is for other data: {self.path} is {what}",
                advice=f"Leave out {' and '.join(given)}, or give the list or folder that belongs to it.",
            )

    def _given(self, names: Sequence[str]) -> list[str]:
        # What a run of an earlier version did stands in for what it could not be given.
        unsaid = {name: (getattr(PtSettings(), name), nature(PtSettings, name).before) for name in names}
        return [name for name in names if getattr(self._settings, name) not in unsaid[name]]

    def _refuse_the_models(self, *names: str) -> None:
        """Refuses a choice of padding or statistics if nothing is trained: the model's own hold."""
        given = [] if isinstance(self._settings, TrainingSettings) else self._given(names)
        if given:
            raise SettingsError(
                f"{given[0]} has no effect: what the model was trained with holds",
                path=self.path,
                advice=f"Leave out {' and '.join(given)}.",
            )


def _recognise(path: Path, settings: PtSettings) -> _Kind:
    """Recognises the kind of data at a path.

    Raises:
        StoreError: The description of a store is damaged.
        ManifestError: A list cannot be read.
    """
    if is_hub_dataset(path) or not path.exists():
        return _ON_HUB if is_hub_dataset(path) else _NOTHING
    if labels_at(path) is not None:
        return _Kind("labels of `tymbal label`", sound=True, negatives=_has_negatives(path))
    if (path / DESCRIPTION).is_file():
        return _packed_kind(Description.read(path))
    if any(_lists_pairs(file) for file in metadata_files(path)):
        return _PAIR_FILES
    if settings.data_dir is not None or _is_pt(path):
        return _PT
    what = "a folder of sound files" if path.is_dir() else "a list of sound files"
    return _Kind("a sound file" if _is_sound_file(path) else what, sound=True)


def _has_negatives(path: Path) -> bool:
    """Whether somebody looked at a window, and nothing was there."""
    return any(not row["label"] for row in read_table(labels_at(path) or path).rows)


def _packed_kind(description: Description) -> _Kind:
    if description.kind != SPECTROGRAMS:
        return _Kind("a store of waveforms", packed=True, waveforms=True)
    if description.views > 1:
        return _Kind("a store of pairs of views", packed=True, views=True)
    return _Kind("a store of spectrograms", packed=True, spectrograms=True)


def _is_pt(path: Path) -> bool:
    """Whether a folder or a list is one of `.pt` files rather than of sound files.

    A folder that holds both is one of sound; a list is one of `.pt` files where they lie at one of their places.
    """
    if not path.is_dir():
        return not _is_sound_file(path) and files_beside(read_table(path)) is not None
    if next(pt_files(path), None) is None:
        return False
    sounds, _ = sound_files(path)
    if sounds:
        tell(f"{path} holds sound files and .pt files: the sound is used", warning=True)
    return not sounds


def _is_sound_file(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES


def _lists_pairs(file: Path) -> bool:
    """Whether metadata are those of pairs of views; damaged ones are reported when they are opened."""
    with file.open("rb") as opened:
        if _LISTS_PAIRS.search(opened.read(_HEAD)):
            return True
    try:
        read_json(file)
    except ValueError:
        return True
    return False


def _no_views(path: Path, *, generated: bool) -> StoreError:
    what = "has generated views, not waveforms to make fresh ones of" if generated else "holds no pairs of views"
    fresh = " --write waveforms" if generated else ""
    return StoreError(
        f"{what}, which the contrastive objective learns from",
        path=path,
        advice=f"Make them from sound: tymbal prepare SOUND -o STORE --views 5{fresh}",
    )


def subsample(store: SpectrogramSource, run: Path, settings: TrainingSettings) -> int:
    """One clip in how many is still to be taken: what was prepared into the run was thinned on the way."""
    return 1 if store.path.absolute() == (run / "store").absolute() else settings.every


def dataset_of(store: SpectrogramSource, rows: npt.ArrayLike, settings: PretrainSettings) -> StoreDataset:
    """Batches of some rows: read, or of waveforms made into fresh views on the device that trains.

    Raises:
        StoreError: Waveforms do not say how their spectrograms are computed.
    """
    if store.samples is None or not isinstance(settings, ViewPairSettings):
        return StoreDataset(store, rows)
    from tymbal.compute.device import choose_device
    from tymbal.views.augmentation_config import read_augmentation
    from tymbal.views.make import FreshViewDataset, ViewMaker

    device = choose_device(settings.device)[0]
    features = store.features
    if features is None:
        raise StoreError("does not say how spectrograms are computed", path=store.path, advice="Prepare it again.")
    maker = ViewMaker(read_augmentation(settings.augmentations), features, store.samples, device=device)
    carries = settings.carries_padding
    return FreshViewDataset(store, rows, maker, seed=settings.seed, device=device, carries_padding=carries)
