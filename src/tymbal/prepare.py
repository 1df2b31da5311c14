"""Sound files to a store of spectrograms, once: `tymbal prepare SOURCE -o STORE`.

The clips of a folder, a list or a manifest are cut into windows, the windows gathered into shards, and each shard is
built by one process, from decoding to disk. Nothing is decoded before: lengths come from headers, and what is wrong
with a file shows on its way into the store and is listed in `failures.csv`.

Whatever is killed, at any moment, the same command continues: finished shards stay, the rest is built. A record of the
plan lies in the folder `work` until the store is complete; settings or files that changed since are refused, not mixed
in.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tymbal.audio.failures import Failure, check_reachable
from tymbal.audio.findings import remarked
from tymbal.audio.manifest import Manifest
from tymbal.audio.sources import Listing, located, read_source
from tymbal.config import resolve, say_useless, to_keywords
from tymbal.errors import AudioError, SettingsError, StoreError, what_to_do
from tymbal.files import address, locked
from tymbal.preparation.build import Built, Task, read_sidecar
from tymbal.preparation.build_views import show_views
from tymbal.preparation.clips import BACKGROUND, Header, Listed, list_clips, read_headers, with_background
from tymbal.preparation.plan import LONGEST_WINDOW, Plan, make_plan
from tymbal.preparation.record import (
    FAILURES,
    Record,
    begun_digest,
    begun_source,
    check_output,
    check_same_plan,
    check_space,
    finish,
    is_complete,
    left_out_before,
    nothing_left,
    passed_over_settings,
    read_failures,
)
from tymbal.preparation.repair import repair, set_damaged_aside
from tymbal.preparation.task_pool import TaskPool, bytes_of, bytes_present, dask_executor, make_tasks, preview_task
from tymbal.progress import Progress, duration, tell
from tymbal.settings import (
    FeatureSettings,
    FinetuneSettings,
    PrepareSettings,
    PtSettings,
    SoundSettings,
    TrainingSettings,
    ViewPairSettings,
)
from tymbal.settings.fields import changed, recipe_defaults
from tymbal.store.packed.format import WORK
from tymbal.store.packed.mirror import refresh, url_of
from tymbal.store.packed.packed_store import Store, open_store
from tymbal.store.packed.remote_folder import Outgoing
from tymbal.store.pairs.pair_files import GENERATED, metadata_files, read_metadata

__all__ = ["PrepareResult", "prepare", "prepare_spectrograms", "prepare_waveforms"]

Result = TypeVar("Result")

_HEADERS_AT_ONCE = 64

_ANY_LEVEL = -10_000.0  # dB, which is 0: nothing is below it
_SPLIT_PARTS = ("train", "val")

_MANY_FILES = 512
_MUCH_SOUND = 600.0
"""Files, and seconds of sound, from which on a pool of processes is worth the seconds that it takes to start."""


@dataclass(frozen=True)
class PrepareResult:
    """The outcome of `prepare`.

    Attributes:
        path: The folder.
        failures: The files left out, and why.
        part: The part of the work that was done, or `preview`; None where the folder is complete.
    """

    path: Path
    failures: list[Failure]
    part: str | None = None

    @cached_property
    def store(self) -> Store:
        """The store, open.

        Raises:
            StoreError: It is not complete, or no packed store.
        """
        return open_store(self.path)

    def summary(self) -> str:
        """The result as a person reads it."""
        if self.part == "preview":
            return f"{self.path / 'index.html'}: some clips beside their views"
        if self.part is not None:
            return f"{self.path}: part {self.part} is done. The same command without it completes the folder."
        lines = self._files() if metadata_files(self.path) else self._shards()
        if self.failures:
            lines.append(f"{len(self.failures):,} files or parts of files were left out: {self.path / FAILURES}")
        return "\n".join(lines)

    def _shards(self) -> list[str]:
        store = self.store
        features = store.features or FeatureSettings()
        seconds = store.description.real_frames * features.shift_samples / features.sample_rate
        size = sum(shard.bytes for shard in store.description.shards) / 2**20
        if store.samples is not None:
            length = store.samples / features.sample_rate
            return [f"{store.location}: {len(store):,} waveforms of {length:g} s ({size:,.0f} MiB)"]
        what, content = "spectrograms", f"{duration(seconds)} of sound, {size:,.0f} MiB"
        if store.views > 1:
            what, content = "pairs of views", f"{size:,.0f} MiB"
        return [
            f"{store.location}: {len(store):,} {what} of {store.frames} frames x {store.mels} mel bins ({content})",
            f"mean {store.mean:.4f}, standard deviation {store.std:.4f}",
        ]

    def _files(self) -> list[str]:
        lists, metadata = read_metadata(self.path)
        counts = ", ".join(f"{len(files):,} {name}" for name, files in lists.items())
        return [
            f"{self.path}: pairs of views in .pt files: {counts} ({metadata['config']['num_versions']} versions a clip)"
        ]


def prepare(
    source: str | os.PathLike[str] | Manifest | Listing,
    output: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    executor: Executor | str | None = None,
    **settings: Any,
) -> PrepareResult:
    """Turns sound files into a store of spectrograms. Run again after a stop, it continues.

    Args:
        source: A folder, a list or a manifest (CSV, Parquet, JSON), one sound file, a data set on the Hub
            (`hf://datasets/owner/name@revision/config:split`), a `Manifest`, or what `read_source` gives.
        output: Folder of the store, or an address elsewhere (`s3://bucket/folder`), to which it is written when it is
            finished here. With views it may be left out: data/augmented_spectrograms.
        config: A YAML file with settings; those given here override it.
        executor: Where shards are built: the setting `processes` or `dask`, or an executor, which has to see `source`
            and `output` under the same paths. None is a pool of processes on this machine.
        **settings: See `tymbal.settings.PrepareSettings`.

    Raises:
        SettingsError: A setting is unknown or wrong.
        ManifestError: The source cannot be read or contradicts itself.
        AudioError: Not one file can be used.
        StoreError: The output holds something else, was begun with other settings or files, or is being prepared by
            another process; or a process died.
    """
    if isinstance(executor, str):
        settings, executor = {**settings, "executor": executor}, None
    chosen = resolve(PrepareSettings, settings, config=config)
    if output is None:
        output = _default_output(chosen)
    url = address(output)
    if url is not None:
        return _prepare_elsewhere(source, url, chosen, executor)
    return _prepare_here(source, output, chosen, executor)


def _prepare_elsewhere(
    source: str | os.PathLike[str] | Manifest | Listing, url: str, settings: PrepareSettings, executor: Executor | None
) -> PrepareResult:
    """Prepares in the cache and writes what is finished to an address; a store that is there is looked at only."""
    useless = {
        "part": settings.part,
        "preview": settings.preview,
        "write=pt": settings.views and settings.write == "pt",
    }
    for name, given in useless.items():
        if given:
            raise SettingsError(
                f"{name} writes to a folder of this machine, not to {url}",
                advice="Name a folder here. Elsewhere a store is packed, and written when it is finished.",
            )
    outgoing = Outgoing(url)
    if outgoing.is_finished():
        return _prepare_here(source, refresh(url), settings, executor)
    with outgoing.claimed() as folder:
        result = _prepare_here(source, folder, settings, executor)
        outgoing.publish()
    return PrepareResult(refresh(url), result.failures)


def _prepare_here(
    source: str | os.PathLike[str] | Manifest | Listing,
    output: str | os.PathLike[str],
    chosen: PrepareSettings,
    executor: Executor | None,
) -> PrepareResult:
    """Prepares into a folder; see `prepare`."""
    store = Path(output).absolute()
    if not chosen.preview:
        set_damaged_aside(store)
        check_output(store, chosen)
    if chosen.views and not is_complete(store):
        _check_augmentations(chosen)
    source = located(source, begun_source(store), columns=chosen.their_columns)
    say_useless(chosen)
    with contextlib.ExitStack() as stack:
        if chosen.executor == "dask" and executor is None:
            executor = stack.enter_context(dask_executor(chosen.scheduler))
        crew = stack.enter_context(TaskPool(executor, chosen.workers))
        listed = _listed(source, chosen, crew, store)
        if listed is None:
            return PrepareResult(Path(output), read_failures(store))
        plan = make_plan(listed.clips, listed.lengths, chosen)
        if chosen.preview:
            return _preview(store, plan, chosen)
        plan = _as_begun(store, plan, listed, chosen)
        record = Record.of(source, chosen, listed, plan)
        if not plan.windows:  # an empty plan is not begun: files may be mended
            raise nothing_left(listed.failures, record.source)
        check_same_plan(store, record)
        built: list[Built] = []
        if is_complete(store):
            tell(f"{url_of(store) or store} is complete already")
            build, tasks = make_tasks(store, plan, chosen)
            with _writing(store):  # elsewhere, nothing is mended: rows are compared when they are read
                repair(store, build, tasks if url_of(store) is None else [], lambda *some: _mended(crew, store, *some))
        else:
            with _writing(store), _alone(store, chosen.part):
                record.write(store)
                built = _build(crew, store, plan, chosen)
                _tell_remarks(built)
                if chosen.part is None or (chosen.part in _SPLIT_PARTS and chosen.write == "pt"):
                    finish(
                        store,
                        built,
                        named=os.fspath(output),
                        unopened=[*listed.failures, *listed.added],
                        plan=plan,
                        record=record,
                        settings=chosen,
                    )
    if chosen.part is not None:
        failures = [failure for one in built for failure in one.failures]
        return PrepareResult(Path(output), failures, chosen.part)
    # Not before the lock is open: Windows deletes no file that is in use.
    shutil.rmtree(store / WORK, ignore_errors=True)
    return PrepareResult(Path(output), read_failures(store))


def _listed(
    source: str | os.PathLike[str] | Manifest | Listing, settings: PrepareSettings, crew: TaskPool, store: Path
) -> Listed | None:
    """The clips of a source; None where a store is complete that an earlier version made of it.

    Raises:
        SettingsError: A setting does not fit the source.
    """
    begun = None if settings.preview or is_complete(store) else Record.read(store)
    unopened, added = ([], []) if settings.preview else left_out_before(store, begun)
    try:
        listed = list_clips(
            source,
            settings,
            lambda files: _headers(crew, files),
            unopened=unopened,
            planned=None if begun is None else begun.files,
            added={failure.file for failure in added},
        )
    except SettingsError:
        if settings.preview or not passed_over_settings(store):
            raise
        tell(f"{store} is complete already")  # an earlier version passed over such settings
        return None
    for note in listed.notes:
        tell(note, warning=True)
    return listed


def _as_begun(store: Path, plan: Plan, listed: Listed, settings: PrepareSettings) -> Plan:
    """The plan, or that of an earlier version by which a folder of views was begun or finished."""
    if not settings.views or begun_digest(store) in (None, plan.digest()):
        return plan
    return make_plan(listed.clips, listed.lengths, settings, coarse=True)


def _tell_remarks(built: Sequence[Built]) -> None:
    remarks: dict[str, list[str]] = {}
    for remark, file in dict.fromkeys(pair for shard in built for pair in shard.remarks):
        remarks.setdefault(remark, []).append(file)
    for note in remarked(remarks):
        tell(note, warning=True)


def prepare_spectrograms(path: Path, run: Path, features: FeatureSettings, settings: PtSettings) -> Store:
    """Prepares spectrograms of sound into `run/store`.

    Args:
        path: The sound: a folder, a list or manifest, or one file.
        run: The run folder. What was left out is also named in its `failures.csv`.
        features: How spectrograms are made, where the settings do not say.
        settings: How clips are cut, labelled and split.
    """
    keywords = to_keywords(features)
    if settings.mel_bins is not None:
        keywords["mel_bins"] = settings.mel_bins
    cut = settings.frames is None
    if isinstance(settings, SoundSettings):
        if settings.sample_rate is not None:
            keywords["sample_rate"] = settings.sample_rate
        keywords |= {"window": settings.window, "group_pattern": settings.group_pattern, "split": settings.split}
        if settings.silence == "keep":
            keywords["silence_db"] = _ANY_LEVEL
        # A length in frames alone crops, as SSAST does. The recipes are for clips, and lose nothing of longer files.
        cut = cut or settings.window is not None or "window" in recipe_defaults(settings)
    every = settings.every if isinstance(settings, TrainingSettings) else 1
    if every > 1:
        tell(f"Of every class and split one clip in {every} is prepared")
    sound: Path | Listing = path
    keep_repeats = isinstance(settings, SoundSettings) and settings.repeats == "keep"
    if settings.data_val is not None:
        validation = Path(settings.data_val)
        sound = _with_validation(path, validation, settings.label_separator, keep_repeats=keep_repeats)
    elif keep_repeats and not path.is_dir():
        sound = read_source(path, label_separator=settings.label_separator, keep_repeats=True)
    label_csv = settings.label_csv
    if isinstance(settings, FinetuneSettings) and settings.background is not None:
        sound, label_csv, cut = with_background(sound, Path(settings.background), settings), None, True
        if settings.window is None and settings.frames is None:
            keywords["window"] = _longest_clip(sound)
    prepared = prepare(
        sound,
        run / "store",
        label_csv=label_csv,
        label_separator=settings.label_separator,
        validation=settings.validation,
        frames=settings.frames,
        longer="windows" if cut else "crop-start",
        every=every,
        **keywords,
    )
    if prepared.failures:
        count = len(prepared.failures)
        tell(f"{count:,} files or parts of files were left out: {run / FAILURES} says why", warning=True)
    if "window" in recipe_defaults(settings):
        _tell_of_windows(prepared.store)
    return _with_failures(prepared, run)


def _tell_of_windows(store: Store) -> None:
    """Says how many files became several clips, where the recipe's origin has the first of each alone."""
    longer = sum(count > 1 for count in Counter(store.index["file"].to_pylist()).values())
    if longer:
        tell(
            f"{longer:,} files are longer than a clip and become several windows; the notebooks of this recipe take "
            "the beginning of each file only, as tymbal prepare --longer crop-start does"
        )


