"""Embeddings with their sounds, laid out on a plane, as embedding-atlas (Apple) opens them: one Parquet file.

    tymbal embed run recordings -o atlas.parquet --format embedding-atlas
    uvx embedding-atlas atlas.parquet --x projection_x --y projection_y --neighbors __neighbors

Columns are those of every table of embeddings, `embedding` among them, and `projection_x`, `projection_y`,
`__neighbors` (the nearest rows by cosine, `ids` and `distances`), `folder`, that of the file, to colour by, and
`audio`, a struct of `bytes` (FLAC) and `path`, which is played. What is in memory and in the file is bounded: of more
than 50,000 rows every second, fourth, … is taken, of more than 5,000 so many have a sound, evenly spread, and a sound
is ten seconds at most; each is said.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tymbal.errors import SettingsError, TymbalError
from tymbal.files import replace_file
from tymbal.inference.tables import RECORD_KEY, EmbeddingFormat, vectors
from tymbal.pages.players import heard
from tymbal.progress import Progress, tell

__all__ = ["EmbeddingAtlas", "laid_out"]

_MOST_ROWS = 50_000
_MOST_SOUNDS = 5_000
_MOST_SECONDS = 10.0
_NEIGHBOURS = 10
_BY_TSNE = 5_000
_FEWEST_UMAP = 16
_PRINCIPAL = 50
_AT_ONCE = 256  # rows whose sounds are in memory
_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_NEAR = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])


class EmbeddingAtlas(EmbeddingFormat):
    """Embedding-atlas's Parquet: rows on a plane, with neighbours and sounds."""

    name = "embedding-atlas"
    suffixes = (".parquet",)

    @contextlib.contextmanager
    def open_embeddings(
        self, path: Path, schema: pa.Schema, record: Mapping[str, Any]
    ) -> Iterator[Callable[[pa.Table], None]]:
        """Opens a file for embeddings, see `EmbeddingFormat`; what it is of is read again for its sound."""
        taken = _Taken()
        yield taken.add
        rows = taken.table(schema)
        if taken.stride > 1:
            tell(f"Of {taken.count:,} embeddings one in {taken.stride} is in {path.name}", warning=True)
        values = vectors(rows)
        with threadpool_limits(1, user_api="openmp"):
            places = laid_out(values) if len(values) else np.zeros((0, 2))
        ids, distances = _neighbours(values)
        near = [{"ids": i, "distances": d} for i, d in zip(ids.tolist(), distances.tolist(), strict=True)]
        columns = {
            "id": pa.array(range(len(rows)), pa.int64()),
            "projection_x": pa.array(places[:, 0], pa.float32()),
            "projection_y": pa.array(places[:, 1], pa.float32()),
            "__neighbors": pa.array(near, _NEAR),
        }
        if "file" in rows.column_names:  # to colour by, where there are no labels
            folders = [None if file is None else Path(file).parent.name for file in rows.column("file").to_pylist()]
            columns["folder"] = pa.array(folders, pa.string())
        others = {name: rows.column(name) for name in rows.column_names if name not in columns}
        whole = pa.table({**columns, **others})
        described = whole.schema.append(pa.field("audio", _AUDIO)).with_metadata(
            {RECORD_KEY: json.dumps(dict(record)).encode()}
        )
        with replace_file(path) as aside, pq.ParquetWriter(aside, described, compression="zstd") as writer:
            for part in _with_sounds(whole):
                writer.write_table(part.cast(described))


class _Taken:
    """Rows that are kept of a stream: all, or one in so many that memory is bounded."""

    def __init__(self) -> None:
        self.stride = 1
        self.count = 0
        self._parts: list[pa.Table] = []
        self._kept = 0

    def add(self, rows: pa.Table) -> None:
        """Takes those rows of the next table whose turn it is."""
        first = -self.count % self.stride
        self.count += rows.num_rows
        self._parts.append(rows.take(pa.array(np.arange(first, rows.num_rows, self.stride))))
        self._kept += self._parts[-1].num_rows
        while self._kept > _MOST_ROWS:
            kept = pa.concat_tables(self._parts)
            self._parts = [kept.take(pa.array(np.arange(0, kept.num_rows, 2)))]
            self._kept, self.stride = self._parts[0].num_rows, 2 * self.stride

    def table(self, schema: pa.Schema) -> pa.Table:
        """All that were taken, in order."""
        return pa.concat_tables([schema.empty_table(), *self._parts]).combine_chunks()


