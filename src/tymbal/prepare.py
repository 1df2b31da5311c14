"""Sound files to a store of spectrograms, once: `tymbal prepare SOURCE -o STORE`.

The clips of a folder, a list or a manifest are cut into windows, the windows gathered into shards, and each shard is
built by one process, from decoding to disk. Nothing is decoded before: lengths come from headers, and what is wrong
with a file is found on its way into the store and named in `failures.csv`.

Whatever is killed, at any moment, the same command continues: finished shards stay, the rest is built. A record of the
plan lies in the folder `work` until the store is complete; settings or files that changed since are refused, not mixed
in.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from tymbal.audio.failures import Failure, write_failures
from tymbal.audio.manifest import Manifest
from tymbal.config import resolve
from tymbal.errors import AudioError, StoreError
from tymbal.features.statistics import Moments
from tymbal.preparation.build import Built, Task, build_shard, read_sidecar
from tymbal.preparation.clips import list_clips
from tymbal.preparation.headers import Header, read_headers
from tymbal.preparation.lock import locked
from tymbal.preparation.plan import Plan, make_plan
from tymbal.preparation.record import FAILURES, Record, check_output, read_failures, refuse_changes
from tymbal.preparation.workers import Crew
from tymbal.progress import Progress, duration, tell
from tymbal.settings import FeatureSettings, PrepareSettings
from tymbal.store.format import DESCRIPTION, WORK
from tymbal.store.store import Store
from tymbal.store.writer import finish_store

__all__ = ["PrepareResult", "prepare"]

Result = TypeVar("Result")

_HEADERS_AT_ONCE = 64

_MANY_FILES = 512
_MUCH_SOUND = 600.0
"""Files, and seconds of sound, from which on a pool of processes is worth the seconds that it takes to start."""


@dataclass(frozen=True)
class PrepareResult:
    """What was prepared.

    Attributes:
        store: The store, open.
        failures: What was left out, and why.
    """

    store: Store
    failures: list[Failure]

    def summary(self) -> str:
        """The result as a person reads it."""
        store = self.store
        features = store.features or FeatureSettings()
        seconds = store.description.real_frames * features.shift_samples / features.sample_rate
        size = sum(shard.bytes for shard in store.description.shards) / 2**20
        lines = [
            f"{store.path}: {len(store):,} spectrograms of {store.frames} frames x {store.mels} mel bins "
            f"({duration(seconds)} of sound, {size:,.0f} MiB)",
            f"mean {store.mean:.4f}, standard deviation {store.std:.4f}",
        ]
        if self.failures:
            lines.append(f"{len(self.failures):,} files or parts of files were left out: {store.path / FAILURES}")
        return "\n".join(lines)


def prepare(
    source: str | os.PathLike[str] | Manifest,
    output: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    **settings: Any,
) -> PrepareResult:
    """Turns sound files into a store of spectrograms. Run again after a stop, it continues.

    Args:
        source: A folder, a list or a manifest (CSV, Parquet, JSON), one sound file, or a `Manifest`.
        output: Folder of the store.
        config: A YAML file with settings; those given here stand above it.
        executor: Where shards are built, for instance `dask.distributed.Client(…).get_executor()`; it has to see
            `source` and `output` under the same paths. None is a pool of processes on this machine.
        **settings: See `tymbal.settings.PrepareSettings`.

    Raises:
        SettingsError: A setting is unknown or wrong.
        ManifestError: The source cannot be read or contradicts itself.
        AudioError: Not one file can be used.
        StoreError: The output holds something else, was begun with other settings or files, or is being prepared by
            another process; or a process died.
    """
    chosen = resolve(PrepareSettings, settings, config=config)
    store = Path(output).absolute()
    check_output(store, chosen)
    with Crew(executor, chosen.workers) as crew:
        listed = list_clips(source, chosen, lambda files: _headers(crew, files))
        for note in listed.notes:
            tell(note, warning=True)
        plan = make_plan(listed.clips, listed.lengths, chosen)
        record = Record.of(source, chosen, listed, plan)
        refuse_changes(store, record)
        if (store / DESCRIPTION).is_file():
            tell(f"{store} is complete already")
        else:
            with _writing(store), locked(store / WORK):
                record.write(store)
                built = _build(crew, store, plan, chosen)
                _finish(store, built, listed.failures, plan, record)
    # Not before the lock is open: Windows deletes no file that is in use.
    shutil.rmtree(store / WORK, ignore_errors=True)
    return PrepareResult(Store.open(output), read_failures(store))


def _headers(crew: Crew, files: Sequence[str]) -> Iterator[Header | Failure]:
    groups = [files[i : i + _HEADERS_AT_ONCE] for i in range(0, len(files), _HEADERS_AT_ONCE)]
    with Progress(len(files), "Looking at headers", unit="files") as progress:
        for found in _alive(crew.run(read_headers, groups, parallel=len(files) > _MANY_FILES)):
            yield from found
            progress.advance(len(found), failed=sum(isinstance(header, Failure) for header in found))


def _build(crew: Crew, store: Path, plan: Plan, settings: PrepareSettings) -> list[Built]:
    """Builds the shards that are not there yet; what became of all of them, in order."""
    numbered = list(enumerate(plan.shards()))
    built = {number: read_sidecar(store, store / WORK, number) for number, _ in numbered}
    there = sum(one.windows for one in built.values() if one is not None)
    features = settings.features()
    tasks = [
        Task(
            store=str(store),
            work=str(store / WORK),
            number=number,
            windows=windows,
            features=features,
            frames=plan.frames,
            silence_db=settings.silence_db,
            min_seconds=settings.min_seconds,
        )
        for number, windows in numbered
        if built[number] is None
    ]
    sound = (len(plan.windows) - there) * plan.seconds
    with Progress(len(plan.windows), "Preparing", unit="clips", done=there) as progress:
        for one in _alive(crew.run(build_shard, tasks, parallel=sound > _MUCH_SOUND and len(tasks) > 1)):
            built[one.number] = one
            progress.advance(one.windows, failed=one.windows - len(one.entries))
    return [one for one in built.values() if one is not None]


def _finish(store: Path, built: Sequence[Built], unopened: Sequence[Failure], plan: Plan, record: Record) -> None:
    """Writes what makes the folder a store."""
    failures = list(dict.fromkeys([*unopened, *(failure for one in built for failure in one.failures)]))
    # Before the store is complete, so that no complete store lacks it.
    write_failures(store / FAILURES, failures)
    if not any(one.entries for one in built):
        raise _nothing_left(failures, record.source)
    finish_store(
        store,
        shards=[(one.shard, one.entries) for one in built],
        features=record.features(),
        frames=plan.frames,
        moments=reduce(Moments.merge, (one.moments for one in built)),
        settings=record.settings,
        provenance={"source": record.source, "plan": record.digest, "window_seconds": plan.seconds},
    )


@contextlib.contextmanager
def _writing(store: Path) -> Iterator[None]:
    """What cannot be read is an `AudioError` by now: other errors of the system are about the store."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot be written: {error.strerror or error}",
            path=error.filename or store,
            advice="Look at its permissions and at the free space of the disk. Then run the same command again: it "
            "continues.",
        ) from error


def _alive(results: Iterator[Result]) -> Iterator[Result]:
    try:
        yield from results
    except BrokenProcessPool:
        raise StoreError(
            "a process that prepares clips has died; what it had finished stays",
            advice="Run the same command again: it continues. If it dies again, memory ran out (set workers=1), or a "
            "file crashes its decoder. In a script, call prepare below `if __name__ == '__main__':`.",
        ) from None


def _nothing_left(failures: Sequence[Failure], source: str) -> AudioError:
    some = "".join(f"\n    {failure.file}: {failure.reason}" for failure in failures[:3])
    advice = failures[0].advice if failures else None
    return AudioError(f"not one of its clips can be used{some}", path=source, advice=advice)