def _longest_clip(listing: Listing) -> float | None:
    """Seconds of the longest clip that is no background, as prepared without one; None where none can be opened."""
    clips = [clip for clip in listing.clips if clip.labels != (BACKGROUND,)]
    headers = read_headers(list(dict.fromkeys(clip.file for clip in clips)))
    lengths = {header.file: header.seconds for header in headers if isinstance(header, Header)}
    ends = [lengths[clip.file] if clip.end is None else clip.end for clip in clips if clip.file in lengths]
    starts = [clip.start for clip in clips if clip.file in lengths]
    longest = max((end - start for start, end in zip(starts, ends, strict=True)), default=None)
    return None if longest is None else min(longest, LONGEST_WINDOW)


def prepare_waveforms(path: Path, run: Path, settings: ViewPairSettings) -> Store:
    """Prepares waveforms of sound into `run/store`, to make fresh views of.

    Args:
        path: The sound: a folder, a list or manifest, or one file.
        run: The run folder. What was left out is also named in its `failures.csv`.
        settings: Which views, and how many of the clips.
    """
    names = ("window", "sample_rate", "group_pattern", "split", "validation", "label_csv", "label_separator", "frames")
    given = {name: getattr(settings, name) for name in (*names, "mel_bins") if name in changed(settings)}
    if settings.silence == "keep":
        given["silence_db"] = _ANY_LEVEL
    prepared = prepare(
        path,
        run / "store",
        views=1,
        write="waveforms",
        augmentations=settings.augmentations,
        every=settings.every,
        **given,
    )
    return _with_failures(prepared, run)


