"""The shards of a plan as tasks: plain spectrograms or views, all of them or a part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tymbal.preparation.build import Built, Task, build_shard
from tymbal.preparation.plan import Plan, Window
from tymbal.preparation.views import ViewTask, build_views
from tymbal.settings import PrepareSettings
from tymbal.store.format import WORK
from tymbal.store.pair_files import split_folder

__all__ = ["Build", "bytes_of", "make_tasks", "preview_task"]

Build = Callable[[Any], Built]

_ENDING = re.compile(r"\.\w{2,5}(?=#|$)")

_SHOWN, _VERSIONS_SHOWN, _STRATEGIES_SHOWN = 6, 3, 6

_PT_OVERHEAD = 2600  # bytes of a .pt file beside its values, its entry in the metadata among them


def make_tasks(store: Path, plan: Plan, settings: PrepareSettings) -> tuple[Build, list[Task]]:
    """Tasks for the shards of a plan, or of the part of it that is wanted.

    Args:
        store: The output.
        plan: The plan.
        settings: What to do.

    Returns:
        What builds a task, and the tasks by number.
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
    from tymbal.store.pt_writer import unique_stems
    from tymbal.views.config import chosen_augmentation

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
    return build_views, [task for task in tasks if _wanted(task, settings.part)]


def preview_task(store: Path, plan: Plan, settings: PrepareSettings) -> ViewTask:
    """Some windows of a plan, spread over all, in some versions, or one of each strategy."""
    from tymbal.views.config import chosen_augmentation

    count = min(len(plan.windows), _SHOWN)
    windows = tuple(plan.windows[place * len(plan.windows) // count] for place in range(count))
    few = replace(plan, windows=windows, by_split=False, shard_rows=count)
    versions = max(_VERSIONS_SHOWN, min(len(chosen_augmentation(settings).strategies), _STRATEGIES_SHOWN))
    shown = replace(settings, part=None, write="store", views=min(settings.views, versions))
    _, tasks = make_tasks(store, few, shown)
    return cast(ViewTask, tasks[0])


def bytes_of(task: Task) -> int:
    """Bytes that a task will write."""
    values = task.frames * task.features.mel_bins
    if not isinstance(task, ViewTask):
        return len(task.windows) * values * 2
    if task.waveforms:
        return len(task.windows) * task.samples * 2
    rows = len(task.windows) * task.versions
    return rows * (8 * values + _PT_OVERHEAD if task.stems else 4 * values)


def _named(window: Window, is_only: bool) -> str:
    """The id of a clip without the ending of its file, and without its seconds where it is the only one of the file."""
    name = window.id.rpartition("#")[0] if is_only and not window.whole else window.id
    return _ENDING.sub("", name)


def _wanted(task: Task, part: str | None) -> bool:
    if part is None:
        return True
    if part in ("train", "val"):
        return split_folder(task.windows[0].split) == part
    own, parts = (int(number) for number in part.split("/"))
    return task.number % parts == own - 1
