"""Pairs of views from one form to the other: packed shards to `.pt` files with metadata, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tymbal.audio.failures import write_failures
from tymbal.features.statistics import Moments
from tymbal.files import replace_folder
from tymbal.progress import Progress
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.store.packed.format import Shard, shard_name
from tymbal.store.packed.writer import Entry, finish_store, open_shard
from tymbal.store.pairs.pair_files import entry_of, write_metadata, write_pair
from tymbal.store.pt.pt_writer import unique_stems

__all__ = ["pack_pairs", "unpack_pairs"]

_BATCH = 64

Numbered = tuple[int, Entry, npt.NDArray[np.float16]]


def unpack_pairs(source: SpectrogramSource, output: str | os.PathLike[str]) -> int:
    """Writes pairs as `.pt` files with metadata, whole or not at all; gives how many."""
    clips = [entry.id.rpartition("@v")[0] for entry in _entries(source)]
    first = {name: number for number, name in reversed(list(enumerate(clips)))}
    files = source.index["file"].to_pylist()
    named = [{"file": files[number], "id": os.path.splitext(name)[0]} for name, number in first.items()]  # noqa: PTH122
    stems = dict(zip(first, unique_stems(named), strict=True))
    written = []
    with replace_folder(output) as aside, Progress(len(source), "Writing .pt files", unit="pairs") as progress:
        for row, entry, pair in _rows(source):
            stem, version = stems[clips[row]], entry.version or 0
            file = write_pair(aside, pair, stem=stem, version=version, split=entry.split, source=entry.file)
            place = file.relative_to(aside).as_posix()
            told = entry_of(os.fspath(output), place, entry, frames=source.frames, mels=source.mels)
            written.append((entry.split, told))
            progress.advance()
        features = source.features
        config = {
            "sample_rate": None if features is None else features.sample_rate,
            "n_mels": source.mels,
            "duration": source.recorded_settings.get("window"),
            "num_versions": len(set(source.index["version"].to_pylist())),
            **{
                name: source.recorded_settings.get(f"augmentations.{name}")
                for name in ("num_waveform_augs", "num_spectrogram_augs")
            },
        }
        ours = {
            "settings": dict(source.recorded_settings),
            "features": None if features is None else asdict(features),
            "statistics": {"mean": source.mean, "std": source.std},
        }
        write_metadata(aside, written, {"config": config, "tymbal": ours})
    return len(written)


def pack_pairs(source: SpectrogramSource, output: str | os.PathLike[str], *, shard_mib: int) -> int:
    """Writes pairs as a packed store, whole or not at all; gives how many. What is damaged is left out and named."""
    most = max(shard_mib * 2**20 // (4 * source.frames * source.mels), 1)
    shards: list[tuple[Shard, Sequence[Entry]]] = []
    moments = Moments()
    rows = _rows(source)
    with replace_folder(output) as aside, Progress(len(source), "Packing", unit="pairs") as progress:
        rest: Numbered | None = next(rows, None)
        while rest is not None:
            entries: list[Entry] = []
            name = shard_name(len(shards))
            with open_shard(aside / name, frames=source.frames, mels=source.mels, views=2) as writer:
                while rest is not None and len(entries) < most:
                    writer.append_views(rest[2])
                    entries.append(rest[1])
                    rest = next(rows, None)
                    progress.advance()
            moments = moments.merge(writer.moments)
            shards.append((Shard(name, len(entries), (aside / name).stat().st_size), entries))
        finish_store(
            aside,
            shards=shards,
            features=source.features,
            frames=source.frames,
            mels=source.mels,
            views=2,
            moments=moments,
            statistics=(source.mean, source.std),
            settings=source.recorded_settings,
            provenance={"source": str(Path(source.path).absolute()), "verb": "convert"},
        )
        write_failures(aside / "failures.csv", source.failures)
    return sum(len(entries) for _, entries in shards)


def _rows(source: SpectrogramSource) -> Iterator[Numbered]:
    """Rows that can be read, in order, with what the index says of them and both views."""
    entries = _entries(source)
    for start in range(0, len(source), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(source)))
        source.announce(np.arange(start + _BATCH, min(start + 2 * _BATCH, len(source))))
        try:
            pairs = source.gather(rows)
        except DamagedRowsError as error:
            rows = rows[~np.isin(rows, error.rows)]
            pairs = source.gather(rows)
        for row, pair in zip(rows.tolist(), pairs, strict=True):
            yield row, entries[row], pair


def _entries(source: SpectrogramSource) -> list[Entry]:
    found = []
    for row in source.index.to_pylist():
        told = {name: value for name, value in row.items() if name not in ("shard", "row")}
        found.append(Entry(**{**told, "labels": tuple(told["labels"] or ()), "frames": source.frames}))
    return found
