"""The shards of a plan as tasks, and the processes or the Dask cluster that work on them, and may die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from tymbal.errors import SettingsError, StoreError
from tymbal.machine import cores, tune_malloc
from tymbal.preparation.build import Built, Task, build_shard
from tymbal.preparation.build_views import ViewTask, build_views
from tymbal.preparation.plan import Plan, Window
from tymbal.settings import PrepareSettings
from tymbal.stopping import shielded, survive_in_worker
from tymbal.store.packed.format import WORK
from tymbal.store.pairs.pair_files import split_folder

__all__ = ["Build", "TaskPool", "bytes_of", "bytes_present", "dask_executor", "make_tasks", "preview_task"]

Build = Callable[[Any], Built]

_ENDING = re.compile(r"\.\w{2,5}(?=#|$)")

_SHOWN, _VERSIONS_SHOWN, _STRATEGIES_SHOWN = 6, 3, 6

_PT_OVERHEAD = 2600  # bytes of a .pt file beside its values, its entry in the metadata among them


def make_tasks(store: Path, plan: Plan, settings: PrepareSettings) -> tuple[Build, list[Task]]:
    """Tasks for the shards of a plan, or of the part that `settings.part` selects.

    Args:
        store: The output.
        plan: The plan.
        settings: The settings of the preparation.

    Returns:
        The function that builds a task, and the tasks by number.
    """
    common: dict[str, Any] = {
        "store": str(store),
        "work": str(store / WORK),
        "features": settings.features(),
        "frames": plan.frames,
        "silence_db": settings.silence_db,
        "min_seconds": settings.min_seconds,
    }
    numbered = list(enumerate(plan.shards()))
    if not settings.views:
        return build_shard, [Task(number=number, windows=windows, **common) for number, windows in numbered]
    # Whoever prepares no views is spared torch.
    from tymbal.store.pt.pt_writer import unique_stems
    from tymbal.views.augmentation_config import chosen_augmentation

    stems: dict[str, str] = {}
    if settings.write == "pt":
        # A file that gives one clip only needs no seconds in its name.
        count = Counter(window.file for window in plan.windows)
        named = [{"file": window.file, "id": _named(window, count[window.file] == 1)} for window in plan.windows]
        names = unique_stems(named)
        stems = dict(zip((window.id for window in plan.windows), names, strict=True))
    augmentations = chosen_augmentation(settings)
    samples = round(plan.seconds * settings.sample_rate)
    tasks = [
        ViewTask(
            number=number,
            windows=windows,
            samples=samples,
            versions=1 if settings.write == "waveforms" else settings.views,
            waveforms=settings.write == "waveforms",
            augmentations=augmentations,
            mode=settings.view_mode,
            seed=settings.seed,
            stems=tuple(stems[window.id] for window in windows) if stems else (),
            **common,
        )
        for number, windows in numbered
    ]
    return build_views, [task for task in tasks if _in_part(task, settings.part)]


def preview_task(store: Path, plan: Plan, settings: PrepareSettings) -> ViewTask:
    """Some windows of a plan, spread over all, in some versions, or one of each strategy; in none without views."""
    from tymbal.views.augmentation_config import chosen_augmentation

    count = min(len(plan.windows), _SHOWN)
    windows = tuple(plan.windows[place * len(plan.windows) // count] for place in range(count))
    few = replace(plan, windows=windows, by_split=False, shard_rows=count)
    versions = max(_VERSIONS_SHOWN, min(len(chosen_augmentation(settings).strategies), _STRATEGIES_SHOWN))
    shown = replace(settings, part=None, write="store", views=max(min(settings.views, versions), 1))
    _, tasks = make_tasks(store, few, shown)
    task = cast(ViewTask, tasks[0])
    return task if settings.views else replace(task, versions=0)


def bytes_of(task: Task) -> int:
    """Bytes that a task will write."""
    values = task.frames * task.features.mel_bins
    if not isinstance(task, ViewTask):
        return len(task.windows) * values * 2
    if task.waveforms:
        return len(task.windows) * task.samples * 2
    rows = len(task.windows) * task.versions
    return rows * (8 * values + _PT_OVERHEAD if task.stems else 4 * values)


def bytes_present(store: Path, tasks: Iterable[Task]) -> int:
    """Bytes of those `.pt` files of tasks that exist already: they are replaced one by one."""
    stems = {stem for task in tasks if isinstance(task, ViewTask) for stem in task.stems}
    folders = [folder for folder in store.iterdir() if folder.is_dir()] if stems and store.is_dir() else []
    files = (file for folder in folders for file in os.scandir(folder) if file.name.endswith(".pt"))
    return sum(file.stat().st_size for file in files if file.name.rpartition("_v")[0] in stems)


def _named(window: Window, is_only: bool) -> str:
    """The id of a clip without the ending of its file, and without its seconds where it is the only one of the file."""
    name = window.id.rpartition("#")[0] if is_only and not window.whole else window.id
    return _ENDING.sub("", name)


def _in_part(task: Task, part: str | None) -> bool:
    if part is None:
        return True
    if part in ("train", "val"):
        return split_folder(task.windows[0].split) == part
    own, parts = (int(number) for number in part.split("/"))
    return task.number % parts == own - 1


Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3


class TaskPool:
    """Runs tasks in an executor that was given, in a pool of processes of its own, or in this process.

    Args:
        executor: A given executor, or None.
        workers: Processes of an own pool; None is one a core, 1 is this process.
    """

    def __init__(self, executor: Executor | None, workers: int | None) -> None:
        self._executor = executor
        self._workers = workers or cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[[Item], Result], tasks: Iterable[Item], *, parallel: bool) -> Iterator[Result]:
        """Yields results as they are ready, in any order.

        Args:
            function: The function to run for each task; defined in a module, so that it can be pickled.
            tasks: The tasks.
            parallel: Whether a pool of processes is worth its start. A given executor is used in any case.

        Raises:
            BrokenProcessPool: A process died.
        """
        if self._executor is not None:
            # The number of machines behind the executor is unknown: submit all tasks at once.
            yield from _completed(self._executor, function, tasks, ahead=None)
        elif parallel and self._workers > 1:
            yield from _completed(self._own_pool(), function, tasks, ahead=_AHEAD * self._workers)
        else:
            yield from map(function, tasks)

    def _own_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            if os.name == "posix":
                # Python starts this helper with its first worker; a signal that all processes of a job get kills it.
                with shielded():
                    resource_tracker.ensure_running()
            # Spawned, never forked: a fork inherits locks of threads that it does not have.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start_worker)
        return self._pool


def _completed(
    executor: Executor, function: Callable[[Item], Result], tasks: Iterable[Item], *, ahead: int | None
) -> Iterator[Result]:
    pending: set[Future[Any]] = set()
    try:
        for task in tasks:
            pending.add(executor.submit(function, task))
            if ahead is not None and len(pending) >= ahead:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        for future in pending:
            future.cancel()


def _start_worker() -> None:
    # Ctrl-C reaches every process of a terminal; the parent decides, and waits for what is being written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    survive_in_worker()
    tune_malloc()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    """A pool's process whose parent was killed would wait for work forever: it holds both ends of its own pipe."""
    wait_for([sentinel])
    os._exit(1)


