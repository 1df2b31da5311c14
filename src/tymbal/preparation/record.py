"""The record of a preparation, the check of its disk space, and its last step, from finished shards to a store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, cast

import pyarrow.compute as pc

from tymbal.audio import failures as tables
from tymbal.audio.failures import Failure, write_failures
from tymbal.audio.manifest import Manifest
from tymbal.audio.sources import Listing
from tymbal.config import deciding, diff
from tymbal.errors import AudioError, ManifestError, StoreError
from tymbal.features.normalisation import Moments
from tymbal.files import DAMAGED, PARTIAL, read_json, set_aside, verified, with_checksum, write_json
from tymbal.preparation.build import Built
from tymbal.preparation.clips import ADDED, Listed
from tymbal.preparation.plan import Plan
from tymbal.progress import tell
from tymbal.settings import FeatureSettings, PrepareSettings, ViewSettings
from tymbal.store.packed.format import DESCRIPTION, FAILURES, INDEX, SHARDS, SPECTROGRAMS, WAVEFORMS, WORK, Description
from tymbal.store.packed.packed_store import read_index
from tymbal.store.packed.writer import finish_store
from tymbal.store.pairs.pair_files import METADATA, PART_METADATA, FileFacts, entry_of, read_metadata, write_metadata
from tymbal.views.augmentation_config import augmentation_mapping, chosen_augmentation
from tymbal.views.own_views import own_views

__all__ = [
    "FAILURES",
    "Record",
    "begun_digest",
    "begun_source",
    "check_output",
    "check_same_plan",
    "check_space",
    "finish",
    "is_complete",
    "left_out_before",
    "nothing_left",
    "passed_over_settings",
    "read_failures",
]

_RECORD = "plan.json"
_READING = {"reading": 3}  # goes up where sources come to be read otherwise, so that what was made before stays
_AGAIN = "Choose another output folder, or delete this one to begin anew."


@dataclass(frozen=True)
class Record:
    """The settings and plan that a preparation was begun with.

    Attributes:
        source: The folder or list of the clips.
        settings: All that can change the result.
        files: All files, those that failed among them, sorted.
        digest: Hash of the plan.
        unopened: Files that could not be opened when it was begun: file, reason and advice of each.
    """

    source: str
    settings: dict[str, Any]
    files: list[str]
    digest: str
    unopened: list[list[str]] = field(default_factory=list)

    @classmethod
    def of(
        cls, source: str | os.PathLike[str] | Manifest | Listing, settings: PrepareSettings, listed: Listed, plan: Plan
    ) -> Record:
        """The record of a preparation that is about to begin."""
        place = source.root if isinstance(source, Manifest | Listing) else Path(source).absolute()
        unopened = [[failure.file, failure.reason, failure.advice] for failure in listed.failures]
        return cls(str(place), _relevant(settings), sorted(listed.files), plan.digest(), unopened)

    @classmethod
    def read(cls, store: Path) -> Record | None:
        """The record of a store that is not complete; None if it was not begun.

        A damaged one is set aside with the outcomes of its shards: nothing says any more what they are of.
        """
        path = store / WORK / _RECORD
        try:
            return cls(**verified(read_json(path)))._checked()
        except FileNotFoundError:
            return None
        except (TypeError, ValueError) as error:
            for sidecar in (store / WORK).glob("[0-9]*.json"):
                sidecar.unlink()
            tell(f"{path} is damaged ({error}): all is made anew; {set_aside(path)} is as it was", warning=True)
            return None

    def _checked(self) -> Record:
        """Itself.

        Raises:
            TypeError: It holds something else than the settings, files and failures of a preparation.
        """
        self.failures()
        if not isinstance(self.settings, dict) or not isinstance(self.files, list):
            raise TypeError("it holds no settings or files")
        return self

    def failures(self) -> list[Failure]:
        """The files that could not be opened when it was begun."""
        return [Failure(*each) for each in self.unopened]

    def features(self) -> FeatureSettings:
        """How spectrograms are computed."""
        return FeatureSettings(**{name: self.settings[name] for name in FeatureSettings.__dataclass_fields__})

    def write(self, store: Path) -> None:
        """Keeps the record until the store is complete."""
        write_json(store / WORK / _RECORD, with_checksum(asdict(self)))


def check_output(store: Path, settings: PrepareSettings) -> None:
    """Checks quickly that these settings may write into a folder.

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
        names = [path.name for path in store.iterdir() if not path.name.endswith(DAMAGED)]
        strange = [name for name in names if name.removesuffix(PARTIAL) not in ours]
        if strange:
            raise StoreError(
                f"is no store, and not empty: it holds {min(strange)}",
                path=store,
                advice="Choose a new folder for the store.",
            )


