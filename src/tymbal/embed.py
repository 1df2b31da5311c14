"""Embeddings of sound: `tymbal embed` writes down what an encoder makes of each window, second or file.

    tymbal embed run recordings -o recordings.parquet
    tymbal embed run recordings -o seconds.npy --per second
    tymbal embed run store -o clips.parquet

Recordings may have any length, and memory does not grow with them or their number; those that cannot be read are named
in `NAME.failures.csv`. What is stopped continues where it was. `tymbal similar` searches in a `.parquet` file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal.audio.failures import Failure, failures_beside
from tymbal.progress import counted
from tymbal.settings import EmbedSettings

if TYPE_CHECKING:
    from tymbal.inference.spool import Spool

__all__ = ["EmbedResult", "embed"]


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """The outcome of `embed`.

    Attributes:
        output: The embeddings.
        written: All files that were written.
        rows: Embeddings.
        dimensions: Length of an embedding.
        failures: Recordings that could not be read, or not to their end.
        failures_file: The list of these failures; None without any.
    """

    output: Path
    written: tuple[Path, ...]
    rows: int
    dimensions: int
    failures: tuple[Failure, ...] = ()
    failures_file: Path | None = None

    def summary(self) -> str:
        """What was done and where the output is, in a few lines."""
        from tymbal.inference.streaming import closing_lines

        first = f"{counted(self.rows, 'embedding')} of {self.dimensions:,} numbers"
        return "\n".join([first, *closing_lines(self.failures, self.failures_file, self.written)])


def embed(
    model: str | Path,
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> EmbedResult:
    """Embeds recordings, or the clips of a store.

    Run again after a stop, it continues; recordings that are new or have changed since are embedded anew.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        sources: A recording, a folder of them (with all folders below it), or several of these; or one store, packed
            or a folder of `.pt` spectrograms.
        output: The embeddings (.parquet, .npy with its rows in a .rows.csv, .csv).
        config: YAML file with settings.
        **settings: See `tymbal.settings.EmbedSettings`.

    Raises:
        ModelError: The model cannot be read, or the store's spectrograms are not its own.
        AudioError: No recording could be read, or none exists.
        StoreError: The store cannot be read.
        SettingsError: The settings do not fit the model or the source, or an unfinished run was begun with others.
    """
    from tymbal.inference.embedding_input import open_input
    from tymbal.inference.frontend import ready_model
    from tymbal.inference.streaming import Job, run_job
    from tymbal.inference.tables import EmbeddingFormat, choose_format

    chosen = configuration.resolve(EmbedSettings, settings, config=config)
    configuration.say_useless(chosen)
    output = Path(output)
    kind = choose_format(output, chosen.format, EmbeddingFormat)
    ready = ready_model(model, chosen)
    pooling = chosen.pooling
    if chosen.per == "second" and pooling == "auto":  # a grid has no place in time
        pooling = "mean" if ready.description.embedding is None else "rows"
    embedder = ready.embedder(pooling=pooling, layer=chosen.layer, skip_padding=chosen.skip_padding)
    source = open_input(sources, embedder, chosen, path=str(model))
    record = {
        "verb": "embed",
        **embedder.record(),
        **configuration.deciding(chosen),
        "pooling": embedder.record()["pooling"],  # what `grid` and `auto` are for this model
        "precision": ready.arithmetic,
        "source": source.identity,
    }

    def write(spool: Spool) -> int:
        count = 0
        with kind.open_embeddings(output, source.schema, record) as add:
            for rows in source.tables(spool):
                add(rows)
                count += rows.num_rows
        return count

    job = Job(
        title="Embedding",
        items=source.items,
        plural=source.plural,
        unit=source.unit,
        schema=source.spooled,
        record=record,
        compute=source.compute,
        failures=source.failures,
        write=write,
    )
    finished = run_job(job, output, failures_file=failures_beside(output))
    return EmbedResult(
        output=output,
        written=kind.files(output),
        rows=finished.written,
        dimensions=embedder.dimensions,
        failures=finished.failures,
        failures_file=finished.failures_file,
    )
