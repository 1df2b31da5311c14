"""The base of all stores of spectrograms, whatever their files: an index, splits, labels, and batches by row.

Training, probing and embedding ask for no more than this. `Store` (`store.packed.packed_store`) keeps spectrograms
packed; `PtStore` (`store.pt.pt_store`) takes them from a `.pt` file each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tymbal.audio.failures import Failure
from tymbal.errors import SettingsError, StoreError
from tymbal.settings import FeatureSettings
from tymbal.store.vectors import RowVectors

__all__ = ["DamagedRowsError", "Facts", "LabelTable", "SpectrogramSource"]


class LabelTable:
    """Labels of all rows.

    Args:
        column: list<string>, one list a row; null and empty both mean no label.
        path: The store, for messages.
        names: All labels in the order of their numbers. None is those that occur, sorted.

    Attributes:
        names: All labels; a label's number is its place here.
        multilabel: Whether any row has more than one label.
    """

    def __init__(self, column: pa.ChunkedArray, path: Path, *, names: Sequence[str] | None = None) -> None:
        self._path = path
        lists = column.combine_chunks()
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = pc.list_flatten(lists)
        self.names: list[str] = sorted(pc.unique(flat).to_pylist()) if names is None else list(names)
        numbers = pc.index_in(flat, value_set=pa.array(self.names, pa.string()))
        self._numbers: npt.NDArray[np.int64] = numbers.to_numpy(zero_copy_only=False).astype(np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.multilabel = bool((counts > 1).any())

    def indices(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The label of each row, [rows]; -1 without one.

        Raises:
            StoreError: Some row of the store has several labels.
        """
        if self.multilabel:
            raise StoreError(
                "has spectrograms with several labels, so a row is not one class",
                path=self._path,
                advice="Train it as a multi-label task, or leave one label a clip in the manifest.",
            )
        starts = self._starts[rows]
        labelled = self._starts[rows + 1] > starts
        result = np.full(len(rows), -1, np.int64)
        result[labelled] = self._numbers[starts[labelled]]
        return result

    def matrix(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Ones where a row has a label, float32 [rows, names]."""
        result = np.zeros((len(rows), len(self.names)), np.float32)
        starts = self._starts[rows]
        counts = self._starts[rows + 1] - starts
        of_row = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(of_row)) - np.repeat(np.cumsum(counts) - counts, counts)
        result[of_row, self._numbers[starts[of_row] + within]] = 1.0
        return result


class DamagedRowsError(StoreError):
    """Some of the requested rows were readable once and are not any more.

    Args:
        what: What is wrong.
        rows: The rows.
        path: The store, or the file.
        advice: What to do.
    """

    def __init__(
        self, what: str, *, rows: Iterable[int] = (), path: Path | str | None = None, advice: str | None = None
    ) -> None:
        super().__init__(what, path=path, advice=advice)
        self.rows = tuple(rows)


class Facts(Protocol):
    """Properties that all rows of a store share."""

    @property
    def frames(self) -> int:
        """Frames of a spectrogram, padding included."""

    @property
    def mels(self) -> int:
        """Mel bins."""

    @property
    def features(self) -> FeatureSettings | None:
        """How the spectrograms were computed; None if not recorded."""

    @property
    def mean(self) -> float:
        """Mean of all log-mel values of real frames, or the user's own value."""

    @property
    def std(self) -> float:
        """Standard deviation of all log-mel values of real frames, or the user's own value."""

    @property
    def padding(self) -> float:
        """Log-mel value behind the end of a short spectrogram."""


class SpectrogramSource(ABC):
    """Spectrograms of one shape by row number; or pairs of them; or waveforms that they are made of.

    Args:
        path: Their folder, or the list of their files.
        index: One row a spectrogram, see `tymbal.store.packed.format.INDEX_SCHEMA`.
        facts: Properties that all rows share.
        label_names: All labels in the order of their numbers. None is those that occur, sorted.

    Attributes:
        path: Their folder or list.
        index: id, file, start, end, frames, labels, group, split, shard and row of each.
        dtype: Type of the arrays that `gather` returns.
        views: Spectrograms a row: 1, or 2 where rows are pairs of views.
        taught: What a teacher says of the rows, where they are to be learned with it.
    """

    dtype: np.dtype[Any] = np.dtype(np.float16)
    views = 1
    taught: RowVectors | None = None

    def __init__(self, path: Path, index: pa.Table, facts: Facts, *, label_names: Sequence[str] | None = None) -> None:
        self.path = path
        self.index = index
        self._facts = facts
        self._label_names = label_names
        self._labels: LabelTable | None = None

    @property
    def location(self) -> str:
        """Where its rows come from: the path, or an address elsewhere."""
        return str(self.path)

    @property
    def ahead(self) -> int:
        """Batches to announce before they are asked for."""
        return 1

    @property
    def frames(self) -> int:
        """Frames of a spectrogram, padding included."""
        return self._facts.frames

    @property
    def mels(self) -> int:
        """Mel bins."""
        return self._facts.mels

    @property
    def features(self) -> FeatureSettings | None:
        """How the spectrograms were computed; None if not recorded."""
        return self._facts.features

    @property
    def mean(self) -> float:
        """Mean of all log-mel values of real frames, or the user's own value."""
        return self._facts.mean

    @property
    def std(self) -> float:
        """Standard deviation of all log-mel values of real frames, or the user's own value."""
        return self._facts.std

    @property
    def padding(self) -> float:
        """Log-mel value behind the end of a short spectrogram."""
        return self._facts.padding

    @property
    def samples(self) -> int | None:
        """Samples of a row where rows are waveforms; None where they are spectrograms."""
        return None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of what a row number stands for: [frames, mels], [views, frames, mels] or [samples]."""
        return (self.frames, self.mels) if self.views == 1 else (self.views, self.frames, self.mels)

    @property
    def failures(self) -> Sequence[Failure]:
        """The files left out when the store was opened, and since."""
        return ()

    @property
    def rounds(self) -> bool:
        """Whether some files are known to hold numbers of more than 16 bits, which `gather` rounds."""
        return False

    @property
    def recorded_settings(self) -> Mapping[str, Any]:
        """Settings of the verb that made the store; empty if not recorded."""
        return {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Versions, time and source, as far as they are known."""
        return {}

    @property
    def description_files(self) -> Sequence[Path]:
        """Small files that describe all rows; empty if the source has none."""
        return ()

    @property
    def data_files(self) -> Sequence[Path]:
        """The files that the values lie in."""
        return ()

    @abstractmethod
    def gather(self, rows: npt.ArrayLike, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
        """Copies spectrograms out of the store, as raw log-mel values.

        Args:
            rows: Row numbers in any order, [n].
            out: Where to put them, C-contiguous float16 [n, frames, mels]. None takes memory that is used again once
                neither the result nor anything that shares its memory is alive.

        Returns:
            float16 [n, frames, mels].

        Raises:
            IndexError: A row number is not in the store.
            StoreError: The store cannot be read; `DamagedRowsError` where that is true of some rows only.
        """

    @abstractmethod
    def announce(self, rows: npt.ArrayLike) -> None:
        """Tells the store which rows come next, so that they are fetched in the background; a hint, no more."""

    def waveforms(self, rows: npt.ArrayLike) -> npt.NDArray[np.int16]:
        """Waveforms in any order, int16 [n, samples].

        Raises:
            StoreError: Rows are spectrograms.
        """
        del rows
        raise StoreError(
            "holds spectrograms, no waveforms", path=self.path, advice="Prepare one with --write waveforms."
        )

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def __repr__(self) -> str:
        shape = f"{self.frames} frames x {self.mels} mel bins"
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} spectrograms of {shape})"

    @property
    def real_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each spectrogram that hold sound, [count]; what follows them is padding."""
        frames: npt.NDArray[np.int32] = self.index["frames"].to_numpy()
        return frames

    @property
    def splits(self) -> set[str]:
        """The splits that occur: train, validation, test; empty for a store without splits."""
        return set(pc.unique(self.index["split"]).drop_null().to_pylist())

    def singles(self) -> SpectrogramSource:
        """One spectrogram a clip, to look at: of pairs the first view, of waveforms what the filter bank makes of them.

        A store of single spectrograms gives itself.
        """
        return self if self.views == 1 and self.samples is None else _Singles(self)

    def clip_numbers(self) -> npt.NDArray[np.int64]:
        """A number for the clip of each row, the same for all its versions: [count]."""
        numbers: dict[str, int] = {}
        names = (name.rpartition("@v")[0] or name for name in self.index["id"].to_pylist())
        return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)

    def group_numbers(self) -> npt.NDArray[np.int64] | None:
        """A number for the group of each row, [count], the same for all rows without one; None where none has one."""
        numbers: dict[str | None, int] = {}
        names = [name or None for name in self.index["group"].to_pylist()]
        if not any(names):
            return None
        return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)

    def required_groups(self, asked: str) -> npt.NDArray[np.int64]:
        """As `group_numbers`, of rows that must have groups.

        Args:
            asked: What needs them, for the message, as `batches is group`.

        Raises:
            SettingsError: No row has a group.
        """
        numbers = self.group_numbers()
        if numbers is None:
            raise SettingsError(
                f"{asked}, and the clips of {self.path} have no groups",
                advice="Prepare the store with --group-pattern or a group column, or set it to something else.",
            )
        return numbers

    def padded_clips(self) -> npt.NDArray[np.bool_]:
        """Whether the clip of each row is shorter than its window, [count]; False if lengths are not recorded."""
        return self.clip_frames() < self.frames

    def clip_samples(self) -> npt.NDArray[np.int64]:
        """Samples of sound in the clip of each row, by where it begins and ends, [count]; -1 if not recorded."""
        features = self.features
        if features is None:
            return np.full(len(self), -1, np.int64)
        seconds = zip(self.index["start"].to_pylist(), self.index["end"].to_pylist(), strict=True)
        lengths = [-1 if end is None else round((end - start) * features.sample_rate) for start, end in seconds]
        return np.array(lengths, np.int64)

    def clip_frames(self) -> npt.NDArray[np.int64]:
        """Frames of sound in the clip of each row, [count], before views moved them; all if not recorded."""
        features = self.features
        lengths = [
            self.frames if samples < 0 or features is None else min(features.frames_of(samples), self.frames)
            for samples in self.clip_samples().tolist()
        ]
        return np.array(lengths, np.int64)

    @property
    def labels(self) -> list[str]:
        """Names of all labels, in the order of their numbers."""
        return self._label_table.names

    @property
    def multilabel(self) -> bool:
        """Whether any spectrogram has more than one label."""
        return self._label_table.multilabel

    def label_indices(self, rows: npt.ArrayLike | None = None) -> npt.NDArray[np.int64]:
        """The one label of each row as its index in `labels`, -1 without one: [rows].

        Args:
            rows: Row numbers; None is all.

        Raises:
            StoreError: Some spectrogram has several labels.
        """
        return self._label_table.indices(self._checked(rows))

    def label_matrix(self, rows: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """Labels as ones and zeros, [rows, labels].

        Args:
            rows: Row numbers; None is all.
        """
        return self._label_table.matrix(self._checked(rows))

    def rows(self, split: str | None = None) -> npt.NDArray[np.int64]:
        """Row numbers of a split, ascending; of the whole store for None.

        Raises:
            StoreError: No spectrogram is in this split.
        """
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        inside = pc.fill_null(pc.equal(self.index["split"], split), False)  # noqa: FBT003
        rows: npt.NDArray[np.int64] = np.flatnonzero(inside.to_numpy())
        if len(rows) == 0:
            splits = sorted(pc.unique(self.index["split"]).drop_null().to_pylist())
            raise StoreError(
                f"has no split {split!r}",
                path=self.path,
                advice=f"Its splits are: {', '.join(splits)}." if splits else "It was prepared without splits.",
            )
        return rows

    def _checked(self, rows: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
        if rows is None:
            return np.arange(len(self), dtype=np.int64)
        indices = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a store of {len(self)} spectrograms")
        return indices

    def _memory(self, rows: int, out: npt.NDArray[np.float16] | None, pool: Any) -> npt.NDArray[np.float16]:
        """The array for a batch: `out`, if it is of the right kind, or memory of the pool."""
        shape = (rows, *self.row_shape)
        if out is None:
            lent: npt.NDArray[np.float16] = pool.empty(shape, self.dtype)
            return lent
        if out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, not C-contiguous {self.dtype} {shape}")
        return out

    @property
    def _label_table(self) -> LabelTable:
        if self._labels is None:
            self._labels = LabelTable(self.index["labels"], self.path, names=self._label_names)
        return self._labels


class _Singles(SpectrogramSource):
    """One spectrogram for each clip of a store of pairs or waveforms; see `SpectrogramSource.singles`."""

    def __init__(self, store: SpectrogramSource) -> None:
        _, self._rows = np.unique(store.clip_numbers(), return_index=True)
        super().__init__(store.path, store.index.take(self._rows), store, label_names=store._label_names)
        self._store = store

    @property
    def location(self) -> str:
        """Where its rows come from: the path, or an address elsewhere."""
        return self._store.location

    @property
    def ahead(self) -> int:
        """Batches to announce before they are asked for."""
        return self._store.ahead

    @property
    def real_frames(self) -> npt.NDArray[np.int32]:
        """Frames of each spectrogram that hold sound, [count]; all of them in a view."""
        return super().real_frames if self._store.views == 1 else np.full(len(self), self.frames, np.int32)

    def gather(self, rows: npt.ArrayLike, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
        """Copies first views, or computes spectrograms of waveforms: float16 [n, frames, mels]."""
        indices = self._rows[self._checked(rows)]
        if self._store.samples is None:
            values: npt.NDArray[np.float16] = self._store.gather(indices)[:, 0]
        else:
            values = self._computed(indices)
        if out is None:
            return np.ascontiguousarray(values)
        out[:] = values
        return out

    def announce(self, rows: npt.ArrayLike) -> None:
        """Tells the store which rows come next."""
        self._store.announce(self._rows[self._checked(rows)])

    def _computed(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        import torch

        from tymbal.features.bank import filter_bank
        from tymbal.store.packed.packed_store import FULL_SCALE

        if self.features is None:
            raise StoreError(
                "does not say how spectrograms are computed", path=self.path, advice="Prepare the store again."
            )
        waveforms = torch.from_numpy(self._store.waveforms(rows)).float().div_(FULL_SCALE)
        computed = filter_bank(self.features)(waveforms)[:, : self.frames].half().numpy()
        values = np.full((len(rows), *self.row_shape), self.padding, np.float16)
        values[:, : computed.shape[1]] = computed
        return values