def begun_digest(store: Path) -> str | None:
    """The hash of the plan by which a folder was begun or finished; None where it was not, or does not say."""
    if (store / METADATA).is_file():
        return cast("str | None", read_metadata(store)[1].get("tymbal", {}).get("plan"))
    if (store / DESCRIPTION).is_file():
        return cast("str | None", Description.read(store).provenance.get("plan"))
    before = Record.read(store)
    return None if before is None else before.digest


def begun_source(store: Path) -> str | None:
    """The source that a folder was begun or finished with; None where it was not, or does not say."""
    if is_complete(store):
        return cast("str | None", _provenance(store).get("source"))
    before = Record.read(store)
    return None if before is None else before.source


def check_same_plan(store: Path, record: Record) -> None:
    """Checks that a preparation is the one that was begun, or finished, in a folder.

    Raises:
        StoreError: Its files, or what is known of them, are others.
    """
    digest = begun_digest(store)
    if (store / METADATA).is_file():
        recorded = read_metadata(store)[1].get("tymbal", {})
        files = set(recorded.get("files", ()))
    elif (store / DESCRIPTION).is_file():
        description = Description.read(store)
        index, _ = read_index(store, description)
        left_out = {failure.file for failure in read_failures(store) if failure.reason != ADDED}
        files = {*pc.unique(index["file"]).to_pylist(), *left_out}
    else:
        before = Record.read(store)
        if before is None:
            return
        files = set(before.files)
    if digest == record.digest:
        return
    if _was_read_otherwise(store) and files == set(record.files):
        tell("It was made as an earlier version read its source (labels, groups, splits, lengths), and stays as it is")
        return
    changes = [
        *_named("new", set(record.files) - files),
        *_named("gone", files - set(record.files)),
    ] or ["the same files, with other lengths, labels, groups or splits"]
    closed = [failure for failure in record.failures() if failure.file in files]
    if closed:
        changes.append(f"{len(closed):,} files cannot be opened now: {closed[0].file}: {closed[0].reason}")
    raise StoreError(
        "was begun from another source:" + "".join(f"\n    {line}" for line in changes), path=store, advice=_AGAIN
    )


def _was_read_otherwise(store: Path) -> bool:
    """Whether a finished preparation is of a version that read some sources otherwise."""
    return is_complete(store) and _provenance(store).get("reading") != _READING["reading"]


def passed_over_settings(store: Path) -> bool:
    """Whether a finished preparation is of a version that passed over settings which do not fit a source."""
    return is_complete(store) and "reading" not in _provenance(store)


def is_complete(store: Path) -> bool:
    """Whether a folder holds a finished preparation."""
    return (store / DESCRIPTION).is_file() or (store / METADATA).is_file()


def _made_with(store: Path) -> dict[str, Any]:
    if (store / METADATA).is_file():
        return dict(read_metadata(store)[1].get("tymbal", {}).get("settings", {}))
    return Description.read(store).settings


def read_failures(store: Path) -> list[Failure]:
    """The files left out of a store, with reasons."""
    path = store / FAILURES
    if not path.is_file():
        return []
    try:
        return tables.read_failures(path)
    except ManifestError as error:
        tell(str(error), warning=True)
        return []


def _relevant(settings: PrepareSettings) -> dict[str, Any]:
    given = deciding(settings)
    before: dict[str, Any] = {"every": 1, "label_separator": None, "columns": [], "rename": [], "annotations": "clips"}
    for name, usual in before.items():
        if given[name] == usual:
            del given[name]  # stores of before know no such setting
    if not settings.views:
        return {key: value for key, value in given.items() if key not in ViewSettings.__dataclass_fields__}
    # What a file of augmentations says, so that a change in it is seen, setting by setting.
    augmentation = chosen_augmentation(settings)
    own = {"augmentations.source": own_views(augmentation.functions).source()} if augmentation.functions else {}
    return {**given, **_flat(augmentation_mapping(augmentation)), **own}


def _flat(mapping: Mapping[str, Any], prefix: str = "augmentations") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, name)
        else:
            flat[name] = value
    return flat


def _refuse_settings(before: dict[str, Any], settings: PrepareSettings, store: Path, how: str) -> None:
    now = _relevant(settings)
    if "label_separator" not in before and now.get("label_separator") == ";":
        del now["label_separator"]  # as all lists were read before there was a choice
    changes = diff(before, now)
    if changes:
        lines = "".join(f"\n    {line}" for line in changes)
        raise StoreError(f"{how} with other settings:{lines}", path=store, advice=_AGAIN)


def _named(what: str, files: Iterable[str]) -> list[str]:
    names = sorted(files)
    if not names:
        return []
    more = f" and {len(names) - 3:,} more" if len(names) > 4 else ""
    return [f"{what}: {', '.join(names[: 3 if more else 4])}{more}"]


_SPARE = 1.05  # for the index and other files beside the shards


