"""What the trials of learning share: their data, their figures on the disk, and on what they were measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tymbal

__all__ = [
    "DATA",
    "Data",
    "Figures",
    "accuracies",
    "chosen_data",
    "keep_arguments",
    "machine",
    "prepared",
    "processor_seconds",
    "some_of",
]


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        title: Its name in the table.
        folder: Its folder below `--data`.
        prepare: Settings of `tymbal.prepare`.
    """

    title: str
    folder: str
    prepare: dict[str, Any]


DATA = {
    "esc10": Data(
        "ESC-10, fold 5",
        "esc10",
        {"window": 5.0, "frames": 512, "group_pattern": r"/(\d-\d+)-", "validation_pattern": r"/5-"},
    ),
    "digits": Data(
        "digits, theo and yweweler",
        "fsdd",
        {
            "window": 1.12,
            "frames": 112,
            "longer": "crop-start",
            "label_pattern": r"(\d)_[a-z]+_\d+\.wav",
            "group_pattern": r"_([a-z]+)_",
            "validation_pattern": r"_(theo|yweweler)_",
        },
    ),
}


class Figures:
    """The figures so far, one JSON object a line; a figure that is there is not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            # A line that a kill cut short is computed again.
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            self.rows = [json.loads(line) for line in lines if line.endswith("\n")]
            path.write_text("".join(line for line in lines if line.endswith("\n")), encoding="utf-8")

    def have(self, **key: Any) -> list[dict[str, Any]]:
        """Those that agree with the key."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def add(self, **row: Any) -> None:
        """Keeps one, on the disk too, and shows it."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['data']:>7} seed {row['seed']}  {row['cell']:<28} {row['accuracy']:6.1%}", file=sys.stderr)


def chosen_data(folder: Path, only: str | None) -> list[str]:
    """Names of the data sets that are wanted and there; says which are not."""
    names = [only] if only else list(DATA)
    missing = [name for name in names if not (folder / DATA[name].folder).is_dir()]
    if missing:
        print(f"skipped: no {', '.join(missing)} in {folder}", file=sys.stderr)
    return [name for name in names if name not in missing]


def prepared(name: str, data: Path, output: Path, clips: int | None) -> Path:
    """The plain spectrograms of a data set below `data`, of all or of about `clips`, in a store below `output`."""
    settings = DATA[name].prepare
    source = data / DATA[name].folder
    if clips:
        patterns = {key: value for key, value in settings.items() if key.endswith("pattern")}
        some_of(source, clips, patterns).write(output / "manifest.csv")
        source = output / "manifest.csv"
    return tymbal.prepare(source, output / "store", **settings).store.path


def some_of(folder: Path, count: int | None, patterns: dict[str, Any]) -> tymbal.Manifest:
    """About `count` clips of a folder, every n-th one, or all; `patterns` are settings of scanning."""
    manifest = tymbal.scan(folder, **patterns).manifest
    step = max(1, len(manifest) // count) if count else 1
    return tymbal.Manifest(manifest.clips[::step], manifest.root)


def accuracies(names: list[str], figures: Figures, figure: str = "accuracy") -> Iterator[str]:
    """A table as markdown, a row a cell: mean and standard deviation over the seeds, in percent."""
    yield f"| {figure}, % | " + " | ".join(DATA[name].title for name in names) + " |"
    yield "|---|" + "---:|" * len(names)
    for cell in dict.fromkeys(row["cell"] for row in figures.rows if figure in row):
        found = []
        for name in names:
            values = [100 * row[figure] for row in figures.have(data=name, cell=cell) if figure in row]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            found.append(f"{statistics.fmean(values):.1f}{spread}" if values else "")
        yield f"| {cell} | " + " | ".join(found) + " |"


def machine() -> str:
    """What it was measured on."""
    import torch

    threads = f"{torch.get_num_threads()} threads"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads}{gpu}; torch {torch.__version__}"


def processor_seconds() -> float:
    """Processor seconds of this process and of its children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def keep_arguments(arguments: argparse.Namespace, free: tuple[str, ...] = ()) -> None:
    """Refuses to mix figures of different settings in one folder; those that are `free` may differ."""
    free = ("output", "data", "only", "seeds", "device", *free)
    now = {name: value for name, value in vars(arguments).items() if name not in free}
    file = arguments.output / "arguments.json"
    text = json.dumps(now, indent=2) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        sys.exit(f"{arguments.output} holds figures of other settings ({file}): choose another --output")
    file.write_text(text, encoding="utf-8")
