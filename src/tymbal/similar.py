"""Search by example: `tymbal similar` finds what sounds like a clip, among sounds that `tymbal embed` wrote down.

    tymbal embed   run recordings -o recordings.parquet
    tymbal similar run clip.wav recordings.parquet

The example is embedded as the others were; one that is longer than a window is the mean of its windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal.errors import SettingsError
from tymbal.files import written_alone
from tymbal.settings import SimilarSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tymbal.inference.frontend import Embedder
    from tymbal.inference.tables import Kind

__all__ = ["Neighbour", "SimilarResult", "similar"]

_COLUMNS: dict[str, Kind] = {"file": "text", "start": "seconds", "end": "seconds", "similarity": "score"}


@dataclass(frozen=True)
class Neighbour:
    """A sound that is like the example.

    Attributes:
        file: Its path.
        start: Seconds from the beginning of the file.
        end: Where it ends, in seconds.
        similarity: Cosine of the angle between its embedding and the example's; 1 is the same.
    """

    file: str
    start: float
    end: float
    similarity: float


@dataclass(frozen=True)
class SimilarResult:
    """The sounds most similar to the example.

    Attributes:
        neighbours: The nearest first.
        output: The table that was written, if any.
    """

    neighbours: tuple[Neighbour, ...]
    output: Path | None = None

    def summary(self) -> str:
        """A line a neighbour."""
        lines = [f"{one.similarity:.4f}  {one.file}  {one.start:.2f} to {one.end:.2f} s" for one in self.neighbours]
        return "\n".join(lines if self.output is None else [*lines, f"written: {self.output}"])


@written_alone
def similar(
    model: str | Path,
    clip: str | Path,
    index: str | Path,
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> SimilarResult:
    """Finds the sounds whose embeddings are nearest to that of an example.

    Args:
        model: The model that the embeddings are from.
        clip: The example, a sound file of any length.
        index: The `.parquet` file that `tymbal embed` wrote.
        output: Where to write the table (.csv, .parquet, .json, .jsonl). None writes nothing.
        config: YAML file with settings.
        **settings: See `tymbal.settings.SimilarSettings`.

    Raises:
        AudioError: The example cannot be read.
        ModelError: The embeddings are another model's.
        SettingsError: A setting is wrong, or approximate search is not installed.
        StoreError: There are no embeddings.
    """
    from tymbal.inference.embeddings import nearest_approximately, nearest_exactly, read_record, rows_of
    from tymbal.inference.frontend import ready_model
    from tymbal.inference.tables import RowFormat, endings, format_of

    chosen = configuration.resolve(SimilarSettings, settings, config=config)
    target = None if output is None else Path(output)
    table = None if target is None else format_of(target, RowFormat)
    if target is not None and table is None:
        raise SettingsError(f"a table ends in {endings(RowFormat)}", path=target, advice="Name it so.")
    place = Path(index)
    record = read_record(place)
    embedder = ready_model(model, chosen).embedder_like(record, index=place)
    query = _example(embedder, Path(clip), record, batch_size=chosen.batch_size)
    search = nearest_approximately if chosen.approximate else nearest_exactly
    rows, scores = search(place, query, chosen.top)
    neighbours = tuple(
        Neighbour(row["file"], row["start"], row["end"], score)
        for row, score in zip(rows_of(place, rows), scores.tolist(), strict=True)
    )
    if target is not None and table is not None:
        with table.open(target, _COLUMNS) as write:
            for one in neighbours:
                write((one.file, one.start, one.end, one.similarity))
    return SimilarResult(neighbours, target)


def _example(embedder: Embedder, clip: Path, record: dict[str, Any], *, batch_size: int) -> NDArray[np.float32]:
    """The embedding of the example: the mean of its windows, weighted by their length."""
    import numpy as np

    from tymbal.audio.decode import stream
    from tymbal.audio.failures import problem
    from tymbal.inference.streaming import cut_for, windows

    cut = cut_for(embedder.description, window=record["window"], hop=record["hop"])
    blocks = stream(clip, sample_rate=cut.rate)
    pieces = list(windows(blocks, length=cut.length, hop=cut.hop, shortest=cut.shortest))
    if len(pieces[0].samples) < cut.shortest:
        raise problem("too short", f"{len(pieces[0].samples) / cut.rate:.4g} s, less than one frame", clip)
    parts = [
        embedder.windows(pieces[start : start + batch_size], length=cut.length)
        for start in range(0, len(pieces), batch_size)
    ]
    weights = np.array([len(window.samples) for window in pieces], np.float64)
    mean: NDArray[np.float32] = np.average(np.concatenate(parts), axis=0, weights=weights).astype(np.float32)
    return mean
