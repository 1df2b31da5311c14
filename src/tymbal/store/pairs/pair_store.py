"""Pairs of views in `.pt` files with metadata: read as batches like those of a packed store, packed, and unpacked.

What is missing is left out and named when the folder is opened; what turns out to be damaged is left out of its batch
and named then. Nothing takes its place.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tymbal.audio.failures import Failure, append_failures, write_failures
from tymbal.errors import SettingsError, StoreError
from tymbal.features.normalisation import LOG_FLOOR, Moments
from tymbal.files import replace_folder
from tymbal.progress import Progress, tell
from tymbal.settings import FeatureSettings
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.store.dataset import readable_batches
from tymbal.store.packed.format import INDEX_SCHEMA, Shard, shard_name
from tymbal.store.packed.writer import Entry, finish_store, open_shard
from tymbal.store.pairs.pair_files import (
    FileFacts,
    entry_of,
    file_facts,
    metadata_files,
    read_metadata,
    resolve_file,
    write_metadata,
    write_pair,
)
from tymbal.store.parallel_copy import BufferPool
from tymbal.store.pt.pt_file import DAMAGE
from tymbal.store.pt.pt_writer import unique_stems

__all__ = ["PairFileStore", "load_pair", "pack_pairs", "unpack_pairs"]

_BATCH = 64
_ADVICE = "Copy it again from where it came from, or make the pairs again with `tymbal prepare --views`."
_SAMPLE = 256
_SPLITS = {"val": "validation"}


def load_pair(path: Path, shape: tuple[int, int] | None = None, *, crc: int | None = None) -> tuple[Tensor, Tensor]:
    """Reads both views of a file.

    Args:
        path: The file.
        shape: Mel bins and frames that the views must have; None takes any.
        crc: CRC-32 that its bytes must have; None takes any.

    Returns:
        The first and the second view, float32 [mels, frames] each.

    Raises:
        StoreError: It is missing, damaged or of another shape.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _failure("missing: there is no such file", path) from None
    except OSError as error:
        raise _failure(f"unreadable: {error.strerror or error}", path) from None
    if not data:
        raise _failure("empty: it has no bytes", path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        first, second = (content[name].float().reshape(content[name].shape[-2:]) for name in ("view1", "view2"))
    except DAMAGE:
        raise _failure("unreadable: it is damaged, or holds no pair of views", path) from None
    if first.shape != second.shape or (shape is not None and first.shape != shape):
        raise _failure(f"wrong shape: {list(first.shape)} and {list(second.shape)}, not {list(shape or ())}", path)
    # Of finite numbers below the largest by far, as logarithms of energies are, the sum is finite, too.
    if not math.isfinite(float(first.sum() + second.sum())):
        raise _failure("not finite: some values are not finite numbers", path)
    if crc is not None and zlib.crc32(data) != crc:
        raise _failure("unreadable: it is not what was written: its checksum differs", path)
    return first, second


def _failure(what: str, path: Path) -> StoreError:
    return StoreError(what, path=path, advice=_ADVICE)


@dataclass(frozen=True)
class _Facts:
    """Properties that all pairs share; mean and deviation are those of some files unless they are recorded."""

    frames: int
    mels: int
    features: FeatureSettings | None
    mean: float = math.nan
    std: float = math.nan
    padding: float = LOG_FLOOR


class PairFileStore(SpectrogramSource):
    """Pairs of views in a `.pt` file each; `gather` gives float16 [n, 2, frames, mels].

    Args:
        source: The folder, its metadata file, or a list of entries of metadata.
        root: The folder to search for files that are not where their entries say.
        failures_to: The table to which files are appended that turn out to be damaged; None for none.

    Attributes:
        files: The file of each row.

    Raises:
        StoreError: Not one file exists, or the metadata are damaged.
    """

    views = 2

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
        root: str | os.PathLike[str] | None = None,
        failures_to: Path | None = None,
    ) -> None:
        self._arguments = (source, root, failures_to)
        self._failures_to: Path | None = None  # those of the beginning are listed by whoever opens the folder
        roots = [] if root is None else [Path(root)]
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            lists, self._extras = read_metadata(path)
            roots.append(metadata_files(path)[0].parent)
            entries: list[tuple[str | None, Mapping[str, Any]]] = [
                (_SPLITS.get(name, name), entry) for name, of_split in lists.items() for entry in of_split
            ]
        else:
            path, self._extras = Path(root or "."), {}
            entries = [(None, entry) for entry in source]
        self._failures: list[Failure] = []
        self.files: list[Path] = []
        self._checksums: list[int | None] = []
        rows: list[dict[str, Any]] = []
        for split, entry in entries:
            file = resolve_file(entry["file"], roots)
            if not file.is_file():
                self._leave_out(file, "missing: there is no such file")
                continue
            self.files.append(file)
            self._checksums.append(file_facts(entry).crc)
            rows.append(_row(entry, split, len(rows)))
        if not self.files:
            moved = "Has the folder moved? Then say where it is: root=FOLDER, or the folder instead of its list."
            advice = moved if path == Path(root or ".") and not self._extras else "Is the folder complete?"
            raise StoreError("not one file of views is there", path=path, advice=advice)
        columns = {name: [row[name] for row in rows] for name in INDEX_SCHEMA.names}
        self._pool = BufferPool()
        self._damaged: set[int] = set()
        self._shape = self._find_shape(path, entries)
        facts = _Facts(frames=self._shape[1], mels=self._shape[0], features=_features(self._ours))
        self._failures_to = failures_to
        super().__init__(path, pa.table(columns, schema=INDEX_SCHEMA), facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self._arguments)

    @property
    def failures(self) -> Sequence[Failure]:
        """The files left out up to now."""
        return self._failures

    @property
    def recorded_settings(self) -> Mapping[str, Any]:
        """The settings of the preparation, where they are known."""
        return self._ours.get("settings") or {}

    @property
    def description_files(self) -> Sequence[Path]:
        """The metadata."""
        return metadata_files(self.path)

    @property
    def data_files(self) -> Sequence[Path]:
        """The file of each row."""
        return self.files

    @property
    def mean(self) -> float:
        """Mean of all values, or of some files if it is not recorded."""
        return self._statistics[0]

    @property
    def std(self) -> float:
        """Standard deviation of all values, or of some files if it is not recorded."""
        return self._statistics[1]

    def gather(self, rows: npt.ArrayLike, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
        """Reads pairs.

        Args:
            rows: Row numbers in any order, [n].
            out: Where to put them, C-contiguous float16 [n, 2, frames, mels].

        Returns:
            float16 [n, 2, frames, mels].

        Raises:
            IndexError: A row number is not in the store.
            DamagedRowsError: Some files cannot be read; they have been named.
        """
        indices = self._checked(rows)
        out = self._memory(len(indices), out, self._pool)
        bad = []
        for target, row in zip(out, indices.tolist(), strict=True):
            pair = self.pair(row)
            if pair is None:
                bad.append(row)
            else:
                for view, values in zip(target, pair, strict=True):
                    torch.from_numpy(view).copy_(values.T)
        if bad:
            raise DamagedRowsError("some files of views cannot be read", rows=bad, path=self.path)
        return out

    def pair(self, row: int) -> tuple[Tensor, Tensor] | None:
        """Both views of a row, float32 [mels, frames] each; None where its file is damaged, which is then named."""
        if row in self._damaged:
            return None
        try:
            pair = load_pair(self.files[row], self._shape, crc=self._checksums[row])
        except StoreError as error:
            self._damaged.add(row)
            self._leave_out(self.files[row], error.what)
            return None
        self._checksums[row] = None  # once is enough
        return pair

    def announce(self, rows: npt.ArrayLike) -> None:
        """Does nothing: files are read on request."""

    def _leave_out(self, file: Path, reason: str) -> None:
        failure = Failure(str(file), reason, _ADVICE)
        self._failures.append(failure)
        if self._failures_to is not None:
            append_failures(self._failures_to, [failure])
        tell(f"{file} is left out: {reason}", warning=True)

    def _find_shape(self, path: Path, entries: Iterable[tuple[str | None, Mapping[str, Any]]]) -> tuple[int, int]:
        """Mel bins and frames: as the metadata say, else of the first file that can be read."""
        for _, entry in entries:
            if len(entry.get("shape", ())) >= 2:
                return int(entry["shape"][-2]), int(entry["shape"][-1])
        for file in self.files:
            try:
                return tuple(load_pair(file)[0].shape)  # type: ignore[return-value]
            except StoreError:
                continue
        raise StoreError("not one file of views can be read", path=path)

    @property
    def _ours(self) -> Mapping[str, Any]:
        """Tymbal's own entry beside the layout's keys."""
        recorded: Mapping[str, Any] = self._extras.get("tymbal", {})
        return recorded

    @cached_property
    def _statistics(self) -> tuple[float, float]:
        recorded = self._ours.get("statistics")
        if recorded is not None:
            return float(recorded["mean"]), float(recorded["std"])
        moments = Moments()
        for row in range(0, len(self), max(len(self) // _SAMPLE, 1)):
            pair = self.pair(row)
            if pair is not None:
                moments = moments.merge(Moments.of(torch.stack(pair).numpy()))
        return moments.mean, moments.std


def _features(ours: Mapping[str, Any]) -> FeatureSettings | None:
    """How the views were computed; None if not recorded."""
    recorded = ours.get("features")
    try:
        return None if recorded is None else FeatureSettings(**recorded)
    except (TypeError, SettingsError):
        return None


def _row(entry: Mapping[str, Any], split: str | None, number: int) -> dict[str, Any]:
    """A row of the index: what Tymbal wrote beside the layout's own keys, where it did."""
    recorded = entry.get("tymbal", {})
    version = int(entry.get("version", 0))
    name = str(entry.get("audio_name", Path(entry["file"]).stem))
    return {
        "id": recorded.get("id", f"{name}@v{version}"),
        "file": recorded.get("file", entry["file"]),
        "start": recorded.get("start", 0.0),
        "end": recorded.get("end"),
        "frames": int(entry["shape"][-1]) if len(entry.get("shape", ())) >= 2 else 0,
        "labels": list(recorded.get("labels", ())),
        "group": recorded.get("group"),
        "split": recorded.get("split", split),
        "shard": 0,
        "row": number,
        "version": version,
    }


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
            facts = FileFacts(file.relative_to(aside).as_posix(), file.stat().st_size, zlib.crc32(file.read_bytes()))
            described = entry_of(os.fspath(output), facts, entry, frames=source.frames, mels=source.mels)
            written.append((entry.split, described))
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
    checksums: list[list[int]] = []
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
            checksums.append(writer.checksums)
        finish_store(
            aside,
            shards=shards,
            checksums=checksums,
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
    for rows, pairs in readable_batches(source, source.rows(), batch_size=_BATCH):
        for row, pair in zip(rows.tolist(), pairs, strict=True):
            yield row, entries[row], pair


def _entries(source: SpectrogramSource) -> list[Entry]:
    entries = []
    for row in source.index.to_pylist():
        recorded = {name: value for name, value in row.items() if name not in ("shard", "row")}
        entries.append(Entry(**{**recorded, "labels": tuple(recorded["labels"] or ()), "frames": source.frames}))
    return entries