_SECONDS = 30
_RETRIES = 3


@contextlib.contextmanager
def dask_executor(scheduler: str | None) -> Iterator[Executor]:
    """Yields an executor whose tasks run on a cluster; those of a worker that dies are given to another one.

    Args:
        scheduler: Address of its scheduler, as in `tcp://node7:8786`, or the file that it writes.

    Raises:
        SettingsError: Dask is not installed, or there is no scheduler at this address.
        StoreError: Workers died again and again.
    """
    if scheduler is None:
        raise SettingsError(
            "executor is dask, but there is no scheduler", advice="Give its address: --scheduler tcp://HOST:8786"
        )
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise SettingsError(
            "executor is dask, which is not installed", advice="Install it: pip install 'tymbal[dask]'"
        ) from None
    where: dict[str, Any] = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client: Any = Client(timeout=_SECONDS, set_as_default=False, **where)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"there is no Dask scheduler at {scheduler}: {error}", advice="Start one: dask scheduler; dask worker …"
        ) from error
    try:
        with client:
            yield client.get_executor(pure=False, retries=_RETRIES)
    except KilledWorker as error:
        raise StoreError(
            "workers of the cluster have died, one after the other; what they had finished stays",
            advice="Run the same command again: it continues. If they die again, give them more memory, or a file "
            "crashes its decoder.",
        ) from error