def check_space(folder: Path, needed: int, *, force: bool) -> None:
    """Reports the space needed and the space free.

    Args:
        folder: The output folder; it need not exist.
        needed: Bytes that are still to be written.
        force: Go on although they do not fit.

    Raises:
        StoreError: They do not fit.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    needed = round(needed * _SPARE)
    tell(f"{_size(needed)} are needed, {_size(free)} are free")
    if needed <= free:
        return
    if force:
        tell("The disk is too small; going on, as forced", warning=True)
        return
    raise StoreError(
        f"the disk is too small: {_size(needed)} are needed, {_size(free)} are free",
        path=folder,
        advice="Make room, or choose another output folder, or fewer versions; a packed store takes half of what .pt "
        "files do; force goes on nevertheless.",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def finish(
    store: Path,
    built: Sequence[Built],
    *,
    named: str,
    unopened: Sequence[Failure],
    plan: Plan,
    record: Record,
    settings: PrepareSettings,
) -> None:
    """Writes what makes the folder complete.

    Args:
        store: The folder.
        built: All shards.
        named: The folder as the user named it.
        unopened: Files that could not be opened.
        plan: The plan.
        record: The record that it was begun with.
        settings: The settings of the preparation.

    Raises:
        AudioError: Not one clip could be used.
    """
    failures = list(dict.fromkeys([*unopened, *(failure for shard in built for failure in shard.failures)]))
    # Before the rest is complete, so that nothing complete lacks it.
    write_failures(store / FAILURES, failures)
    if not any(shard.entries for shard in built):
        raise nothing_left(failures, record.source)
    moments = reduce(Moments.merge, (shard.moments for shard in built))
    if settings.write == "pt":
        _finish_files(store, built, moments, named=named, plan=plan, record=record, settings=settings)
        return
    waveforms = settings.write == "waveforms"
    provenance: dict[str, Any] = {
        "source": record.source,
        "plan": record.digest,
        "window_seconds": plan.seconds,
        **_READING,
        **_without(record),
    }
    if waveforms:
        provenance["samples"] = round(plan.seconds * settings.sample_rate)
    finish_store(
        store,
        shards=[(shard.shard, shard.entries) for shard in built],
        checksums=[shard.checksums for shard in built],
        features=record.features(),
        frames=plan.frames,
        views=2 if settings.views and not waveforms else 1,
        kind=WAVEFORMS if waveforms else SPECTROGRAMS,
        moments=moments,
        settings=record.settings,
        provenance=provenance,
    )


def _finish_files(
    store: Path,
    built: Sequence[Built],
    moments: Moments,
    *,
    named: str,
    plan: Plan,
    record: Record,
    settings: PrepareSettings,
) -> None:
    mels = settings.mel_bins
    entries = [
        (entry.split, entry_of(named, FileFacts(name, size, crc), entry, frames=plan.frames, mels=mels))
        for shard in built
        for entry, (name, size), crc in zip(
            shard.entries, shard.files, shard.checksums or [None] * len(shard.files), strict=True
        )
    ]
    metadata: dict[str, Any] = {
        "config": {
            "sample_rate": settings.sample_rate,
            "n_mels": mels,
            "duration": plan.seconds,
            "num_versions": settings.views,
            "num_waveform_augs": record.settings["augmentations.num_waveform_augs"],
            "num_spectrogram_augs": record.settings["augmentations.num_spectrogram_augs"],
        },
        "tymbal": {
            "settings": record.settings,
            "source": record.source,
            "plan": record.digest,
            "files": record.files,
            **_READING,
            **_without(record),
            "features": asdict(record.features()),
            "statistics": {"mean": moments.mean, "std": moments.std},
        },
    }
    write_metadata(store, entries, metadata, part=settings.part)
    if settings.part is None:
        for part in PART_METADATA:
            (store / part).unlink(missing_ok=True)


def _without(record: Record) -> dict[str, Any]:
    """What says of a finished preparation which files could not be opened, so that they stay left out."""
    return {"unopened": [failure.file for failure in record.failures()]} if record.unopened else {}


def left_out_before(store: Path, record: Record | None) -> tuple[list[Failure], list[Failure]]:
    """The files that a preparation was begun without: those that could not be opened, and those that came later.

    Args:
        store: The folder.
        record: The record of a preparation that is not finished.
    """
    if record is not None:
        return record.failures(), []
    if not is_complete(store):
        return [], []
    unopened = set(_provenance(store).get("unopened", ()))
    failures = read_failures(store)
    return (
        [failure for failure in failures if failure.file in unopened],
        [failure for failure in failures if failure.reason == ADDED],
    )


def _provenance(store: Path) -> Mapping[str, Any]:
    if (store / METADATA).is_file():
        return dict(read_metadata(store)[1].get("tymbal", {}))
    return Description.read(store).provenance


def nothing_left(failures: Sequence[Failure], source: str) -> AudioError:
    """The error where not one clip of a source can be used."""
    some = "".join(f"\n    {failure.file}: {failure.reason}" for failure in failures[:3])
    advice = failures[0].advice if failures else None
    return AudioError(f"not one of its clips can be used{some}", path=source, advice=advice)
