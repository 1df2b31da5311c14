"""Scores for recordings of any length: `tymbal predict` walks over them window by window.

    tymbal predict classifier night.flac more_nights -o night.csv

Memory does not grow with the recording: it is decoded, cut, scored and written as a stream, and windows of different
files share batches. The table has a row a window and label: file, start, end (seconds), label, score. A file that
cannot be read is named in `failures.csv` beside the table; one that breaks off keeps the rows before the break.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tymbal import config as configuration
from tymbal.audio.decode import stream
from tymbal.audio.failures import Failure, problem, write_failures
from tymbal.errors import AudioError, SettingsError
from tymbal.files import replace_file
from tymbal.inference.windows import Window, windows
from tymbal.progress import Progress
from tymbal.settings import PredictSettings

if TYPE_CHECKING:
    from tymbal.inference.score import Scorer

__all__ = ["PredictResult", "predict"]

COLUMNS = ("file", "start", "end", "label", "score")
_BLOCK = 10.0  # seconds decoded at a time


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """What `predict` did.

    Attributes:
        output: The table.
        files: Recordings that were scored to their end.
        windows: Windows scored.
        seconds: Seconds of sound in them, overlaps counted once.
        failures: Recordings that could not be read, or not to their end.
    """

    output: Path
    files: int
    windows: int
    seconds: float
    failures: tuple[Failure, ...] = ()

    def summary(self) -> str:
        """What was done and where it is, in a few lines."""
        lines = [f"{self.files:,} files, {self.windows:,} windows, {self.seconds / 60:.1f} minutes of sound"]
        if self.failures:
            table = self.output.with_name("failures.csv")
            lines.append(f"{len(self.failures):,} files could not be read, or not to their end: {table}")
        return "\n".join([*lines, f"written: {self.output}"])


@dataclass
class _Work:
    """How recordings are cut, and what the stream of windows leaves behind.

    Attributes:
        rate: Samples a second.
        length: Samples of a window.
        hop: Samples from one window to the next.
        shortest: Fewest samples that can be analysed.
        files: Recordings done to their end.
        seconds: Sound in them.
        failures: Recordings that were not.
    """

    rate: int
    length: int
    hop: int
    shortest: int
    files: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)


def predict(
    model: str | Path,
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> PredictResult:
    """Scores recordings of any length, window by window.

    A recording that does not end with a window has a last one that reaches to its end; it is padded as the model has
    learned it, and its `end` is the end of the recording. Scores are probabilities: they sum to 1 over the labels of a
    window where a clip has one label, and stand for themselves where it may have several.

    Args:
        model: A run, a model folder or a Hugging Face checkpoint with a classifier.
        files: A recording, a folder of them (with all folders below it), or several of these.
        output: The table, a `.csv` file.
        config: YAML file with settings.
        **settings: See `tymbal.settings.PredictSettings`.

    Raises:
        ModelError: The model has no classifier or cannot be read.
        AudioError: No recording could be read, or there is none.
        SettingsError: The settings do not fit the model.
    """
    from tymbal.inference.score import Scorer
    from tymbal.models.folder import load_model
    from tymbal.training.device import choose_device, choose_precision

    chosen = configuration.resolve(PredictSettings, settings, config=config)
    output = Path(output)
    if output.suffix != ".csv":
        raise SettingsError("the table of predictions is a .csv file", path=output, advice=f"Write to {output}.csv.")
    found, closed = _recordings(files)
    device, _ = choose_device(chosen.device)
    dtype, _ = choose_precision(chosen.precision, device)
    scorer = Scorer(load_model(model), device=device, dtype=dtype, source=str(model))
    length, hop = _window(scorer, chosen)
    work = _Work(scorer.sample_rate, length, hop, scorer.shortest, failures=closed)
    with (
        Progress(len(found), "Predicting", unit="files") as progress,
        replace_file(output) as aside,
        aside.open("w", encoding="utf-8", newline="") as table,
    ):
        count = _write_scores(table, scorer, _all_windows(found, work, progress), length, chosen)
        if not count:
            first = work.failures[0]
            raise AudioError(
                f"none of {len(found):,} recordings could be read; the first: {first.file}: {first.reason}",
                advice=first.advice,
            )
    failures = output.with_name("failures.csv")
    if work.failures or failures.exists():
        write_failures(failures, work.failures)
    return PredictResult(
        output=output, files=work.files, windows=count, seconds=work.seconds, failures=tuple(work.failures)
    )


def _recordings(files: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[Failure]]:
    """The files that are meant, and the folders that could not be looked into.

    They are those given, and the sound files below the folders given, in order of name.
    """
    from tymbal.audio.sources import sound_files

    given = [files] if isinstance(files, str | os.PathLike) else list(files)
    found: list[Path] = []
    failures: list[Failure] = []
    for each in map(Path, given):
        if each.is_dir():
            inside, closed = sound_files(each)
            found += map(Path, inside)
            failures += closed
        else:
            found.append(each)
    if not found:
        where = ", ".join(map(str, given)) or "nothing was given"
        raise AudioError(f"there are no sound files to score: {where}", advice="Give files, or folders with files.")
    return found, failures


def _window(scorer: Scorer, settings: PredictSettings) -> tuple[int, int]:
    """Samples of a window and from one to the next."""
    rate = scorer.sample_rate
    length = scorer.window_samples if settings.window is None else round(settings.window * rate)
    hop = length if settings.hop is None else round(settings.hop * rate)
    if length < scorer.shortest:
        raise SettingsError(
            f"window is {settings.window:g} s, shorter than one frame of {scorer.shortest / rate:g} s",
            advice=f"The model was trained on {scorer.window_samples / rate:.3g} s.",
        )
    if not 1 <= hop <= length:
        raise SettingsError(
            f"hop is {settings.hop:g} s, but a window is {length / rate:.4g} s: there would be gaps between windows",
            advice=f"Set hop to at most {length / rate:.4g}.",
        )
    return length, hop


def _all_windows(files: Iterable[Path], work: _Work, progress: Progress) -> Iterator[tuple[Path, Window]]:
    """The windows of all files, one behind the other; what went wrong is noted in `work`."""
    for file in files:
        reached = 0
        try:
            for window in _file_windows(file, work):
                reached = window.end
                yield file, window
                progress.advance(0, note=f"{(work.seconds + reached / work.rate) / 60:,.0f} minutes of sound")
        except AudioError as error:
            failure = Failure.of(error, file)
            if reached:
                until = f"{failure.reason} (scored up to {reached / work.rate:.2f} s)"
                failure = Failure(failure.file, until, failure.advice)
            work.failures.append(failure)
            progress.advance(failed=1)
        else:
            work.files += 1
            progress.advance()
        work.seconds += reached / work.rate


def _file_windows(file: Path, work: _Work) -> Iterator[Window]:
    blocks = stream(file, sample_rate=work.rate, block=_BLOCK)
    for window in windows(blocks, length=work.length, hop=work.hop, shortest=work.shortest):
        if len(window.samples) < work.shortest:
            raise problem("too short", f"{len(window.samples) / work.rate:.4g} s, less than one frame", file)
        yield window


def _write_scores(
    table: IO[str], scorer: Scorer, found: Iterator[tuple[Path, Window]], length: int, settings: PredictSettings
) -> int:
    """Scores windows in batches and writes their rows; returns how many windows there were."""
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    batch: list[tuple[Path, Window]] = []
    for item in found:
        batch.append(item)
        if len(batch) == settings.batch_size:
            count += _write_batch(writer, scorer, batch, length, settings)
            batch = []
    return count + _write_batch(writer, scorer, batch, length, settings)


def _write_batch(
    writer: Any, scorer: Scorer, batch: Sequence[tuple[Path, Window]], length: int, settings: PredictSettings
) -> int:
    """Scores one batch and writes its rows; returns how many windows it has."""
    if not batch:
        return 0
    scores = scorer([window for _, window in batch], length=length)
    for (file, window), row in zip(batch, scores, strict=True):
        start, end = (f"{sample / scorer.sample_rate:.3f}" for sample in (window.start, window.end))
        for place in _kept(row, settings):
            writer.writerow((os.fspath(file), start, end, scorer.labels[place], f"{row[place]:.6f}"))
    return len(batch)


def _kept(scores: NDArray[np.float32], settings: PredictSettings) -> NDArray[np.intp]:
    """Places of the labels to be written, best first."""
    order = np.argsort(-scores, kind="stable")[: settings.top]
    return order[scores[order] >= settings.threshold]
