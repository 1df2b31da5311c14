"""Embeddings of sound: `tymbal embed` writes down what an encoder makes of each window, second or file.

    tymbal embed run recordings -o recordings.parquet
    tymbal embed run recordings -o seconds.npy --per second
    tymbal embed run store -o clips.parquet

Recordings may have any length, and memory does not grow with them or their number; those that cannot be read are named
in `failures.csv`. What is stopped continues where it was. `tymbal similar` searches in a `.parquet` file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal.audio.failures import Failure, write_failures
from tymbal.errors import AudioError
from tymbal.progress import Progress, counted, tell
from tymbal.settings import EmbedSettings

if TYPE_CHECKING:
    from tymbal.inference.embedding_input import EmbeddingInput
    from tymbal.inference.embeddings import EmbeddingFormat
    from tymbal.inference.frontend import Embedder

__all__ = ["EmbedResult", "embed"]


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """What `embed` did.

    Attributes:
        output: The embeddings.
        written: All files that were written.
        rows: Embeddings.
        dimensions: Length of an embedding.
        failures: Recordings that could not be read, or not to their end.
        failures_file: Where they are listed, where there are any.
    """

    output: Path
    written: tuple[Path, ...]
    rows: int
    dimensions: int
    failures: tuple[Failure, ...] = ()
    failures_file: Path | None = None

    def summary(self) -> str:
        """What was done and where it is, in a few lines."""
        lines = [f"{counted(self.rows, 'embedding')} of {self.dimensions:,} numbers"]
        if self.failures:
            count = f"{counted(len(self.failures), 'file')} could not be read, or not to their end"
            lines.append(f"{count}: {self.failures_file}")
        return "\n".join([*lines, *(f"written: {path}" for path in self.written)])


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
        AudioError: No recording could be read, or there is none.
        StoreError: The store cannot be read.
        SettingsError: The settings do not fit the model or the source, or an unfinished run was begun with others.
    """
    from tymbal.compute.device import choose_device, choose_precision
    from tymbal.inference.embedding_input import material
    from tymbal.inference.embeddings import embedding_format
    from tymbal.inference.frontend import Embedder
    from tymbal.models.folder import load_model

    chosen = configuration.resolve(EmbedSettings, settings, config=config)
    output = Path(output)
    kind = embedding_format(output, chosen.format)
    device, _ = choose_device(chosen.device)
    dtype, _ = choose_precision(chosen.precision, device)
    embedder = Embedder(
        load_model(model),
        pooling=chosen.pooling,
        layer=chosen.layer,
        skip_padding=chosen.skip_padding,
        device=device,
        dtype=dtype,
    )
    found = material(sources, embedder, chosen, path=str(model))
    record = {
        "verb": "embed",
        **configuration.deciding(chosen),
        **embedder.record(),
        "precision": str(dtype),
        "source": found.source,
    }
    return _run(found, output, kind, record, embedder=embedder, batch_size=chosen.batch_size)


def _run(
    found: EmbeddingInput,
    output: Path,
    kind: EmbeddingFormat,
    record: dict[str, Any],
    *,
    embedder: Embedder,
    batch_size: int,
) -> EmbedResult:
    """Computes what is not there yet, and writes the table."""
    from tymbal.inference.embeddings import open_embeddings, rows_path
    from tymbal.inference.spool import Spool, writing

    count = 0
    with writing(output), Spool(output, schema=found.spooled, record=record) as spool:
        done = spool.done(found.pieces)
        if done:
            tell(f"Continuing: {len(done):,} of {len(found.pieces):,} {found.unit} are done")
        left = [piece for piece in found.pieces if piece.path not in done]
        with Progress(len(found.pieces), "Embedding", unit=found.unit, done=len(done)) as progress:
            found.compute(left, spool, batch_size=batch_size, progress=progress)
        outcomes = spool.outcomes(found.pieces)
        failures = (*found.closed, *(outcome.failure for outcome in outcomes if outcome.failure is not None))
        if any(outcome.windows for outcome in outcomes):
            with open_embeddings(output, kind, found.schema, record) as write:
                for rows in found.tables(spool):
                    write(rows)
                    count += rows.num_rows
    spool.remove()
    if not count:
        first = failures[0]
        raise AudioError(
            f"none of {len(found.pieces):,} recordings could be read; the first: {first.file}: {first.reason}",
            advice=first.advice,
        )
    listed = output.with_name("failures.csv")
    if failures or listed.exists():
        with writing(listed):
            write_failures(listed, failures)
    return EmbedResult(
        output=output,
        written=(output, rows_path(output)) if kind == "npy" else (output,),
        rows=count,
        dimensions=embedder.dimensions,
        failures=failures,
        failures_file=listed if failures else None,
    )
