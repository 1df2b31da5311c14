"""Packed stores elsewhere, read by ranges into a folder of the cache that fills with the rows that are asked for.

    s3://bucket/birds  ──►  $TYMBAL_CACHE/stores/s3/bucket/birds-1f0c…/
                              store.json, index.parquet, failures.csv    copied when it is opened
                              shards/00000.npy                           as long as the original, and empty

A row is there if its bytes have the checksum that the index tells; else it is fetched. So nothing records what has been
fetched, and neither a kill, nor a full disk, nor another process that fills or empties the same folder can make a wrong
row of it. Each row is compared whenever it is read. Rows of one batch are fetched together, neighbours in one range,
and batches that are announced while the ones before are worked on.

The cache is bounded (`TYMBAL_CACHE_GIB`, 20 by default): beyond, shards that were filled longest ago are emptied.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tymbal.errors import SettingsError, StoreError
from tymbal.files import read_json, replace_file, write_json
from tymbal.machine import cache_folder
from tymbal.progress import Progress, tell
from tymbal.store.packed.format import (
    DESCRIPTION,
    DTYPES,
    FAILURES,
    INDEX,
    NPY_HEADER,
    WAVEFORMS,
    DamagedStoreError,
    Description,
    Shard,
    write_header,
)
from tymbal.store.packed.remote_folder import RemoteFolder, place_of

if TYPE_CHECKING:
    from tymbal.store.packed.packed_store import Store

__all__ = ["AHEAD", "RemoteRows", "mirror", "refresh", "url_of"]

AHEAD = 4
"""Batches that are announced at once of a store elsewhere."""

_URL = "elsewhere.json"
_GAP = 1 << 20  # bytes between two rows that cost no more to fetch than another request
_RANGE = 8 << 20  # bytes of a request at most
_REQUESTS = 16  # at once
_TRIES = 3  # for a row whose bytes are not those that were written
_LOOK = 64 << 20  # bytes that are written between two looks at the size of the cache
_DEFAULT_GIB = 20.0


def mirror(url: str) -> Path:
    """The folder in the cache of a store elsewhere; the same address on another server has another."""
    return _mirrors() / place_of(url)


def _mirrors() -> Path:
    return cache_folder() / "stores"


def url_of(folder: Path) -> str | None:
    """The address whose rows fill a folder; None for every folder outside of the cache, whatever it says."""
    place = folder / _URL
    if not place.is_file() or not folder.absolute().is_relative_to(_mirrors().absolute()):
        return None
    return str(read_json(place)["url"])


def refresh(url: str) -> Path:
    """Makes the folder in the cache that of the store as it is now elsewhere; rows come when they are asked for.

    Raises:
        StoreError: There is none, it cannot be reached, is damaged, or was made by a version without checksums.
        SettingsError: It is no address, or its package is missing.
    """
    from filelock import FileLock

    remote, folder = RemoteFolder(url), mirror(url)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        for attempt in range(1, _TRIES + 1):
            described = _described(remote)
            try:
                if not _is_same(folder, described):
                    _renew(remote, folder, described)
                break
            except DamagedStoreError:  # on the way, or while it is being replaced
                if attempt == _TRIES:
                    raise
    return folder


def _described(remote: RemoteFolder) -> bytes:
    """The description of a store elsewhere, as it is there."""
    try:
        return remote.read(DESCRIPTION)
    except FileNotFoundError:
        raise StoreError(
            f"there is no store: it has no {DESCRIPTION}",
            path=remote.url,
            advice=f"Make one there: tymbal prepare SOUND -o {remote.url}. A preparation that was stopped continues.",
        ) from None


def _is_same(folder: Path, described: bytes) -> bool:
    """Whether a folder is that of this description, with all its files."""
    try:
        if (folder / DESCRIPTION).read_bytes() != described or not (folder / INDEX).is_file():
            return False
        shards = Description.read(folder).shards
        return all((folder / shard.file).stat().st_size == shard.bytes for shard in shards)
    except OSError:
        return False


def _renew(remote: RemoteFolder, folder: Path, described: bytes) -> None:
    """Fills a folder with description, index, and shards of holes; the description last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / DESCRIPTION).write_bytes(described)
    try:
        description = Description.read(folder)
    except StoreError as error:
        raise type(error)(error.what, path=f"{remote.url}/{DESCRIPTION}", advice=_ELSEWHERE) from None
    finally:
        (folder / DESCRIPTION).unlink()
    (folder / INDEX).write_bytes(_index(remote, description))
    with contextlib.suppress(FileNotFoundError):
        (folder / FAILURES).write_bytes(remote.read(FAILURES))
    for shard in description.shards:
        _empty(folder / shard.file, shard, description)
    write_json(folder / _URL, {"url": remote.url})
    with replace_file(folder / DESCRIPTION) as aside:
        aside.write_bytes(described)


