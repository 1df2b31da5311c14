"""What makes a folder of finished shards, or of finished files, whole: index and description, or metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

from tymbal.audio.failures import Failure, write_failures
from tymbal.errors import AudioError
from tymbal.features.statistics import Moments
from tymbal.preparation.build import Built
from tymbal.preparation.plan import Plan
from tymbal.preparation.record import FAILURES, Record
from tymbal.settings import PrepareSettings
from tymbal.store.format import SPECTROGRAMS, WAVEFORMS
from tymbal.store.pair_files import PART_METADATA, entry_of, write_metadata
from tymbal.store.writer import finish_store

__all__ = ["finish"]


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
        record: What it was begun with.
        settings: What was wanted.

    Raises:
        AudioError: Not one clip could be used.
    """
    failures = list(dict.fromkeys([*unopened, *(failure for one in built for failure in one.failures)]))
    # Before the rest is complete, so that nothing complete lacks it.
    write_failures(store / FAILURES, failures)
    if not any(one.entries for one in built):
        raise _nothing_left(failures, record.source)
    moments = reduce(Moments.merge, (one.moments for one in built))
    if settings.write == "pt":
        _finish_files(store, built, moments, named=named, plan=plan, record=record, settings=settings)
        return
    waveforms = settings.write == "waveforms"
    samples = {"samples": round(plan.seconds * settings.sample_rate)} if waveforms else {}
    finish_store(
        store,
        shards=[(one.shard, one.entries) for one in built],
        features=record.features(),
        frames=plan.frames,
        views=2 if settings.views and not waveforms else 1,
        kind=WAVEFORMS if waveforms else SPECTROGRAMS,
        moments=moments,
        settings=record.settings,
        provenance={"source": record.source, "plan": record.digest, "window_seconds": plan.seconds, **samples},
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
        (entry.split, entry_of(named, file, entry, frames=plan.frames, mels=mels))
        for one in built
        for entry, (file, _) in zip(one.entries, one.files, strict=True)
    ]
    told: dict[str, Any] = {
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
            "features": asdict(record.features()),
            "statistics": {"mean": moments.mean, "std": moments.std},
        },
    }
    write_metadata(store, entries, told, part=settings.part)
    if settings.part is None:
        for part in PART_METADATA:
            (store / part).unlink(missing_ok=True)


def _nothing_left(failures: Sequence[Failure], source: str) -> AudioError:
    some = "".join(f"\n    {failure.file}: {failure.reason}" for failure in failures[:3])
    advice = failures[0].advice if failures else None
    return AudioError(f"not one of its clips can be used{some}", path=source, advice=advice)
