"""The job that `predict` and `embed` share: it is spooled, continues, and reads recordings of any length.

Recordings are decoded as a stream, cut into windows, computed in batches that recordings share, and spooled.

Windows of different files share batches. A recording that cannot be read, or not to its end, is an outcome like
another, with the rows that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tymbal.audio.clip_labels import recorded_at
from tymbal.audio.decode import stream
from tymbal.audio.failures import Failure, check_reachable, problem, write_failures
from tymbal.audio.sources import Recording
from tymbal.errors import AudioError, SettingsError
from tymbal.files import writing
from tymbal.inference.spool import Item, Outcome, Spool
from tymbal.machine import memory
from tymbal.models.description import ModelDescription
from tymbal.progress import Progress, counted, duration, tell

__all__ = [
    "Cut",
    "Finished",
    "Job",
    "Rows",
    "Window",
    "closing_lines",
    "cut_for",
    "failures_of",
    "run_job",
    "walk",
    "windows",
]

Written = TypeVar("Written")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Written]):
    """Items that are computed, spooled, and written when all are done.

    Attributes:
        title: Title of the progress bar.
        items: Recordings, or blocks of clips.
        plural: Word for the items in messages.
        unit: Word for them in progress.
        schema: Columns that are spooled.
        record: Everything that decides the rows: a job that was begun with something else is not continued.
        compute: Computes and spools the items but those whose keys are given, which are done.
        failures: Returns the failures among the outcomes of all items.
        write: Writes the output from the spool.
    """

    title: str
    items: Sequence[Item]
    plural: str
    unit: str
    schema: pa.Schema
    record: Mapping[str, Any]
    compute: Callable[[set[str], Spool, Progress], None]
    failures: Callable[[Sequence[Outcome]], Sequence[Failure]]
    write: Callable[[Spool], Written]


@dataclass(frozen=True)
class Finished(Generic[Written]):
    """The result of a finished job.

    Attributes:
        outcomes: The outcome of each item.
        failures: Items that could not be read, or not to their end.
        failures_file: The list of the failures; None without failures.
        written: The result of `write`.
    """

    outcomes: Sequence[Outcome]
    failures: tuple[Failure, ...]
    failures_file: Path | None
    written: Written


def run_job(job: Job[Written], output: Path, *, failures_file: Path) -> Finished[Written]:
    """Computes what is not done yet, writes the output, and lists what could not be read.

    Args:
        job: The job.
        output: The file or folder to write.
        failures_file: Where to list failures, if any.

    Raises:
        AudioError: Nothing could be read, or a large share could not be reached; what was computed is kept.
        SettingsError: The output cannot be written, another process is at work on it, or the unfinished job was begun
            with something else.
    """
    written: Written | None = None
    with writing(output), Spool(output, schema=job.schema, record=job.record) as spool:
        done = spool.done(job.items)
        if done:
            tell(f"Continuing: {len(done):,} of {len(job.items):,} {job.plural} are done")
        with Progress(len(job.items), job.title, unit=job.unit, done=len(done)) as progress:
            job.compute(done, spool, progress)
        outcomes = spool.outcomes(job.items)
        failures = tuple(job.failures(outcomes))
        if any(outcome.windows for outcome in outcomes):
            rows = sum(outcome.windows + len(outcome.left_out) for outcome in outcomes)
            check_reachable(failures, rows if any(outcome.left_out for outcome in outcomes) else len(job.items))
            written = job.write(spool)
    if written is None:
        first = failures[0] if failures else Failure(str(output), "there is nothing to read")
        raise AudioError(
            f"none of {len(job.items):,} {job.plural} could be read; the first: {first.file}: {first.reason}",
            advice=first.advice,
        )
    spool.remove()
    if failures or failures_file.exists():
        with writing(failures_file):
            write_failures(failures_file, failures)
    return Finished(outcomes, failures, failures_file if failures else None, written)


def failures_of(outcomes: Iterable[Outcome]) -> list[Failure]:
    """Recordings that could not be read, or not to their end."""
    return [outcome.failure for outcome in outcomes if outcome.failure is not None]


def closing_lines(failures: Sequence[Failure], failures_file: Path | None, written: Sequence[Path]) -> list[str]:
    """The last lines of a summary: what could not be read, and where the output is."""
    lines: list[str] = []
    if failures:
        lines.append(f"{counted(len(failures), 'file')} could not be read, or not to their end: {failures_file}")
    return [*lines, *(f"written: {path}" for path in written)]


@dataclass(frozen=True)
class Window:
    """A piece of a recording.

    Attributes:
        start: Its first sample in the recording.
        samples: Its sound, float32; shorter than the window where the recording ends.
    """

    start: int
    samples: NDArray[np.float32]

    @property
    def end(self) -> int:
        """The sample after its last one, where the recording really ends for the last window."""
        return self.start + len(self.samples)


def windows(blocks: Iterable[NDArray[np.float32]], *, length: int, hop: int, shortest: int = 1) -> Iterator[Window]:
    """Cuts blocks of any sizes into windows.

    Every sample is in some window. Where the recording does not end with a window, one more that starts in step
    reaches to its end and is shorter.

    Args:
        blocks: Consecutive samples, float32 [samples] each.
        length: Samples of a window.
        hop: Samples from the start of one window to that of the next, at most `length`.
        shortest: A remainder of fewer samples is left out, unless it is the whole recording.

    Yields:
        Windows in order, holding copies of the samples.
    """
    buffer = np.empty(0, np.float32)
    start = 0
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        offset = 0
        while offset + length <= len(buffer):
            yield Window(start + offset, buffer[offset : offset + length].copy())
            offset += hop
        buffer, start = buffer[offset:], start + offset
    # What is held begins with `length - hop` samples that the window before had, except at the very beginning.
    fresh = len(buffer) if start == 0 else len(buffer) - (length - hop)
    if len(buffer) and fresh > 0 and (start == 0 or len(buffer) >= shortest):
        yield Window(start, buffer.copy())


_BLOCK = 10.0  # seconds decoded at a time


@dataclass(frozen=True)
class Cut:
    """How recordings are cut.

    Attributes:
        rate: Samples a second.
        length: Samples of a window.
        hop: Samples from one window to the next.
        shortest: Fewest samples that can be analysed.
    """

    rate: int
    length: int
    hop: int
    shortest: int


class Rows(NamedTuple):
    """The rows computed for a batch of windows.

    Attributes:
        window: To which of the windows each row belongs, in order, [rows].
        columns: Values by column of the spool's schema, [rows] each.
    """

    window: NDArray[np.integer[Any]]
    columns: Mapping[str, NDArray[Any]]


def cut_for(
    description: ModelDescription, *, window: float | None = None, hop: float | None = None, batch_size: int = 1
) -> Cut:
    """How recordings are cut for a model.

    Args:
        description: The model.
        window: Seconds of a window; None is what it was trained on.
        hop: Seconds from one window to the next; None is the window.
        batch_size: Windows that are computed at once.

    Raises:
        SettingsError: A window is shorter than a frame, windows would leave gaps, or a batch of them is larger than
            this machine's memory.
    """
    features = description.features
    rate, shortest = features.sample_rate, features.samples_of(1)
    learned = features.samples_of(description.encoder.frames)
    length = learned if window is None else round(window * rate)
    step = length if hop is None else round(hop * rate)
    if length < shortest:
        raise SettingsError(
            f"window is {window:g} s, shorter than one frame of {shortest / rate:g} s",
            advice=f"The model was trained on {learned / rate:.3g} s.",
        )
    if not 1 <= step <= length:
        raise SettingsError(
            f"hop is {hop:g} s, but a window is {length / rate:.4g} s: there would be gaps between windows",
            advice=f"Set hop to at most {length / rate:.4g}.",
        )
    size, room = 4 * batch_size * features.frames_of(length) * features.mel_bins, memory()  # float32
    if room is not None and size > room:
        raise SettingsError(
            f"{counted(batch_size, 'window')} of {length / rate:,.6g} s are spectrograms of {size / 1e9:,.3g} GB, more "
            "than this machine's memory",
            advice="Set a shorter window or a smaller batch_size; a recording has as many windows as it needs.",
        )
    return Cut(rate, length, step, shortest)


def walk(
    recordings: Sequence[Recording],
    spool: Spool,
    cut: Cut,
    compute: Callable[[Sequence[Window]], Rows],
    *,
    batch_size: int,
    progress: Progress,
) -> None:
    """Computes rows for all windows of recordings and spools them, with the outcome of each recording.

    Args:
        recordings: The recordings to read.
        spool: The spool for the rows.
        cut: How recordings are cut.
        compute: From windows to rows.
        batch_size: Windows that are computed at once.
        progress: Advances by each recording.
    """
    batch: list[Window | Outcome] = []
    count = 0
    for event in _events(recordings, cut, progress):
        batch.append(event)
        count += isinstance(event, Window)
        if count == batch_size:
            _spool(batch, spool, compute)
            batch, count = [], 0
    _spool(batch, spool, compute)


def _events(recordings: Sequence[Recording], cut: Cut, progress: Progress) -> Iterator[Window | Outcome]:
    """Yields the windows of each recording and after them its outcome."""
    before = 0.0
    for recording in recordings:
        reached, count = 0, 0
        stamp = recording.stamp()
        failure = None
        try:
            for window in _windows(recording, cut):
                reached, count = window.end, count + 1
                yield window
                progress.advance(0, note=f"{duration(before + reached / cut.rate)} of sound")
        except AudioError as error:
            failure = Failure.of(error, recording.path)
        if failure is not None and reached:
            until = f"{failure.reason} (read up to {reached / cut.rate:.2f} s)"
            failure = Failure(failure.file, until, failure.advice)
        began = recorded_at(recording.path)
        yield Outcome(
            file=str(recording.path),
            place=recording.place,
            stamp=stamp,
            seconds=reached / cut.rate,
            windows=count,
            began=None if began is None else began.isoformat(),
            reason=None if failure is None else failure.reason,
            advice="" if failure is None else failure.advice,
        )
        before += reached / cut.rate
        progress.advance(failed=int(failure is not None))


def _windows(recording: Recording, cut: Cut) -> Iterator[Window]:
    blocks = stream(recording.path, sample_rate=cut.rate, block=_BLOCK)
    for window in windows(blocks, length=cut.length, hop=cut.hop, shortest=cut.shortest):
        if len(window.samples) < cut.shortest:
            raise problem("too short", f"{len(window.samples) / cut.rate:.4g} s, less than one frame", recording.path)
        yield window


def _spool(batch: Sequence[Window | Outcome], spool: Spool, compute: Callable[[Sequence[Window]], Rows]) -> None:
    """Computes the windows of a batch and spools their rows, each recording's before its outcome."""
    pieces = [event for event in batch if isinstance(event, Window)]
    rows = compute(pieces) if pieces else None
    first = behind = 0
    for place, event in enumerate(batch):
        last = place == len(batch) - 1
        behind += isinstance(event, Window)
        if behind > first and rows is not None and (last or isinstance(event, Outcome)):
            start, stop = np.searchsorted(rows.window, (first, behind))
            if stop > start:
                spool.add({name: values[start:stop] for name, values in rows.columns.items()})
            first = behind
        if isinstance(event, Outcome):
            spool.end(event)
