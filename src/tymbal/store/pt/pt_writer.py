"""Spectrograms of a store as SSAST's users have them: a `.pt` file each, and a JSON list for each split.

    folder/
      train.json       {"data": [{"wav", "labels"}], …}; `wav` gives the stem
      train/STEM.pt    float16 tensor [real frames, mel bins]: padding is left to the reader
      labels.csv       index,mid,display_name, if the store has labels

The lists carry what SSAST does not look at beside it (ids, times, groups; statistics and features of the store), so
that the way back gives the same store.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tymbal.files import disk_errors, replace_folder, write_text
from tymbal.progress import Progress
from tymbal.store.base import SpectrogramSource
from tymbal.store.pt.pt_list import HEADER, UNSPLIT, Header, stem_of

__all__ = ["unique_stems", "write_pt"]

_LABELS = "labels.csv"
_BATCH = 64
_LONGEST_NAME = 150


def write_pt(folder: str | os.PathLike[str], store: SpectrogramSource) -> None:
    """Writes all spectrograms of a store, as a whole or not at all.

    Args:
        folder: The folder to write; an existing one is replaced.
        store: The store.

    Raises:
        StoreError: A spectrogram cannot be read.
    """
    mids = _mids(store.labels)
    header = Header(
        features=store.features,
        frames=store.frames,
        mels=store.mels,
        mean=store.mean,
        std=store.std,
        padding=store.padding,
        label_csv=_LABELS if mids else None,
        layout="frames-mels",
    )
    recorded = {name: value for name, value in asdict(header).items() if value is not None}
    with replace_folder(folder) as aside, Progress(len(store), "Writing .pt files", unit="files") as progress:
        for name, rows in _lists(store).items():
            (aside / name).mkdir()
            entries = store.index.take(rows).to_pylist()
            stems = unique_stems(entries)
            data = [_entry(entry, stem, mids) for entry, stem in zip(entries, stems, strict=True)]
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                store.announce(rows[start + _BATCH : start + 2 * _BATCH])
                reals = store.real_frames[part].tolist()
                for values, real, stem in zip(store.gather(part), reals, stems[start : start + _BATCH], strict=True):
                    # A copy of its own: torch saves the whole memory that a tensor is a view of.
                    with disk_errors(aside / name / f"{stem}.pt"):
                        torch.save(torch.from_numpy(values[:real]).clone(), aside / name / f"{stem}.pt")
                progress.advance(len(part))
            _write_list(aside / f"{name}.json", recorded, data)
        if mids:
            _write_labels(aside / _LABELS, mids)


def _lists(store: SpectrogramSource) -> dict[str, np.ndarray[Any, Any]]:
    """Rows by the name of the list that they go to: that of their split."""
    splits = np.array([split or stem_of(UNSPLIT) for split in store.index["split"].to_pylist()])
    return {str(name): np.flatnonzero(splits == name) for name in dict.fromkeys(splits.tolist())}


def unique_stems(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each file that no other has, also where case does not count: the sound file's, if that will do."""
    plain = [stem_of(entry["file"]) for entry in entries]
    count = Counter(stem.lower() for stem in plain)
    used: set[str] = {stem.lower() for stem in plain if count[stem.lower()] == 1}
    stems = []
    for entry, stem in zip(entries, plain, strict=True):
        if count[stem.lower()] == 1:
            stems.append(stem)
            continue
        name = next(name for name in _alternatives(entry["id"]) if name.lower() not in used)
        used.add(name.lower())
        stems.append(name)
    return stems


def _alternatives(name: str) -> Iterator[str]:
    """Names for a file that stand for the id of a clip."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "clip"
    if len(plain) > _LONGEST_NAME:
        plain = f"{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}_{plain[-_LONGEST_NAME:]}"
    yield plain
    number = 2
    while True:
        yield f"{plain}_{number}"
        number += 1


def _entry(entry: Mapping[str, Any], stem: str, mids: Mapping[str, str]) -> dict[str, Any]:
    """An entry of a list, with the keys of SSAST first."""
    file = entry["file"]
    if stem_of(file) != stem:
        cut = max(file.rfind("/"), file.rfind("\\")) + 1
        file = f"{file[:cut]}{stem}{os.path.splitext(file)[1] or '.wav'}"  # noqa: PTH122 - it may be of another system
    more = {"id": entry["id"], "start": entry["start"] or None, "end": entry["end"], "group": entry["group"]}
    if file != entry["file"]:
        more["source"] = entry["file"]
    labels = {"labels": ",".join(mids[label] for label in entry["labels"])} if entry["labels"] else {}
    return {"wav": file, **labels, **{key: value for key, value in more.items() if value is not None}}


def _mids(labels: Sequence[str]) -> dict[str, str]:
    """Maps labels to the ids that stand for them in lists, which separate labels by commas."""
    safe = {label for label in labels if "," not in label}
    mids: dict[str, str] = {}
    for index, label in enumerate(labels):
        other = f"label{index}"
        while other in safe:
            other += "_"
        mids[label] = label if label in safe else other
    return mids


def _write_list(path: Path, recorded: Mapping[str, Any], data: Sequence[Mapping[str, Any]]) -> None:
    """An entry a line, so that a person can look at it."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in data)
    head = json.dumps(recorded, ensure_ascii=False, allow_nan=False)
    write_text(path, f'{{"{HEADER}": {head},\n"data": [\n{lines}\n]}}\n')


def _write_labels(path: Path, mids: Mapping[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("index", "mid", "display_name"))
        writer.writerows((index, mid, label) for index, (label, mid) in enumerate(mids.items()))