def _with_failures(prepared: PrepareResult, run: Path) -> Store:
    shutil.copyfile(prepared.path / FAILURES, run / FAILURES)
    return prepared.store


def _with_validation(train: Path, validation: Path, label_separator: str | None, *, keep_repeats: bool) -> Listing:
    """Joins two lists of sound files in one, as train and validation."""
    parts = {
        split: read_source(path, label_separator=label_separator, keep_repeats=keep_repeats)
        for split, path in (("train", train), ("validation", validation))
    }
    clips = [
        replace(clip, split=split, id=f"{split}/{clip.id}") for split, part in parts.items() for clip in part.clips
    ]
    return Listing(
        clips,
        train.absolute().parent,
        any(part.labelled for part in parts.values()),
        [note for part in parts.values() for note in part.notes],
        [failure for part in parts.values() for failure in part.failures],
    )


def _check_augmentations(settings: PrepareSettings) -> None:
    """Finds mistakes before anything is read or written.

    Raises:
        SettingsError: Something in the file is wrong, or its folder of backgrounds holds none.
    """
    # Whoever prepares no views is spared torch.
    from tymbal.views.augmentation_config import chosen_augmentation

    background = chosen_augmentation(settings).waveform.background
    if background is not None:
        from tymbal.views.overlays import background_files

        background_files(background.folder)


