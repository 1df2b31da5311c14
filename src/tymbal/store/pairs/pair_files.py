"""Pairs of views in a `.pt` file each, with a metadata.json: the layout that people have.

    folder/
      train/NAME_v0.pt     {"view1", "view2", "audio_name", "version", "original_path"}, views float32 [1, mels, frames]
      val/NAME_v0.pt
      metadata.json        {"train": [{"file", "audio_name", "version", "shape"}, …], "val": […], "config": {…}}

Of a part of the work, train or val alone, metadata_train.json or metadata_val.json tell instead. `file` is the path
as it was when the folder was written; where that is gone, the file is looked for beside its metadata. Beside these keys
`metadata.json` carries, under `tymbal`, what a packed store knows, so that the way back loses nothing.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tymbal.errors import StoreError
from tymbal.files import partial_file, read_json, write_text
from tymbal.store.packed.format import REPAIR, DamagedStoreError
from tymbal.store.packed.writer import Entry

__all__ = [
    "GENERATED",
    "METADATA",
    "PART_METADATA",
    "FileFacts",
    "entry_of",
    "file_facts",
    "metadata_files",
    "read_metadata",
    "resolve_file",
    "split_folder",
    "write_metadata",
    "write_pair",
]

METADATA = "metadata.json"

GENERATED = "data/augmented_spectrograms"
"""The default folder of pairs of views."""

_PART = "metadata_{}.json"
_SPLITS = ("train", "val")

PART_METADATA = tuple(_PART.format(split) for split in _SPLITS)
"""Metadata of a split alone."""


def split_folder(split: str | None) -> str:
    """The folder of a split: `val` for validation, `train` for None."""
    return {None: "train", "validation": "val"}.get(split, split or "train")


def write_pair(
    folder: Path, pair: npt.NDArray[np.floating[Any]], *, stem: str, version: int, split: str | None, source: str
) -> Path:
    """Writes one file, whole or not at all.

    Args:
        folder: The layout's folder.
        pair: Both views, log-mel [2, frames, mels].
        stem: The clip's name, which no other has.
        version: The clip's version.
        split: The clip's split.
        source: Its sound file.

    Returns:
        The file.
    """
    import torch

    path = folder / split_folder(split) / f"{stem}_v{version}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    first, second = (torch.from_numpy(np.ascontiguousarray(view.T, np.float32))[None] for view in pair)
    content = {"view1": first, "view2": second, "audio_name": stem, "version": version, "original_path": source}
    # torch's own writer of files does not say why it fails.
    data = io.BytesIO()
    torch.save(content, data)
    with partial_file(path) as aside:
        aside.write_bytes(data.getbuffer())
        aside.replace(path)
    return path


class FileFacts(NamedTuple):
    """What the metadata say of a file.

    Attributes:
        name: Its path within the folder, with slashes.
        size: Its bytes; None in metadata of earlier versions.
        crc: CRC-32 of its bytes; None in metadata of earlier versions.
    """

    name: str
    size: int | None
    crc: int | None


def file_facts(entry: Mapping[str, Any]) -> FileFacts:
    """The facts in an entry of the metadata."""
    ours = entry.get("tymbal", {})
    name = "/".join(str(entry["file"]).replace("\\", "/").split("/")[-2:])
    return FileFacts(name, ours.get("bytes"), ours.get("crc"))


def entry_of(folder: str, file: FileFacts, entry: Entry, *, frames: int, mels: int) -> dict[str, Any]:
    """The entry of a file in the metadata.

    Args:
        folder: The layout's folder, as the user named it.
        file: The file.
        entry: The index entry of the pair.
        frames: Frames of a view.
        mels: Its mel bins.
    """
    return {
        "file": f"{Path(folder).as_posix()}/{file.name}",
        "audio_name": Path(file.name).stem.rpartition("_v")[0],
        "version": entry.version,
        "shape": [1, mels, frames],
        "tymbal": {
            **{name: value for name, value in asdict(entry).items() if name not in ("version", "frames")},
            "bytes": file.size,
            "crc": file.crc,
        },
    }


def write_metadata(
    folder: Path,
    entries: Iterable[tuple[str | None, dict[str, Any]]],
    extras: Mapping[str, Any],
    *,
    part: str | None = None,
) -> Path:
    """Writes metadata.json, or that of a split alone.

    Args:
        folder: The layout's folder.
        entries: The split and what `entry_of` gives of each file.
        extras: `config` and `tymbal`.
        part: `train` or `val`, if only that was written.

    Returns:
        The file.
    """
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in ((part,) if part else _SPLITS)}
    for split, entry in entries:
        lists.setdefault(split_folder(split), []).append(entry)
    lines = [
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in of_split) + "\n]"
        for name, of_split in lists.items()
    ]
    lines += [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in extras.items()]
    path = folder / (_PART.format(part) if part else METADATA)
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def metadata_files(path: str | os.PathLike[str]) -> list[Path]:
    """The metadata files of a folder, or the given file itself; empty for another kind of folder or file."""
    place = Path(path)
    if place.is_file():
        return [place] if place.suffix == ".json" and place.stem.startswith("metadata") else []
    if (place / METADATA).is_file():
        return [place / METADATA]
    return [file for part in PART_METADATA if (file := place / part).is_file()]


def read_metadata(path: str | os.PathLike[str]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Reads metadata.

    Args:
        path: The folder, or the file.

    Returns:
        Entries by split, and everything else that they say.

    Raises:
        StoreError: There are none, or they are damaged.
    """
    files = metadata_files(path)
    if not files:
        raise StoreError(f"has no {METADATA}", path=path, advice="Make pairs of views with `tymbal prepare --views`.")
    lists: dict[str, list[dict[str, Any]]] = {}
    extras: dict[str, Any] = {}
    for file in files:
        try:
            value = read_json(file)
            for name, item in value.items():
                if isinstance(item, list):
                    lists[name] = [_checked(entry) for entry in item]
                else:
                    extras[name] = item
        except OSError as error:
            raise StoreError(f"cannot be read: {error.strerror or error}", path=file) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise DamagedStoreError(f"is damaged: {error}", path=file, advice=REPAIR) from error
    return lists, extras


def _checked(entry: Any) -> dict[str, Any]:
    """An entry of the right types.

    Raises:
        TypeError: It is something else.
        ValueError: As `TypeError`.
    """
    given = dict(entry)
    shape, ours = given.get("shape", ()), given.get("tymbal", {})
    if not isinstance(given["file"], str) or "\0" in given["file"]:
        raise TypeError("an entry's file is no path")
    if not isinstance(shape, Sequence) or not all(isinstance(each, int) and 0 < each < 1 << 24 for each in shape):
        raise TypeError(f"the shape {shape!r} of {given['file']} is none")
    if not isinstance(ours, Mapping) or not isinstance(ours.get("labels", []), list):
        raise TypeError(f"the entry of {given['file']} is none")
    int(given.get("version", 0))
    return given


def resolve_file(file: str, roots: Sequence[Path]) -> Path:
    """Locates a file: at its own path or, after its folder has moved, under one of some folders."""
    path = Path(file)
    parts = file.replace("\\", "/").split("/")
    candidates = [path, *(root.joinpath(*parts[-2:]) for root in roots), *(root / parts[-1] for root in roots)]
    return next((candidate for candidate in candidates if candidate.is_file()), path)
