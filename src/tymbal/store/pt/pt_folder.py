"""Opening SSAST's precomputed spectrograms, a `.pt` file each, as a store that can be trained from directly.

    store = open_pt("train.json", validation="val.json", target_length=1024, mean=-4.27, std=4.57)

Every file is looked at once. What is missing, unreadable or of the wrong shape is left out, counted in one warning, and
named in `failures.csv`; the rest is the store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from tymbal.audio.failures import write_failures
from tymbal.errors import StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.progress import tell
from tymbal.settings import PtSettings
from tymbal.store.packed.format import INDEX_SCHEMA
from tymbal.store.pt.pt_index import Record, look, moments_of, reasons
from tymbal.store.pt.pt_list import Header, PtFile, PtListing, list_pt
from tymbal.store.pt.pt_store import Content, PtStore

__all__ = ["open_pt", "open_with"]

_MELS = 128
_LONGEST = 1024
_ROUND = 16
_NAMED = 3
_PADDING = {"silence": LOG_FLOOR, "zeros": 0.0, None: None}


def open_pt(
    source: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    data_val_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.0,
    label_csv: str | os.PathLike[str] | None = None,
    target_length: int | None = None,
    mel_bins: int | None = None,
    layout: str = "auto",
    mean: float | None = None,
    std: float | None = None,
    padding: float | None = 0.0,
    failures_to: str | os.PathLike[str] | None = None,
    record: str | os.PathLike[str] | None = None,
    settled: bool = False,
) -> PtStore:
    """Opens the `.pt` files of a list or a folder as a store.

    Args:
        source: SSAST's JSON list or another table of clips; or a folder of `.pt` files.
        data_dir: Folder of the list's files. None looks beside the list, see `tymbal.store.pt.pt_list`.
        validation: List, or folder, of the clips to validate on.
        data_val_dir: Folder of their files. None looks in `data_dir`, then beside the list.
        validation_fraction: Fraction of the clips that is drawn for validation where nothing says which.
        label_csv: SSAST's `index,mid,display_name` table; the store's labels have its order.
        target_length: Frames of a spectrogram. None is the longest file's, at most 1024, rounded up to a multiple of
            16.
        mel_bins: Mel bins of the files. None is 128.
        layout: `frames-mels`, `mels-frames`, or `auto` to tell by the number of mel bins.
        mean: Mean of the log-mel values. None computes it, over real frames.
        std: Their standard deviation. None computes it, over real frames.
        padding: Log-mel value behind the end of short spectrograms: 0 by default, as SSAST pads. None is silence.
        failures_to: Where to write `failures.csv`. None writes none.
        record: Where to keep what was found out about the files, so that the next start is quick. None keeps nothing.
        settled: Take the record as it stands: the clips of a run that goes on are those that it was begun with.

    Raises:
        ManifestError: A list cannot be read, or has two entries with one stem.
        StoreError: Nothing is there, or not one file can be used.
    """
    listing = list_pt(
        source,
        data_dir=data_dir,
        validation=validation,
        data_val_dir=data_val_dir,
        label_csv=label_csv,
        validation_fraction=validation_fraction,
    )
    header = listing.header
    mels = mel_bins or header.mels or _MELS
    layout = header.layout if layout == "auto" else layout
    records = look(
        listing.files, mels=mels, layout=layout, record=None if record is None else Path(record), settled=settled
    )
    to = None if failures_to is None else Path(failures_to)
    _tell_failures(listing, records, to, settled=settled)
    good = [(file, one) for file, one in zip(listing.files, records, strict=True) if not one.reason]
    frames = target_length or header.frames or _common_length([one for _, one in good])
    found_mean, found_std = _statistics(header, [one for _, one in good], len(records), mels)
    if padding is None:
        padding = LOG_FLOOR if header.padding is None else header.padding
    return PtStore(
        Content(
            path=listing.path,
            index=_index(good, frames),
            paths=[one.path for _, one in good],
            places=[one.place for _, one in good],
            frames=frames,
            mels=mels,
            mean=found_mean if mean is None else mean,
            std=found_std if std is None else std,
            padding=padding,
            layout=layout,
            features=header.features,
            label_names=listing.label_names,
            failures=tuple(one.failure for one in records if one.reason),
            failures_to=to,
        )
    )


def open_with(
    source: str | os.PathLike[str],
    settings: PtSettings,
    *,
    failures_to: Path | None = None,
    record: Path | None = None,
    settled: bool = False,
) -> PtStore:
    """As `open_pt`, with the settings of a verb."""
    return open_pt(
        source,
        data_dir=settings.data_dir,
        validation=settings.data_val,
        data_val_dir=settings.data_val_dir,
        validation_fraction=settings.validation,
        label_csv=settings.label_csv,
        target_length=settings.frames,
        mel_bins=settings.mel_bins,
        layout=settings.layout,
        mean=settings.dataset_mean,
        std=settings.dataset_std,
        padding=_PADDING[settings.padding],
        failures_to=failures_to,
        record=record,
        settled=settled,
    )


def _tell_failures(listing: PtListing, records: Sequence[Record], to: Path | None, *, settled: bool) -> None:
    """Names what is left out, in one warning and in a file; an error where nothing is left."""
    failures = [one.failure for one in records if one.reason]
    # What a run that goes on has named since it was begun stays.
    if to is not None and not (settled and to.is_file()):
        write_failures(to, failures)
    if not failures:
        return
    some = "".join(f"\n    {failure.file}: {failure.reason}" for failure in failures[:_NAMED])
    if len(failures) == len(records):
        raise StoreError(
            f"not one of its {len(records):,} .pt files can be used ({reasons(records)}){some}",
            path=listing.path,
            advice=failures[0].advice or None,
        )
    where = f"see {to}" if to is not None else f"as{some}"
    tell(
        f"{listing.path}: {len(failures):,} of {len(records):,} .pt files are left out ({reasons(records)}), {where}",
        warning=True,
    )


def _common_length(records: Sequence[Record]) -> int:
    longest = max(one.frames for one in records)
    frames = -(-min(longest, _LONGEST) // _ROUND) * _ROUND
    if longest > frames:
        cut = sum(one.real > frames for one in records)
        tell(f"{cut:,} files are longer than {frames} frames and are cut: frames changes that", warning=True)
    return frames


def _statistics(header: Header, records: Sequence[Record], listed: int, mels: int) -> tuple[float, float]:
    """Mean and standard deviation: those of the store that was converted, if all of it is there, else computed."""
    if header.mean is not None and header.std is not None and len(records) == listed:
        return header.mean, header.std
    return moments_of(records, mels)


def _index(good: Sequence[tuple[PtFile, Record]], frames: int) -> pa.Table:
    columns = {
        "id": [file.id for file, _ in good],
        "file": [file.source for file, _ in good],
        "start": [file.start for file, _ in good],
        "end": [file.end for file, _ in good],
        "frames": [min(one.real, frames) for _, one in good],
        "labels": [list(file.labels) for file, _ in good],
        "group": [file.group for file, _ in good],
        "split": [file.split for file, _ in good],
        "shard": [0] * len(good),
        "row": list(range(len(good))),
        "version": [None] * len(good),
    }
    return pa.table(columns, schema=INDEX_SCHEMA)
