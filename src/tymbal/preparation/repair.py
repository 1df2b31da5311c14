"""A finished preparation, looked at again: what is damaged is made anew, and nothing else.

The plan says which clips a shard holds, and checksums whether what is made anew is what was there: sound that has
changed since is an error. A description that is damaged is set aside, and all is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from tymbal.errors import StoreError
from tymbal.files import set_aside
from tymbal.preparation.build import Built, Task
from tymbal.preparation.build_views import ViewTask
from tymbal.progress import Progress, tell
from tymbal.store.packed.format import DESCRIPTION, DamagedStoreError, Description, check_file, check_shard, shard_name
from tymbal.store.packed.packed_store import read_index
from tymbal.store.pairs.pair_files import METADATA, FileFacts, file_facts, read_metadata

__all__ = ["repair", "set_damaged_aside"]

_LARGE = 4 << 30
"""Bytes of a store from which on only those files are read whole that are newer than its description."""


@dataclass(frozen=True)
class _Expected:
    """What is known of a file that is damaged; None or nothing is not known."""

    size: int | None
    checksums: tuple[int, ...]


def set_damaged_aside(store: Path) -> None:
    """Renames the description of a finished folder if it is damaged, so that all of it is made anew."""
    path = store / METADATA if (store / METADATA).is_file() else store / DESCRIPTION
    if not path.is_file():
        return
    try:
        if path.name == METADATA:
            read_metadata(store)
        else:
            read_index(store, Description.read(store))
    except DamagedStoreError as error:
        tell(f"{error.path} {error.what}: all of it is made anew; {set_aside(path)} is as it was", warning=True)


def repair(
    store: Path,
    build: Callable[[Any], Built],
    tasks: Sequence[Task],
    run: Callable[[Callable[[Any], Built], Sequence[Task]], Iterator[Built]],
) -> int:
    """Makes damaged shards, or `.pt` files, of a finished folder anew.

    Args:
        store: The folder.
        build: The function that builds a task.
        tasks: All tasks of the plan.
        run: Builds tasks.

    Returns:
        The shards or files that were made anew.

    Raises:
        StoreError: What was made anew is not what was there.
    """
    bad = _bad_files(store) if (store / METADATA).is_file() else _bad_shards(store)
    damaged = [part for task in tasks if (part := _part(task, bad)) is not None]
    if not damaged:
        return 0
    tell(f"Damaged files are made anew: {len(bad):,}, as {store / next(iter(bad))}", warning=True)
    for built in run(build, damaged):
        made: dict[str, tuple[int, tuple[int, ...]]]
        if built.files:
            made = {name: (size, (crc,)) for (name, size), crc in zip(built.files, built.checksums, strict=True)}
        else:
            made = {built.shard.file: (built.shard.bytes, built.checksums)}
        for name, (size, checksums) in made.items():
            expected = bad.get(name, _Expected(None, ()))
            if expected.size not in (None, size) or expected.checksums not in ((), checksums):
                raise StoreError(
                    "cannot be made as it was: the sound that it was made of has changed",
                    path=store / name,
                    advice="Put the sound back, or choose another output folder.",
                )
    return len(bad)


def _part(task: Task, bad: Mapping[str, _Expected]) -> Task | None:
    """A task of what is damaged, if anything in it is."""
    if not isinstance(task, ViewTask) or not task.stems:
        return task if shard_name(task.number) in bad else None
    stems = {PurePosixPath(name).stem.rpartition("_v")[0] for name in bad}
    only = tuple(stem for stem in task.stems if stem in stems)
    return replace(task, only=only) if only else None


def _bad_shards(store: Path) -> dict[str, _Expected]:
    """The shards that are missing or not what was written."""
    description = Description.read(store)
    _, known = read_index(store, description)
    first = accumulate((shard.rows for shard in description.shards), initial=0)
    reads = _reads(store / DESCRIPTION, sum(shard.bytes for shard in description.shards))
    bad: dict[str, _Expected] = {}
    with Progress(description.count, "Looking at shards", unit="clips") as progress:
        for shard, start in zip(description.shards, first, strict=False):
            checksums = () if known is None else tuple(known[start : start + shard.rows].tolist())
            path = store / shard.file
            try:
                check_shard(path, shard, checksums if reads(path) else ())
            except DamagedStoreError:
                bad[shard.file] = _Expected(shard.bytes, checksums)
            progress.advance(shard.rows)
    return bad


def _bad_files(store: Path) -> dict[str, _Expected]:
    """The `.pt` files that are missing or not what was written."""
    # Whoever prepares no views is spared torch.
    from tymbal.store.pairs.pair_store import load_pair

    lists, _ = read_metadata(store)
    facts: list[FileFacts] = [file_facts(entry) for of_split in lists.values() for entry in of_split]
    reads = _reads(store / METADATA, sum(each.size or 0 for each in facts))
    bad: dict[str, _Expected] = {}
    with Progress(len(facts), "Looking at files", unit="files") as progress:
        for each in facts:
            path = store / each.name
            try:
                check_file(path, each.size, each.crc if reads(path) else None)
                if each.size is None and reads(path):  # metadata of earlier versions
                    load_pair(path)
            except StoreError:
                bad[each.name] = _Expected(each.size, () if each.crc is None else (each.crc,))
            progress.advance()
    return bad


def _reads(description: Path, size: int) -> Callable[[Path], bool]:
    """Which files are read whole: all of a store that is not large, else those that are newer than its description."""
    written = description.stat().st_mtime_ns
    return lambda path: size <= _LARGE or (path.is_file() and path.stat().st_mtime_ns > written)
