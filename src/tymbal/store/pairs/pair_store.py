"""Pairs of views from `.pt` files with their metadata, read as batches like those of a packed store.

What is missing is left out and named when the folder is opened; what turns out to be damaged is left out of its batch
and named then. Nothing takes its place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tymbal.audio.failures import Failure
from tymbal.errors import SettingsError, StoreError
from tymbal.features.statistics import LOG_FLOOR, Moments
from tymbal.progress import tell
from tymbal.settings import FeatureSettings
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.store.packed.format import INDEX_SCHEMA
from tymbal.store.pairs.pair_files import metadata_files, read_metadata, resolve_file
from tymbal.store.parallel_copy import BufferPool
from tymbal.store.pt.pt_file import DAMAGE

__all__ = ["PairFileStore", "load_pair"]

_ADVICE = "Copy it again from where it came from, or make the pairs again with `tymbal prepare --views`."
_SAMPLE = 256
_SPLITS = {"val": "validation"}


def load_pair(path: Path, shape: tuple[int, int] | None = None) -> Tensor:
    """Reads both views of a file.

    Args:
        path: The file.
        shape: Mel bins and frames that the views must have; None takes any.

    Returns:
        float32 [2, mels, frames].

    Raises:
        StoreError: It is missing, damaged or of another shape.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        pair = torch.stack([content[name].float().reshape(content[name].shape[-2:]) for name in ("view1", "view2")])
    except FileNotFoundError:
        raise StoreError("missing: there is no such file", path=path, advice=_ADVICE) from None
    except DAMAGE as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged, or holds no pair"
        raise StoreError(f"unreadable: {why}", path=path, advice=_ADVICE) from None
    if not bool(pair.isfinite().all()):
        raise StoreError("not finite: some values are not finite numbers", path=path, advice=_ADVICE)
    if shape is not None and pair.shape[1:] != shape:
        raise StoreError(f"wrong shape: {list(pair.shape[1:])}, not {list(shape)}", path=path, advice=_ADVICE)
    return pair


