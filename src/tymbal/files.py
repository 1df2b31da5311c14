"""Files appear whole or not at all: written aside, synced to the disk, renamed into place.

A process that is killed in the middle leaves the old file, or none, and a `*.partial` beside it that the next writer
replaces. The rename is atomic because the partial file lies in the folder of the final one. A writer holds a lock on
its partial file: where two write the same file at once, the second one takes another name, and the last rename decides.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import inspect
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tymbal.errors import SettingsError, TymbalError, what_to_do

if sys.platform != "win32":
    import fcntl

__all__ = [
    "CHECKSUM",
    "DAMAGED",
    "PARTIAL",
    "address",
    "checksum_of",
    "disk_errors",
    "locked",
    "parse_json",
    "partial_file",
    "read_json",
    "replace_file",
    "replace_folder",
    "set_aside",
    "sole_writer",
    "sync_folder",
    "verified",
    "with_checksum",
    "write_json",
    "write_text",
    "writing",
    "written_alone",
]

Given = ParamSpec("Given")
Result = TypeVar("Result")

PARTIAL = ".partial"

DAMAGED = ".damaged"
"""What the name of a file that was set aside ends in."""

CHECKSUM = "checksum"
"""The name under which JSON files carry a checksum of their other values."""

_MANY = 1000
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h


_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")  # of two letters at least: a drive has one


def address(path: str | os.PathLike[str]) -> str | None:
    """The address elsewhere that a path stands for, as `s3://bucket/store`; None where it is a path of this machine.

    `Path` makes one slash of two; that of an address is taken for what it was.
    """
    found = _ADDRESS.fullmatch(os.fspath(path))
    return None if found is None else f"{found[1].lower()}://{found[2].rstrip('/')}"


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to; on success the file written becomes `path`, on error nothing changes."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(final) as aside:
        yield aside
        _sync_file(aside)
        aside.replace(final)
        sync_folder(final.parent)


@contextlib.contextmanager
def partial_file(final: Path) -> Iterator[Path]:
    """Yields a path beside `final` that no other process writes to; what is not renamed is deleted at the end."""
    with disk_errors(final), _claimed(final, folder=False) as aside:
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it becomes `path` and replaces the old one as a whole.

    A folder cannot be renamed over another one that has content. Linux exchanges the two in one step; elsewhere the
    old one is moved aside first and put back if the new one does not follow, so that `path` is absent for an instant.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(f"{final.name}.old{PARTIAL}")
    if old.is_dir() and not final.exists():
        old.rename(final)  # a kill came between the two renames
    with disk_errors(final), _claimed(final, folder=True) as aside:
        try:
            yield aside
            _sync_tree(aside)
            _put(aside, final, old)
            sync_folder(final.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, final: Path, old: Path) -> None:
    """Renames a folder to its final name; an old one then lies at `aside`, or is deleted."""
    if not final.exists():
        aside.rename(final)
    elif not final.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
    elif not _exchange(aside, final):
        shutil.rmtree(old, ignore_errors=True)
        try:
            final.rename(old)
            aside.rename(final)
        finally:
            if not final.exists() and old.exists():
                old.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where the system or its disk cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


@contextlib.contextmanager
def _claimed(final: Path, *, folder: bool) -> Iterator[Path]:
    """Yields an empty file or folder beside `final` for this writer alone: NAME.partial, unless another holds it."""
    plain = final.with_name(final.name + PARTIAL)
    try:
        handle = _hold(plain, folder=folder)
    except BlockingIOError:
        handle = None
    aside = plain if handle is not None else final.with_name(f"{final.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        if folder and handle is not None:
            for entry in aside.iterdir():  # what a kill has left
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        elif folder:
            aside.mkdir()
        yield aside
    finally:
        if handle is not None:
            os.close(handle)


def _hold(path: Path, *, folder: bool = False) -> int | None:
    """Creates a file or folder and locks it; gives an open file descriptor, or None where there are no such locks.

    Raises:
        BlockingIOError: Another process holds it.
    """
    if sys.platform == "win32":
        return None
    while True:
        if folder:
            with contextlib.suppress(FileExistsError):
                path.mkdir()
        flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT
        handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = _is_open(path, handle)
            if held and not folder:
                os.ftruncate(handle, 0)
        except OSError as error:
            os.close(handle)
            if error.errno in (*_NO_LOCKS, errno.EBADF):  # NFS locks no folder that is open for reading
                return None
            raise
        if held:
            return handle
        os.close(handle)  # renamed or deleted by its holder in between


def _is_open(path: Path, handle: int) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replace_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON, whole or not at all. Non-finite numbers are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: It is none, or nested too deeply, or no text.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON, or nested too deeply.
    """
    return parse_json(path.read_bytes())


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a checksum of values to them, by which `verified` notices any change."""
    plain = {name: value for name, value in values.items() if name != CHECKSUM}
    return {**plain, CHECKSUM: checksum_of(plain)}


def verified(values: Any) -> dict[str, Any]:
    """Values by name without their checksum, after a look at it; those of earlier versions have none.

    Raises:
        ValueError: They are others than when the checksum was made, or no values by name.
    """
    if not isinstance(values, dict):
        raise ValueError("it holds no values by name")  # noqa: TRY004 - what is wrong is a file
    plain = {name: value for name, value in values.items() if name != CHECKSUM}
    if CHECKSUM in values and values[CHECKSUM] != checksum_of(plain):
        raise ValueError("it is not what was written: its checksum differs")
    return plain


def checksum_of(value: Any) -> str:
    """Hash of a value as JSON, whatever the order of its names: blake2b, 16 hexadecimal digits.

    Raises:
        ValueError: It is nested too deeply.
    """
    try:
        text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def set_aside(path: Path) -> Path:
    """Renames what is damaged, so that it can be looked at and is in nobody's way; gives its new path."""
    new = path.with_name(path.name + DAMAGED)
    path.replace(new)
    return new


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names a file where errors of the system do not, as those of a full disk; torch's and safetensors' become such.

    Raises:
        OSError: What was raised within it, with a file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise
    except _library_errors() as error:
        number = _error_number(str(error))
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _library_errors() -> tuple[type[Exception], ...]:
    safetensors = sys.modules.get("safetensors")
    return (RuntimeError,) if safetensors is None else (RuntimeError, safetensors.SafetensorError)


