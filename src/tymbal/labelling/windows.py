"""The windows that are looked through, and their vectors: few enough for memory, however many hours there are.

A table of embeddings may have millions of rows. Up to `most` of them, all or drawn at random, are held as float32; an
example is looked for among all, by the index of `tymbal similar` where the table is larger. Vectors are standardised by
the windows themselves, which nobody has to label for that; those of more than 512 numbers are turned into the 512
directions in which they vary most. What was drawn of a larger table is kept in a file, so that the table is read once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tymbal.errors import StoreError
from tymbal.evaluation.linear import centre_and_scale
from tymbal.files import replace_file
from tymbal.inference.embeddings import index_of, nearest_approximately, nearest_exactly, read_rows, stamp_of
from tymbal.inference.tables import vectors
from tymbal.labelling.table import Window

__all__ = ["Clusters", "Projection", "Windows", "cosines"]

_WIDEST = 512
_SAMPLE = 2048
_CLUSTERED = 5_000
_FACTS = "windows"
_LONG = 500_000_000
"""Numbers that are compared one by one; more are indexed."""
_COLUMNS = ("file", "start", "end")


@dataclass(frozen=True)
class Projection:
    """From embeddings as they come to the vectors that are compared and learned from.

    Attributes:
        centre: Mean of each number, [dimensions].
        weight: [dimensions, width].
        scale: The diagonal of a weight that has nothing beside it, [dimensions]; None of others.
    """

    centre: NDArray[np.float32]
    weight: NDArray[np.float32]
    scale: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, sample: NDArray[np.float32]) -> Projection:
        """Standardises, and keeps the directions of most variance where there are more than 512.

        Args:
            sample: Embeddings, [windows, dimensions].
        """
        centre, scale = centre_and_scale(sample)
        width = sample.shape[1]
        scale = scale * np.sqrt(width)  # vectors of length 1 in the mean, however many numbers they have
        if width <= _WIDEST:
            scaling = (1 / scale).astype(np.float32)
            return cls(centre.astype(np.float32), np.diag(scaling), scaling)
        scaled = ((sample - centre) / scale).astype(np.float32)
        values, directions = np.linalg.eigh(scaled @ scaled.T)
        kept = np.flatnonzero(values > 1e-6 * values[-1])[-_WIDEST:]
        basis = scaled.T @ (directions[:, kept] / np.sqrt(values[kept]))
        return cls(centre.astype(np.float32), (basis / scale[:, None]).astype(np.float32))

    def __call__(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors of embeddings, [windows, dimensions] to [windows, width]."""
        centred = embeddings - self.centre
        return np.asarray(centred @ self.weight if self.scale is None else centred * self.scale, np.float32)