@dataclass(frozen=True)
class _Facts:
    """What all pairs have in common; mean and deviation are those of some files, if nobody wrote them down."""

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
        root: Where files are looked for that are not where their entry says.

    Attributes:
        files: The file of each row.

    Raises:
        StoreError: Not one file is there, or the metadata are damaged.
    """

    views = 2

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        self._arguments = (source, root)
        roots = [] if root is None else [Path(root)]
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            lists, self._told = read_metadata(path)
            roots.append(metadata_files(path)[0].parent)
            entries: list[tuple[str | None, Mapping[str, Any]]] = [
                (_SPLITS.get(name, name), entry) for name, found in lists.items() for entry in found
            ]
        else:
            path, self._told = Path(root or "."), {}
            entries = [(None, entry) for entry in source]
        self._failures: list[Failure] = []
        self.files: list[Path] = []
        rows: list[dict[str, Any]] = []
        for split, entry in entries:
            file = resolve_file(entry["file"], roots)
            if not file.is_file():
                self._leave_out(file, "missing: there is no such file")
                continue
            self.files.append(file)
            rows.append(_row(entry, split, len(rows)))
        if not self.files:
            moved = "Has the folder moved? Then say where it is: root=FOLDER, or the folder instead of its list."
            advice = moved if path == Path(root or ".") and not self._told else "Is the folder complete?"
            raise StoreError("not one file of views is there", path=path, advice=advice)
        columns = {name: [row[name] for row in rows] for name in INDEX_SCHEMA.names}
        self._pool = BufferPool()
        self._damaged: set[int] = set()
        self._shape = self._find_shape(path, entries)
        facts = _Facts(frames=self._shape[1], mels=self._shape[0], features=_features(self._ours))
        super().__init__(path, pa.table(columns, schema=INDEX_SCHEMA), facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self._arguments)

    @property
    def failures(self) -> Sequence[Failure]:
        """What was left out up to now."""
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
        """Mean of all values, of some files where nobody wrote it down."""
        return self._statistics[0]

    @property
    def std(self) -> float:
        """Standard deviation of all values, of some files where nobody wrote it down."""
        return self._statistics[1]

    def gather(self, rows: npt.ArrayLike, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
        """Reads pairs.

        Args:
            rows: Row numbers in any order, [n].
            out: Where to put them, C-contiguous float16 [n, 2, frames, mels].

        Returns:
            float16 [n, 2, frames, mels].

        Raises:
            IndexError: A row number is not there.
            DamagedRowsError: Some files cannot be read; they have been named.
        """
        wanted = self._checked(rows)
        out = self._memory(len(wanted), out, self._pool)
        bad = []
        for target, row in zip(out, wanted.tolist(), strict=True):
            pair = self.pair(row)
            if pair is None:
                bad.append(row)
            else:
                target[...] = pair.transpose(1, 2).half().numpy()
        if bad:
            raise DamagedRowsError("some files of views cannot be read", rows=bad, path=self.path)
        return out

    def pair(self, row: int) -> Tensor | None:
        """Both views of a row, float32 [2, mels, frames]; None where its file is damaged, which is then named."""
        if row in self._damaged:
            return None
        try:
            pair = load_pair(self.files[row], self._shape)
        except StoreError as error:
            self._damaged.add(row)
            self._leave_out(self.files[row], error.what)
            return None
        return pair

    def announce(self, rows: npt.ArrayLike) -> None:
        """Does nothing: files are read when they are wanted."""

    def _leave_out(self, file: Path, reason: str) -> None:
        self._failures.append(Failure(str(file), reason, _ADVICE))
        tell(f"{file} is left out: {reason}", warning=True)

    def _find_shape(self, path: Path, entries: Iterable[tuple[str | None, Mapping[str, Any]]]) -> tuple[int, int]:
        """Mel bins and frames: as the metadata say, else of the first file that can be read."""
        for _, entry in entries:
            if len(entry.get("shape", ())) >= 2:
                return int(entry["shape"][-2]), int(entry["shape"][-1])
        for file in self.files:
            try:
                return tuple(load_pair(file).shape[1:])  # type: ignore[return-value]
            except StoreError:
                continue
        raise StoreError("not one file of views can be read", path=path)

    @property
    def _ours(self) -> Mapping[str, Any]:
        """What Tymbal wrote beside the layout's own keys."""
        found: Mapping[str, Any] = self._told.get("tymbal", {})
        return found

    @cached_property
    def _statistics(self) -> tuple[float, float]:
        told = self._ours.get("statistics")
        if told is not None:
            return float(told["mean"]), float(told["std"])
        moments = Moments()
        for row in range(0, len(self), max(len(self) // _SAMPLE, 1)):
            pair = self.pair(row)
            if pair is not None:
                moments = moments.merge(Moments.of(pair.numpy()))
        return moments.mean, moments.std


def _features(ours: Mapping[str, Any]) -> FeatureSettings | None:
    """How the views were computed; None where nobody wrote it down."""
    told = ours.get("features")
    try:
        return None if told is None else FeatureSettings(**told)
    except (TypeError, SettingsError):
        return None


def _row(entry: Mapping[str, Any], split: str | None, number: int) -> dict[str, Any]:
    """A row of the index: what Tymbal wrote beside the layout's own keys, where it did."""
    told = entry.get("tymbal", {})
    version = int(entry.get("version", 0))
    name = str(entry.get("audio_name", Path(entry["file"]).stem))
    return {
        "id": told.get("id", f"{name}@v{version}"),
        "file": told.get("file", entry["file"]),
        "start": told.get("start", 0.0),
        "end": told.get("end"),
        "frames": int(entry["shape"][-1]) if len(entry.get("shape", ())) >= 2 else 0,
        "labels": list(told.get("labels", ())),
        "group": told.get("group"),
        "split": told.get("split", split),
        "shard": 0,
        "row": number,
        "version": version,
    }