def laid_out(embeddings: NDArray[np.floating[Any]], *, method: str = "auto", seed: int = 42) -> NDArray[np.float64]:
    """Lays embeddings out on a plane; neighbours of the first principal components stay neighbours.

    Args:
        embeddings: [rows, dimensions].
        method: `tsne`, `umap` (extra `umap`) or `pca`; `auto` is UMAP where it is installed, else t-SNE, of more than
            5,000 rows the two principal components.
        seed: Seed of the layout.

    Returns:
        [rows, 2].

    Raises:
        SettingsError: UMAP is asked for and not installed.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = np.asarray(embeddings, np.float64)
    centred = (centred - centred.mean(axis=0)) / np.maximum(centred.std(axis=0), 1e-9)
    count = min(_PRINCIPAL, *centred.shape)
    if not centred.any():
        return np.zeros((len(centred), 2))
    principal = PCA(count, random_state=seed).fit_transform(centred)
    if method == "auto":
        method = _chosen_method(len(centred))
    if method == "pca" or count < 3:
        flat: NDArray[np.float64] = np.pad(principal, ((0, 0), (0, 1)))[:, :2]
        return flat
    if method == "umap":
        if importlib.util.find_spec("umap") is None:
            raise SettingsError("umap is not installed", advice="pip install 'tymbal[umap]', or --map tsne.")
        import umap

        laid: NDArray[np.float64] = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(principal)
        return laid
    perplexity = min(30.0, (len(principal) - 1) / 3)
    places: NDArray[np.float64] = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(principal)
    return places


def _chosen_method(rows: int) -> str:
    if importlib.util.find_spec("umap") is not None and rows > _FEWEST_UMAP:
        return "umap"
    if rows <= _BY_TSNE:
        return "tsne"
    tell("Laid out by principal components: pip install 'tymbal[umap]' lays so many rows out by likeness")
    return "pca"


def _neighbours(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest rows of each by cosine distance, itself first, [rows, neighbours], and how far they are."""
    count = min(_NEIGHBOURS + 1, len(embeddings))
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    ids = np.empty((len(unit), count), np.int64)
    distances = np.empty((len(unit), count), np.float32)
    for start in range(0, len(unit), _AT_ONCE):
        apart = 1 - unit[start : start + _AT_ONCE] @ unit.T
        best = np.argsort(apart, axis=1, kind="stable")[:, :count]
        ids[start : start + len(best)] = best
        distances[start : start + len(best)] = np.take_along_axis(apart, best, axis=1)
    return ids, np.maximum(distances, 0)


def _with_sounds(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows in parts, with their sounds; those that cannot be read have none, and it is said how many."""
    sounding = np.zeros(rows.num_rows, bool)
    sounding[np.linspace(0, rows.num_rows - 1, min(_MOST_SOUNDS, rows.num_rows)).round().astype(int)] = True
    silent, slower = 0, 0
    with Progress(rows.num_rows, "Sounds", unit="rows") as progress:
        for start in range(0, rows.num_rows, _AT_ONCE):
            part = rows.slice(start, _AT_ONCE)
            cells: list[dict[str, Any] | None] = []
            others = [name for name in ("file", "start", "end") if name in part.column_names]
            for number, row in enumerate(part.select(others).to_pylist(), start):
                sound = _sound(row) if sounding[number] else None
                silent += sound is None and bool(sounding[number])
                slower += sound is not None and sound[1]
                cells.append(None if sound is None else {"bytes": sound[0], "path": f"{number}.flac"})
            yield part.append_column("audio", pa.array(cells, _AUDIO))
            progress.advance(part.num_rows)
    if rows.num_rows > _MOST_SOUNDS:
        tell(f"{_MOST_SOUNDS:,} of {rows.num_rows:,} rows have a sound to play", warning=True)
    if silent:
        tell(f"{silent:,} rows have no sound to play: their files cannot be read here", warning=True)
    if slower:
        tell(f"{slower:,} sounds are ultrasound, and play ten times slower")


def _sound(row: Mapping[str, Any]) -> tuple[bytes, bool] | None:
    """A row's part of its recording as FLAC, and whether it plays slower; None where it cannot be read."""
    if not row.get("file"):
        return None
    try:
        return heard(Path(row["file"]), row.get("start") or 0.0, row.get("end"), seconds=_MOST_SECONDS)
    except TymbalError:
        return None