@dataclass(frozen=True)
class Clusters:
    """Groups of windows that are alike.

    Attributes:
        places: The windows that were grouped, [members].
        own: The cluster of each, [members].
        away: Its squared distance from the middle of the cluster, [members].
        centres: Middles of the clusters, [clusters, width].
    """

    places: NDArray[np.int64]
    own: NDArray[np.int64]
    away: NDArray[np.float32]
    centres: NDArray[np.float32]

    def nearest(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """The cluster of other vectors, [windows, width] to [windows]."""
        halves = np.square(self.centres).sum(axis=1) / 2
        return np.asarray((values @ self.centres.T - halves).argmax(axis=1))


class Windows:
    """Windows in memory.

    Args:
        table: The table of `tymbal embed`.
        most: Windows at most.
        seed: Seed by which they are drawn where there are more.
        kept: A file that keeps what was drawn of a larger table; None keeps nothing.

    Attributes:
        table: The table.
        total: Rows that it has.
        rows: Rows that are held, ascending, [windows].
        files: The recordings.
        file: The number of each window's recording, [windows].
        start: Where each begins, in seconds, [windows].
        end: Where each ends, [windows].
        vectors: Their vectors, [windows, width].
        projection: What made the vectors of the embeddings.

    Raises:
        StoreError: The table does not say of which recordings the embeddings are.
    """

    def __init__(self, table: Path, *, most: int, seed: int, kept: Path | None = None) -> None:
        self.table = table
        self.total = int(pq.read_metadata(table).num_rows)
        self.files: list[str] = []
        self._numbers: dict[str, int] = {}
        self._seed = seed
        self._clusters: tuple[tuple[int, int], Clusters] | None = None
        self.rows = np.empty(0, np.int64)
        self.file, self.start, self.end = np.empty(0, np.int32), np.empty(0), np.empty(0)
        stamp: dict[str, Any] = {}
        if self.total <= most:
            kept = None
        if kept is not None:
            stamp = {**stamp_of(table), "most": most, "seed": seed}
            if self._read(kept, stamp):
                return
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.permutation(self.total)[:most])
        sample = np.sort(rng.permutation(drawn)[:_SAMPLE])
        self.projection = Projection.of(np.concatenate([vectors(batch) for _, batch in read_rows(table, sample)]))
        self.vectors = np.empty((0, self.projection.weight.shape[1]), np.float32)
        self.add(drawn)
        if kept is not None:
            self._write(kept, stamp)

    def _write(self, kept: Path, stamp: dict[str, Any]) -> None:
        """Keeps what is held."""
        projection = self.projection
        tensors: dict[str, NDArray[Any]] = {
            "rows": self.rows,
            "file": self.file,
            "start": self.start,
            "end": self.end,
            "vectors": self.vectors,
        }
        tensors |= {"centre": projection.centre, "weight": projection.weight}
        if projection.scale is not None:
            tensors["scale"] = projection.scale
        with replace_file(kept) as aside:
            save_file(tensors, aside, metadata={_FACTS: json.dumps({"stamp": stamp, "files": self.files})})

    def _read(self, kept: Path, stamp: dict[str, Any]) -> bool:
        """Reads what was kept; False where there is nothing, or it is of another table or draw."""
        try:
            with safe_open(kept, framework="numpy") as file:
                facts = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
                if facts.get("stamp") != stamp:
                    return False
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, ValueError):
            return False
        self.files = facts["files"]
        self._numbers = {name: number for number, name in enumerate(self.files)}
        self.rows, self.file, self.start, self.end = (held[name] for name in ("rows", "file", "start", "end"))
        self.vectors = held["vectors"]
        self.projection = Projection(held["centre"], held["weight"], held.get("scale"))
        return True

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Reads further rows, of those that are not held yet, into memory."""
        new = np.setdiff1d(rows, self.rows)
        if not len(new):
            return
        room = np.empty((len(self) + len(new), self.vectors.shape[1]), np.float32)
        parts: list[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]] = []
        done = len(self)
        room[:done] = self.vectors
        for taken, batch in read_rows(self.table, new, _COLUMNS):
            room[done : done + len(taken)] = self.projection(vectors(batch))
            start, end = (batch.column(name).to_numpy().astype(np.float64) for name in ("start", "end"))
            parts.append((taken, self._number(batch.column("file")), start, end))
            done += len(taken)
        joined = [np.concatenate(side) for side in zip(*parts, strict=True)]
        order = np.argsort(np.concatenate([self.rows, joined[0]]), kind="stable")
        self.vectors = room if np.array_equal(order, np.arange(len(order))) else room[order]
        held = (self.rows, self.file, self.start, self.end)
        merged = [np.concatenate([old, more])[order] for old, more in zip(held, joined, strict=True)]
        self.rows, self.file, self.start, self.end = merged

    def _number(self, column: pa.Array) -> NDArray[np.int32]:
        """The numbers of recordings, which get one where they are new."""
        coded = column.dictionary_encode()
        names = coded.dictionary.to_pylist()
        if coded.null_count or None in names:
            raise StoreError(
                "these embeddings are not of recordings",
                path=self.table,
                advice="Give recordings, or a .parquet file of `tymbal embed` of some.",
            )
        for name in names:
            if name not in self._numbers:
                self._numbers[name] = len(self.files)
                self.files.append(name)
        lookup = np.array([self._numbers[name] for name in names], np.int32)
        return np.asarray(lookup[coded.indices.to_numpy()])

    def places(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows are held, [rows]; -1 for those that are not."""
        wanted = np.asarray(rows, np.int64)
        places = np.minimum(np.searchsorted(self.rows, wanted), len(self) - 1)
        return np.where(self.rows[places] == wanted, places, -1)

    def window(self, place: int) -> Window:
        """The window that is held at a place."""
        return Window(
            int(self.rows[place]),
            self.files[self.file[place]],
            float(self.start[place]),
            float(self.end[place]),
        )

    def inside(self, file: str, start: float, end: float) -> NDArray[np.int64]:
        """Places of windows of a recording that share some time with a stretch of it."""
        number = self._numbers.get(file, -1)
        return np.flatnonzero((self.file == number) & (self.start < end) & (self.end > start))

    def neighbours(self, place: int) -> NDArray[np.bool_]:
        """Windows of the same recording that overlap the one at a place, touch it, or are it, bool [windows]."""
        room = 1e-3 + 0.5 * (self.end[place] - self.start[place])
        near = (self.start < self.end[place] + room) & (self.end > self.start[place] - room)
        return np.asarray((self.file == self.file[place]) & near)

    def clusters(self, number: int) -> Clusters:
        """Groups up to 5,000 windows by k-means; kept until another number is asked for, or windows come.

        Args:
            number: How many groups; fewer than there are windows.

        Returns:
            The groups; places are those of the windows that are held.
        """
        from sklearn.cluster import MiniBatchKMeans

        key = (number, len(self))
        if self._clusters is None or self._clusters[0] != key:
            places = np.random.default_rng([self._seed, 3]).permutation(len(self))[:_CLUSTERED]
            values = self.vectors[places]
            found = MiniBatchKMeans(number, n_init=1, batch_size=1024, max_iter=20, random_state=self._seed).fit(values)
            own, centres = found.labels_.astype(np.int64), found.cluster_centers_.astype(np.float32)
            away = np.square(values - centres[own]).sum(axis=1)
            self._clusters = key, Clusters(places, own, away, centres)
        return self._clusters[1]

    def nearest(self, embedding: NDArray[np.float32], top: int) -> NDArray[np.int64]:
        """Places of the windows that are most like an embedding, the nearest first.

        Where more windows exist than are held, all are searched, and the nearest are held from then on: by an index
        where there are many and the extra `search` is installed.
        """
        if self.total == len(self):
            vector = self.projection(embedding[None])[0]
            return np.asarray(np.argsort(-cosines(self.vectors, vector), kind="stable")[:top])
        search = nearest_approximately if self._is_indexed else nearest_exactly
        rows, _ = search(self.table, embedding, top)
        self.add(rows)
        return self.places(rows)

    def make_searchable(self) -> None:
        """Makes the index by which examples are found where more windows exist than are held, once; see `nearest`."""
        if self.total > len(self) and self._is_indexed:
            index_of(self.table)

    @property
    def _is_indexed(self) -> bool:
        """Whether an index is worth its time: there it finds in a second what takes five and more, without."""
        return self.total * len(self.projection.centre) > _LONG and find_spec("usearch") is not None

    def embedding(self, row: int) -> NDArray[np.float32]:
        """The embedding of a row of the table, as it came."""
        return np.asarray(np.concatenate([vectors(batch) for _, batch in read_rows(self.table, np.array([row]))])[0])


def cosines(values: NDArray[np.float32], direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of the angles between vectors [windows, width] and one direction, [windows]."""
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values)) * np.linalg.norm(direction)
    return np.asarray((values @ direction) / np.maximum(lengths, np.finfo(np.float32).tiny))