def _preview(store: Path, plan: Plan, settings: PrepareSettings) -> PrepareResult:
    folder = store.with_name(f"{store.name}-preview")
    with _writing(folder):
        failures = show_views(preview_task(store, plan, settings), folder)
    if not folder.is_dir():
        raise AudioError("not one of the clips to be shown can be used", path=failures[0].file)
    return PrepareResult(folder, list(failures), "preview")


def _default_output(settings: PrepareSettings) -> str:
    if not settings.views:
        raise SettingsError("output is missing", advice="Name the folder of the store.")
    return GENERATED


def _busy(store: Path) -> StoreError:
    return StoreError(
        "another process is preparing this store",
        path=store,
        advice="Wait until it is done, or choose another output folder.",
    )


def _headers(crew: TaskPool, files: Sequence[str]) -> Iterator[Header | Failure]:
    groups = [files[i : i + _HEADERS_AT_ONCE] for i in range(0, len(files), _HEADERS_AT_ONCE)]
    with Progress(len(files), "Looking at headers", unit="files") as progress:
        for headers in _alive(crew.run(read_headers, groups, parallel=len(files) > _MANY_FILES)):
            yield from headers
            progress.advance(len(headers), failed=sum(isinstance(header, Failure) for header in headers))


def _build(crew: TaskPool, store: Path, plan: Plan, settings: PrepareSettings) -> list[Built]:
    """Builds the missing shards and returns the outcome of all, in order."""
    build, tasks = make_tasks(store, plan, settings)
    built = {task.number: _done(store, task.number) for task in tasks}
    done = sum(shard.windows for shard in built.values() if shard is not None)
    total = sum(len(task.windows) for task in tasks)
    tasks = [task for task in tasks if built[task.number] is None]
    if settings.views:
        needed = sum(map(bytes_of, tasks)) - bytes_present(store, tasks)
        check_space(store, max(needed, 0), force=settings.force)
    sound = (total - done) * plan.seconds * max(settings.views, 1)
    with Progress(total, "Preparing", unit="clips", done=done) as progress:
        for shard in _alive(crew.run(build, tasks, parallel=sound > _MUCH_SOUND and len(tasks) > 1)):
            built[shard.number] = shard
            versions = max(settings.views, 1) if settings.write != "waveforms" else 1
            progress.advance(shard.windows, failed=shard.windows - len(shard.entries) // versions)
    finished = [shard for shard in built.values() if shard is not None]
    away = {failure.file: failure for shard in finished for failure in shard.failures if failure.is_away}
    check_reachable(list(away.values()), len(plan.files()), force=settings.force)
    return finished


def _mended(crew: TaskPool, store: Path, build: Callable[[Task], Built], tasks: Sequence[Task]) -> Iterator[Built]:
    """Builds tasks of a finished folder anew, which this process has for itself meanwhile."""
    with _alone(store, None), Progress(sum(len(task.windows) for task in tasks), "Repairing", unit="clips") as progress:
        for built in _alive(crew.run(build, tasks, parallel=len(tasks) > 1)):
            progress.advance(built.windows)
            yield built


def _done(store: Path, number: int) -> Built | None:
    """The outcome of a shard; None where it is yet to be built, or files that were away can be reached again."""
    built = read_sidecar(store, store / WORK, number)
    if built is None or any(failure.is_away and os.access(failure.file, os.R_OK) for failure in built.failures):
        return None
    return built


@contextlib.contextmanager
def _alone(store: Path, part: str | None) -> Iterator[None]:
    """Locks a part of the work, or all of it and every part."""
    work = store / WORK
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(work, _busy(store), part=part))
        for other in sorted(work.glob("lock-*")) if part is None else ():
            stack.enter_context(locked(work, _busy(store), part=other.name.removeprefix("lock-")))
        yield


@contextlib.contextmanager
def _writing(store: Path) -> Iterator[None]:
    """Raises an `OSError` as an error of the store: unreadable sound is an `AudioError` by then."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot be written: {error.strerror or error}",
            path=error.filename or store,
            advice=what_to_do(error),
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
