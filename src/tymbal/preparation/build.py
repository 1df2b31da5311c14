"""Builds one shard from sound files to disk: the unit of work of `tymbal prepare`, in any process.

A shard is done when its sidecar stands: what the index says of its rows, the moments of its values, what failed. The
sidecar is written after the shard, so whatever a kill leaves behind is either both or worth nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tymbal.audio.decode import read, stream
from tymbal.audio.failures import Failure, problem
from tymbal.audio.readers import CANCELLED, Waveform
from tymbal.errors import AudioError, StoreError
from tymbal.features.bank import filter_bank
from tymbal.features.normalisation import Moments
from tymbal.files import read_json, verified, with_checksum, write_text
from tymbal.preparation.plan import Window
from tymbal.progress import tell
from tymbal.settings import FeatureSettings
from tymbal.store.packed.format import Shard, check_file, check_shard, shard_name
from tymbal.store.packed.writer import Entry, ShardWriter, open_shard

__all__ = [
    "Built",
    "Task",
    "build_shard",
    "built_shard",
    "check_waveform",
    "check_whole",
    "cut",
    "one_thread",
    "read_sidecar",
    "write_sidecar",
]

_bank = lru_cache(maxsize=4)(filter_bank)

SILENT = "it is silent, and is kept"
"""A remark on a file of which silence is asked for."""

_SILENT = 2e-5  # from the lowest to the highest sample: what is silent where nothing else is asked for
_BLOCK = 30.0
_SKIP = 30.0


def cut(
    windows: Sequence[Window], *, sample_rate: int, samples: int, remarks: set[str] | None = None
) -> Iterator[Waveform]:
    """Yields one waveform a window.

    Args:
        windows: Windows of one file, ascending by start.
        sample_rate: Target rate in Hz.
        samples: Samples of a window; windows that the end of the file or clip cuts off are shorter.
        remarks: To be filled with what is unusual about the sound although nothing of it is lost.

    Raises:
        AudioError: The file cannot be used, or breaks off; the windows yielded before were good.
    """
    for run in _runs(windows, samples / sample_rate):
        yield from _cut_run(run, sample_rate, samples, remarks)


def _runs(windows: Sequence[Window], seconds: float) -> Iterator[list[Window]]:
    """Parts windows where so much lies between them that seeking costs less than decoding it."""
    run: list[Window] = []
    for window in windows:
        if run and window.start - (run[-1].start + seconds) > _SKIP:
            yield run
            run = []
        run.append(window)
    yield run


def _cut_run(windows: Sequence[Window], sample_rate: int, samples: int, remarks: set[str] | None) -> Iterator[Waveform]:
    begin = windows[0].start
    ends = [window.end for window in windows]
    end = None if None in ends else max(end for end in ends if end is not None)
    blocks: Iterable[Waveform]
    if windows[-1].start - begin + samples / sample_rate <= _BLOCK:
        blocks = [read(windows[0].file, sample_rate=sample_rate, start=begin, end=end, remarks=remarks)[0]]
    else:
        blocks = stream(windows[0].file, sample_rate=sample_rate, block=_BLOCK, start=begin, end=end, remarks=remarks)
    tape = _Tape(blocks)
    for window in windows:
        first = round((window.start - begin) * sample_rate)
        length = samples
        if window.end is not None:
            length = min(samples, math.ceil((window.end - window.start) * sample_rate - 1e-3))
        yield tape.part(first, first + length)


class _Tape:
    """A stream of consecutive blocks, buffered only from the last requested sample on."""

    def __init__(self, blocks: Iterable[Waveform]) -> None:
        self._blocks = iter(blocks)
        self._buffer: Waveform = np.empty(0, np.float32)
        self._first = 0

    def part(self, start: int, stop: int) -> Waveform:
        """Samples from `start` to before `stop`, fewer at the end; `start` never goes back."""
        while self._first + len(self._buffer) < stop:
            block = next(self._blocks, None)
            if block is None:
                break
            rest = self._buffer[max(start - self._first, 0) :]
            self._first += len(self._buffer) - len(rest)
            self._buffer = np.concatenate([rest, block]) if len(rest) else block
        return self._buffer[max(start - self._first, 0) : max(stop - self._first, 0)]


@dataclass(frozen=True)
class Task:
    """Everything that a process needs to build a shard.

    Attributes:
        store: The store's folder.
        work: The folder of sidecars.
        number: Number of the shard.
        windows: The windows to put into it.
        features: How to compute spectrograms.
        frames: Frames of a spectrogram.
        silence_db: A window whose peak is below this level, in dB of full scale, is silent.
        min_seconds: A window shorter than this is too short.
    """

    store: str
    work: str
    number: int
    windows: tuple[Window, ...]
    features: FeatureSettings
    frames: int
    silence_db: float
    min_seconds: float


@dataclass(frozen=True)
class Built:
    """The outcome of a task.

    Attributes:
        shard: The file; a shard without rows is not written.
        entries: The index entries of its rows.
        moments: Moments of the values of all real frames.
        failures: Windows and files that are not in it.
        windows: Number of windows of the task.
        number: Number of the shard.
        files: Names and bytes of the files that it wrote instead of a shard.
        checksums: CRC-32 of each row's bytes, or of each file's; none in sidecars of earlier versions.
        remarks: What is unusual about files although nothing of them is lost: remark and file.
    """

    shard: Shard
    entries: tuple[Entry, ...]
    moments: Moments
    failures: tuple[Failure, ...]
    windows: int
    number: int
    files: tuple[tuple[str, int], ...] = ()
    checksums: tuple[int, ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()


def build_shard(task: Task) -> Built:
    """Builds a shard and its sidecar, each whole or not at all."""
    path = Path(task.store) / shard_name(task.number)
    entries: list[Entry] = []
    failures: list[Failure] = []
    remarks: list[tuple[str, str]] = []
    with one_thread(), open_shard(path, frames=task.frames, mels=task.features.mel_bins) as writer:
        for file, windows in groupby(task.windows, key=lambda window: window.file):
            found = _append_file(writer, tuple(windows), task, entries, failures)
            remarks += [(remark, file) for remark in sorted(found)]
    built = replace(built_shard(task, path, writer, entries, failures), remarks=tuple(remarks))
    write_sidecar(task.work, built)
    return built


def built_shard(
    task: Task, path: Path, writer: ShardWriter, entries: Sequence[Entry], failures: Sequence[Failure]
) -> Built:
    """The outcome of a task whose shard is written; one without rows is deleted.

    Args:
        task: The task.
        path: The shard.
        writer: What wrote it.
        entries: The index entries of its rows.
        failures: What is not in it.
    """
    if not entries:
        path.unlink()
    return Built(
        Shard(shard_name(task.number), len(entries), path.stat().st_size if entries else 0),
        tuple(entries),
        writer.moments,
        tuple(failures),
        len(task.windows),
        task.number,
        checksums=tuple(writer.checksums),
    )


def write_sidecar(work: str | Path, built: Built) -> None:
    """Writes a shard's outcome as JSON; the sidecar's existence marks the shard as done."""
    value = {
        "shard": vars(built.shard),
        "entries": [vars(entry) for entry in built.entries],
        "moments": vars(built.moments),
        "failures": [vars(failure) for failure in built.failures],
        "windows": built.windows,
        "files": built.files,
        "checksums": built.checksums,
        "remarks": built.remarks,
    }
    write_text(_sidecar(work, built.number), json.dumps(with_checksum(value)))


def read_sidecar(store: Path, work: Path, number: int) -> Built | None:
    """The outcome of a shard, or None if it is yet to be built; what is damaged is named, and built again."""
    path = _sidecar(work, number)
    try:
        built = _built(verified(read_json(path)), number)
        check_whole(store, built)
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError, StoreError) as error:
        tell(f"Shard {number} is made again: {error}", warning=True)
        return None
    return built


def _built(value: Mapping[str, Any], number: int) -> Built:
    return Built(
        shard=Shard(**value["shard"]),
        entries=tuple(Entry(**{**entry, "labels": tuple(entry["labels"])}) for entry in value["entries"]),
        moments=Moments(**value["moments"]),
        failures=tuple(Failure(**failure) for failure in value["failures"]),
        windows=value["windows"],
        number=number,
        files=tuple((name, size) for name, size in value.get("files", ())),
        checksums=tuple(value.get("checksums", ())),
        remarks=tuple((remark, file) for remark, file in value.get("remarks", ())),
    )


def check_whole(store: Path, built: Built) -> None:
    """Reads what a task wrote, and compares it with its checksums, where there are any.

    Raises:
        StoreError: Something is missing or not what was written.
    """
    for place, (name, size) in enumerate(built.files):
        check_file(store / name, size, built.checksums[place] if built.checksums else None)
    if built.shard.rows and not built.files:
        check_shard(store / built.shard.file, built.shard, built.checksums)


def _sidecar(work: str | Path, number: int) -> Path:
    return Path(work) / f"{number:05d}.json"


def _append_file(
    writer: ShardWriter, windows: Sequence[Window], task: Task, entries: list[Entry], failures: list[Failure]
) -> set[str]:
    """Adds the windows of one file; what fails is named, and the rest goes on. Gives what is unusual about the rest."""
    # Whoever only hands out the work is spared the seconds that this import takes.
    import torch

    features = task.features
    samples = features.samples_of(task.frames)
    remarks: set[str] = set()
    waveforms = cut(windows, sample_rate=features.sample_rate, samples=samples, remarks=remarks)
    for window in windows:
        try:
            waveform = next(waveforms)
        except AudioError as error:
            # Nothing behind this place can be read either.
            failures.append(Failure.of(error, window.file))
            return remarks & {CANCELLED, SILENT}
        try:
            check_waveform(waveform, window, task)
        except AudioError as error:
            failures.append(Failure.of(error, window.file))
            continue
        # torch rounds to float16 ten times as fast as numpy.
        spectrogram = _bank(features)(torch.from_numpy(waveform)).half()
        frames = writer.append(spectrogram.numpy())
        seconds = len(waveform) / features.sample_rate
        entries.append(
            Entry(
                id=window.id,
                file=window.file,
                start=window.start,
                end=round(window.start + seconds, 6),
                frames=frames,
                labels=window.labels,
                group=window.group,
                split=window.split,
            )
        )
        if np.ptp(waveform) < _SILENT:
            remarks.add(SILENT)
    # What headers show was said when they were read.
    return remarks & {CANCELLED, SILENT}


def check_waveform(waveform: Waveform, window: Window, task: Task) -> None:
    """Refuses what is too short or silent.

    Raises:
        AudioError: It is.
    """
    seconds = len(waveform) / task.features.sample_rate
    where = "it" if window.whole else f"the part from {window.start:g} s on"
    features = task.features
    least = features.samples_of(1)
    shortest = max(task.min_seconds, least / features.sample_rate)
    if seconds < task.min_seconds or len(waveform) < least:
        raise problem("too short", f"{where} is {seconds:.3f} s long, less than {shortest:g} s", window.file)
    swing = float(np.ptp(waveform)) / 2
    if swing < 10 ** (task.silence_db / 20):
        level = "has no sound" if swing == 0 else f"has its peak at {20 * np.log10(swing):.0f} dB"
        raise problem("silent", f"{where} {level}", window.file)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Processes run side by side, one a core: more threads than that only get in each other's way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