def _index(remote: RemoteFolder, description: Description) -> bytes:
    """The index, as it was written.

    Raises:
        DamagedStoreError: It is missing or another one.
    """
    try:
        content = remote.read(INDEX)
    except FileNotFoundError:
        raise DamagedStoreError("is missing", path=f"{remote.url}/{INDEX}", advice=_ELSEWHERE) from None
    if description.index_crc not in (None, zlib.crc32(content)):
        what = "is not what was written: its checksum differs"
        raise DamagedStoreError(what, path=f"{remote.url}/{INDEX}", advice=_ELSEWHERE)
    return content


def _empty(path: Path, shard: Shard, description: Description) -> None:
    """Writes a shard without rows, in the place of one that others may have open: header and a hole."""
    shape: tuple[int, ...] = (description.frames, description.mels)
    if description.kind == WAVEFORMS:
        shape = (int(description.provenance["samples"]),)
    elif description.views > 1:
        shape = (description.views, *shape)
    dtype = np.dtype(DTYPES[description.kind])
    if shard.bytes != NPY_HEADER + shard.rows * math.prod(shape) * dtype.itemsize:
        raise DamagedStoreError(
            f"{shard.file} is said to have {shard.bytes} bytes", path=path.parent, advice=_ELSEWHERE
        )
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    with aside.open("wb") as file:
        write_header(file, (shard.rows, *shape), dtype)
        file.truncate(shard.bytes)
    aside.replace(path)


_ELSEWHERE = "Copy the store there again, or make it again with `tymbal prepare`."


class _Run(NamedTuple):
    """Rows of a shard that follow each other: its number, the first of them, and the one behind the last."""

    shard: int
    first: int
    stop: int


