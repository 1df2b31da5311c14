"""What a preparation was begun with, so that it continues with the same or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tymbal.audio.failures import Failure
from tymbal.audio.manifest import Manifest
from tymbal.config import diff, to_mapping
from tymbal.errors import StoreError
from tymbal.files import PARTIAL, write_json
from tymbal.preparation.clips import Listed
from tymbal.preparation.plan import Plan
from tymbal.settings import FeatureSettings, PrepareSettings, ViewSettings
from tymbal.store.format import DESCRIPTION, INDEX, SHARDS, WORK, Description
from tymbal.store.open import open_store
from tymbal.store.pair_files import METADATA, PART_METADATA, read_metadata
from tymbal.views.config import augmentation_mapping, chosen_augmentation

__all__ = ["FAILURES", "Record", "check_output", "is_complete", "read_failures", "refuse_changes"]

FAILURES = "failures.csv"
_RECORD = "plan.json"
_NO_MATTER = frozenset({"workers", "part", "preview", "force", "executor", "scheduler"})
_DRAWN = frozenset({"augmentations", "num_waveform_augs", "num_spectrogram_augs"})
_AGAIN = "Choose another output folder, or delete this one to begin anew."


@dataclass(frozen=True)
class Record:
    """What a preparation was begun with.

    Attributes:
        source: Where the clips come from.
        settings: All that can change the result.
        files: All files, those that failed among them, sorted.
        digest: Of the plan.
    """

    source: str
    settings: dict[str, Any]
    files: list[str]
    digest: str

    @classmethod
    def of(
        cls, source: str | os.PathLike[str] | Manifest, settings: PrepareSettings, listed: Listed, plan: Plan
    ) -> Record:
        """The record of a preparation that is about to begin."""
        place = source.root if isinstance(source, Manifest) else Path(source).absolute()
        return cls(str(place), _relevant(settings), sorted(listed.files), plan.digest())

    @classmethod
    def read(cls, store: Path) -> Record | None:
        """The record of a store that is not complete; None if it was not begun."""
        try:
            return cls(**json.loads((store / WORK / _RECORD).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def features(self) -> FeatureSettings:
        """How spectrograms are computed."""
        return FeatureSettings(**{name: self.settings[name] for name in FeatureSettings.__dataclass_fields__})

    def write(self, store: Path) -> None:
        """Keeps the record until the store is complete."""
        write_json(store / WORK / _RECORD, asdict(self))


def check_output(store: Path, settings: PrepareSettings) -> None:
    """Whether these settings may write into a folder, as far as that can be told at once.

    Raises:
        StoreError: It holds something else, or a store of other settings.
    """
    if store.exists() and not store.is_dir():
        raise StoreError("is a file, not a folder", path=store, advice="Choose another output folder.")
    if is_complete(store):
        _refuse_settings(_made_with(store), settings, store, "was made")
        return
    record = Record.read(store)
    if record is not None:
        _refuse_settings(record.settings, settings, store, "was begun")
    elif store.is_dir():
        ours = {WORK, SHARDS, INDEX, FAILURES, "train", "val", "test", *PART_METADATA}
        strange = [path.name for path in store.iterdir() if path.name.removesuffix(PARTIAL) not in ours]
        if strange:
            raise StoreError(
                f"is no store, and not empty: it holds {min(strange)}",
                path=store,
                advice="Choose a new folder for the store.",
            )


def refuse_changes(store: Path, record: Record) -> None:
    """Whether a preparation is the one that was begun, or finished, in a folder.

    Raises:
        StoreError: Its files, or what is known of them, are others.
    """
    if (store / METADATA).is_file():
        told = read_metadata(store)[1].get("tymbal", {})
        digest, files = told.get("plan"), set(told.get("files", ()))
    elif (store / DESCRIPTION).is_file():
        opened = open_store(store)
        digest = opened.description.provenance.get("plan")
        files = {*pc.unique(opened.index["file"]).to_pylist(), *(failure.file for failure in read_failures(store))}
    else:
        before = Record.read(store)
        if before is None:
            return
        digest, files = before.digest, set(before.files)
    if digest == record.digest:
        return
    changes = [
        *_named("new", set(record.files) - files),
        *_named("gone", files - set(record.files)),
    ] or ["the same files, with other lengths, labels, groups or splits"]
    raise StoreError(
        "was begun from another source:" + "".join(f"\n    {line}" for line in changes), path=store, advice=_AGAIN
    )


def is_complete(store: Path) -> bool:
    """Whether a folder holds all that a preparation wanted to put there."""
    return (store / DESCRIPTION).is_file() or (store / METADATA).is_file()


def _made_with(store: Path) -> dict[str, Any]:
    if (store / METADATA).is_file():
        return dict(read_metadata(store)[1].get("tymbal", {}).get("settings", {}))
    return Description.read(store).settings


def read_failures(store: Path) -> list[Failure]:
    """What was left out of a store."""
    path = store / FAILURES
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [Failure(**row) for row in csv.DictReader(file)]


def _relevant(settings: PrepareSettings) -> dict[str, Any]:
    given = {key: value for key, value in to_mapping(settings).items() if key not in _NO_MATTER | _DRAWN}
    if settings.every == 1:
        del given["every"]  # stores of before know no such setting
    if not settings.views:
        return {key: value for key, value in given.items() if key not in ViewSettings.__dataclass_fields__}
    # What a file of augmentations says, so that a change in it is seen, setting by setting.
    return {**given, **_flat(augmentation_mapping(chosen_augmentation(settings)))}


def _flat(mapping: Mapping[str, Any], prefix: str = "augmentations") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and value:
            found |= _flat(value, name)
        else:
            found[name] = value
    return found


def _refuse_settings(before: dict[str, Any], settings: PrepareSettings, store: Path, how: str) -> None:
    changes = diff(before, _relevant(settings))
    if changes:
        lines = "".join(f"\n    {line}" for line in changes)
        raise StoreError(f"{how} with other settings:{lines}", path=store, advice=_AGAIN)


def _named(what: str, files: Iterable[str]) -> list[str]:
    names = sorted(files)
    if not names:
        return []
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return [f"{what}: {', '.join(names[:3])}{more}"]