_OF_TORCH = re.compile("inline_container|PytorchStreamWriter|unable to (open|mmap) file")


def _error_number(message: str) -> int | None:
    """The system's number of what Rust or torch say of a file; None where they say something else."""
    of_rust = re.search(r"\(os error (\d+)\)", message)
    if of_rust is not None:
        return int(of_rust[1])
    if _OF_TORCH.search(message) is None:
        return None
    named = [number for number in errno.errorcode if os.strerror(number) in message]
    # Where a write has failed, torch only says that its place in the file is not the expected one.
    return max(named, key=lambda number: len(os.strerror(number)), default=errno.EIO)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Makes renames inside a folder durable.

    A no-op on Windows, where folders cannot be opened, and in folders that may be written to and not read.
    """
    if os.name == "nt":
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    inside = list(folder.rglob("*"))
    if len(inside) > _MANY and hasattr(os, "sync"):
        os.sync()  # one by one, a hundred thousand files take minutes
        return
    for path in inside:
        if path.is_file():
            _sync_file(path)
        else:
            sync_folder(path)
    sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(folder: Path, busy: TymbalError, *, part: str | None = None) -> Iterator[None]:
    """Holds a lock file in a folder; the system releases it when the process ends, however it ends.

    Args:
        folder: The folder; created if missing.
        busy: The error to raise if another process holds the lock.
        part: The part of the work to lock, where processes do several parts at once; None locks the whole folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock_file(folder / ("lock" if part is None else f"lock-{part.replace('/', '-')}"), busy):
        yield


@contextlib.contextmanager
def _lock_file(path: Path, busy: TymbalError) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # A soft lock would outlive a process that is killed.
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise busy from None
    except OSError as error:
        # Some cluster file systems have no locks: then two at once are the user's to avoid.
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def sole_writer(output: str | os.PathLike[str]) -> Iterator[None]:
    """Makes this process the only writer of a file, or of a folder and all in it.

    The lock lies beside the output, as `.NAME.lock`, as long as it is held. Where nothing may be written beside a
    folder it lies inside. Within it, errors of the system are errors about the output, see `writing`.

    Raises:
        SettingsError: Another process is writing the output, or it cannot be written.
    """
    if address(output) is not None:
        raise SettingsError(
            "is no path of this machine, and only `tymbal prepare` writes elsewhere",
            path=address(output),
            advice="Name a folder or file here, and copy it when it is done.",
        )
    final = Path(output).absolute()
    busy = SettingsError(
        "another process is writing this output",
        path=output,
        advice="Wait until it is done, or choose another output.",
    )
    with writing(Path(output)), contextlib.ExitStack() as stack:
        final.parent.mkdir(parents=True, exist_ok=True)
        places = [final.with_name(f".{final.name}.lock"), *([final / ".lock"] if final.is_dir() else [])]
        for place in places:
            try:
                if sys.platform == "win32":
                    stack.enter_context(_lock_file(place, busy))
                else:
                    _hold_until(stack, place)
                break
            except BlockingIOError:
                raise busy from None
            except OSError as error:
                # What may not be written is reported when something is to be written.
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
        yield


def _hold_until(stack: contextlib.ExitStack, path: Path) -> None:
    handle = _hold(path)
    if handle is not None:
        stack.callback(os.close, handle)
    stack.callback(path.unlink, missing_ok=True)


def written_alone(verb: Callable[Given, Result]) -> Callable[Given, Result]:
    """Makes a verb the only writer of its argument `output`, if it is given one; of several processes the first."""
    signature = inspect.signature(verb)

    @functools.wraps(verb)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        output = given.arguments["output"]
        if output is None or os.environ.get("RANK", "0") != "0":
            return verb(*args, **kwargs)
        with sole_writer(output):
            return verb(*args, **kwargs)

    return alone


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """Makes errors of the system errors about the output; what cannot be read has an error of its own by then.

    Raises:
        SettingsError: The output cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library, which says something else with it
            raise
        place = (
            output if error.filename is None or isinstance(error.filename, int) else Path(os.fsdecode(error.filename))
        )
        ours = place.absolute().is_relative_to(output.absolute().parent)
        raise SettingsError(
            f"cannot be {'written' if ours else 'read or written'}: {error.strerror or error}",
            path=place,
            advice=f"{what_to_do(error)} What was done stays.",
        ) from error