class RemoteRows:
    """The rows of a store elsewhere, which is open by its folder in the cache.

    Args:
        store: The store.
        url: Its address.

    Raises:
        StoreError: The store has no checksums.
    """

    def __init__(self, store: Store, url: str) -> None:
        if store.checksums is None:
            raise StoreError(
                "is of an earlier version and has no checksums, by which its rows are known",
                path=url,
                advice="Copy it to this machine, or make it again with `tymbal prepare`.",
            )
        self.url = url
        self._store = store
        self._crcs: list[int] = store.checksums.tolist()
        self._remote = RemoteFolder(url)
        self._size = math.prod(store.row_shape) * 2
        self._cache = _Cache(store.path, store.description, forget=store.forget_shard)
        self._coming: dict[int, Future[dict[int, memoryview]]] = {}
        self._announced: list[list[int]] = []
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    def announce(self, rows: list[int]) -> None:
        """Begins to fetch rows that come next, in the background, where they are not in the cache."""
        with self._lock:
            self._announced.append(rows)
            for row in self._announced.pop(0) if len(self._announced) > AHEAD + 1 else ():
                self._coming.pop(row, None)
            fresh = [row for row in dict.fromkeys(rows) if row not in self._coming and not self._is_held(row)]
            for run in self._runs(fresh):
                future = self._pool().submit(self._fetch, run)
                self._coming.update(dict.fromkeys(range(run.first, run.stop), future))

    def complete(self, rows: list[int], values: memoryview) -> None:
        """Puts in place the rows that the cache did not hold.

        Args:
            rows: Row numbers, [n].
            values: What the cache holds of them, bytes [n * row].

        Raises:
            StoreError: A row cannot be fetched, or is not what was written.
        """
        places: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            if zlib.crc32(values[number * self._size : (number + 1) * self._size]) != self._crcs[row]:
                places.setdefault(row, []).append(number)
        if not places:
            return
        with self._lock:
            futures = {row: self._coming.pop(row) for row in places if row in self._coming}
            asked = [row for row in places if row not in futures]
            for run in self._runs(asked):
                future = self._pool().submit(self._fetch, run)
                futures |= {row: future for row in range(run.first, run.stop) if row in places}
        for row, future in futures.items():
            fetched = future.result()[row]
            for number in places[row]:
                values[number * self._size : (number + 1) * self._size] = fetched

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="tymbal-remote")
        return self._threads

    def _is_held(self, row: int) -> bool:
        shard, within = self._store.place_of(row)
        buffer = bytearray(self._size)
        shard.read(within, memoryview(buffer))
        return zlib.crc32(buffer) == self._crcs[row]

    def _runs(self, rows: Sequence[int]) -> list[_Run]:
        """Ranges of rows that are fetched with one request each, whatever few rows lie between them included."""
        runs: list[_Run] = []
        for row in sorted(rows):
            number = self._store.shard_number(row)
            last = runs[-1] if runs else None
            if (
                last is not None
                and last.shard == number
                and (row - last.stop) * self._size <= _GAP
                and (row + 1 - last.first) * self._size <= _RANGE
            ):
                runs[-1] = last._replace(stop=row + 1)
            else:
                runs.append(_Run(number, row, row + 1))
        return runs

    def _fetch(self, run: _Run) -> dict[int, memoryview]:
        """Fetches rows, compares them with their checksums, and keeps them in the cache.

        Raises:
            DamagedStoreError: Rows are not what was written, however often they are fetched.
        """
        name = self._store.description.shards[run.shard].file
        offset = NPY_HEADER + (run.first - self._store.first_row(run.shard)) * self._size
        for _ in range(_TRIES):
            try:
                data = memoryview(self._remote.read(name, offset, offset + (run.stop - run.first) * self._size))
            except FileNotFoundError:
                raise DamagedStoreError("is missing", path=f"{self.url}/{name}", advice=_ELSEWHERE) from None
            rows = {run.first + i: data[i * self._size : (i + 1) * self._size] for i in range(run.stop - run.first)}
            altered = [row for row, values in rows.items() if zlib.crc32(values) != self._crcs[row]]
            if not altered:
                self._cache.keep(run.shard, offset, data)
                return rows
        raise DamagedStoreError(
            f"row {min(altered) - self._store.first_row(run.shard)} of the shard is not what was written: its checksum "
            "differs. Was the store replaced while it is read?",
            path=f"{self.url}/{name}",
            advice=f"Run the same command again if it was replaced. {_ELSEWHERE}",
        )

    def check_whole(self, progress: Progress | None) -> None:
        """Reads all rows, and compares them with their checksums.

        Raises:
            StoreError: A row cannot be fetched, or is not what was written.
        """
        step = max(1, (64 << 20) // self._size)
        for start in range(0, len(self._store), step):
            rows = range(start, min(start + step, len(self._store)))
            self._store.gather(np.array(rows))
            if progress is not None:
                progress.advance(len(rows))


class _Cache:
    """The files into which fetched rows are written, all of them together no larger than the bound.

    Args:
        folder: The store's folder in the cache.
        description: Its description.
        forget: Told the number of a shard whose file is another one now.
    """

    def __init__(self, folder: Path, description: Description, forget: Callable[[int], None]) -> None:
        self._folder = folder
        self._description = description
        self._forget = forget
        self._bound = _bound()
        self._since = _LOOK
        self._lock = threading.Lock()
        self._is_full = False
        self._inodes: dict[int, int] = {}

    def keep(self, shard: int, offset: int, data: memoryview) -> None:
        """Writes what was fetched of a shard; where the disk is full, nothing is kept."""
        path = self._folder / self._description.shards[shard].file
        try:
            self._write(path, shard, offset, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EROFS, errno.EACCES):
                raise
            with self._lock:
                told, self._is_full = self._is_full, True
            if not told:
                tell(f"{path.parent}: {error.strerror}: rows that are fetched are not kept", warning=True)
        with self._lock:
            self._since += len(data)
            if self._since >= min(_LOOK, self._bound // 8):
                self._since = 0
                self._shrink()

    def _write(self, path: Path, shard: int, offset: int, data: memoryview) -> None:
        with path.open("r+b", buffering=0) as file:
            inode = os.fstat(file.fileno()).st_ino
            if self._inodes.setdefault(shard, inode) != inode:  # it has been emptied
                self._inodes[shard] = inode
                self._forget(shard)
            file.seek(offset)
            file.write(data)

    def _shrink(self) -> None:
        """Empties shards that were filled longest ago, of all stores elsewhere, until there is room."""
        files = [(path, path.stat()) for path in _mirrors().glob("**/shards/*.npy")]
        held = sum(_allocated(stat) for _, stat in files)
        if held <= self._bound:
            return
        ours = {self._folder / shard.file: number for number, shard in enumerate(self._description.shards)}
        for path, stat in sorted(files, key=lambda each: each[1].st_mtime_ns):
            if held <= 0.8 * self._bound:
                break
            if _allocated(stat) and _emptied(path):
                held -= _allocated(stat)
                if path in ours:
                    self._forget(ours[path])


def _emptied(path: Path) -> bool:
    """Empties a shard in the cache; False where its store is being made anew and does not say what it is."""
    folder = path.parent.parent
    try:
        description = Description.read(folder)
    except StoreError:
        return False
    shard = next((each for each in description.shards if folder / each.file == path), None)
    if shard is not None:
        _empty(path, shard, description)
    return shard is not None


def _allocated(stat: os.stat_result) -> int:
    return int(getattr(stat, "st_blocks", stat.st_size // 512)) * 512


def _bound() -> int:
    """Bytes of rows that the cache may hold.

    Raises:
        SettingsError: TYMBAL_CACHE_GIB is no number above 0.
    """
    given = os.environ.get("TYMBAL_CACHE_GIB")
    try:
        size = _DEFAULT_GIB if given is None else float(given)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise SettingsError(f"TYMBAL_CACHE_GIB is {given!r}", advice="Give the GiB that the cache may hold, as 20.")
    return int(size * 2**30)
