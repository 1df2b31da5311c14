"""What the trials of learning share: their data, their figures on the disk, and on what they were measured."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

import tymbal
from tymbal.demo.wingbeats import HELD_OUT, write_clips
from tymbal.objectives.lejepa import LeJEPAObjective

__all__ = [
    "DATA",
    "SETS",
    "Data",
    "Figures",
    "LearningSet",
    "accuracies",
    "chosen_data",
    "few",
    "keep_arguments",
    "machine",
    "processor_seconds",
    "some_of",
    "spread",
    "step_figures",
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


@dataclass(frozen=True)
class LearningSet:
    """A data set of `learning.py`: who is asked about was never heard with a label.

    Attributes:
        title: Its name in the tables.
        clips: Its clips from the folders of data and of output; the split says who is asked (validation).
        prepare: Settings of `tymbal.prepare` beside those of the clips.
        every: One training clip in so many keeps its label.
        folds: Into how many folds, whose numbers begin the file names, labelled clips fall; None for one split.
    """

    title: str
    clips: Callable[[Path, Path], tymbal.Manifest]
    prepare: dict[str, Any] = field(default_factory=dict)
    every: int = 1
    folds: int | None = None

    def manifest(self, data: Path, output: Path, clips: int | None = None) -> tymbal.Manifest:
        """All clips, or about so many; of the training clips, those that count as unlabelled have no label."""
        whole = self.clips(data, output)
        ordered = sorted(whole.clips, key=lambda clip: clip.id)
        ordered = ordered[:: max(1, len(ordered) // clips)] if clips else ordered
        training = [clip.id for clip in ordered if clip.split == "train" and clip.labels]
        labelled = set(training[:: self.every])
        kept = tuple(clip if clip.split != "train" or clip.id in labelled else clip.but(labels=()) for clip in ordered)
        return tymbal.Manifest(kept, whole.root)


def _digits(data: Path, _output: Path) -> tymbal.Manifest:
    patterns = {key: value for key, value in DATA["digits"].prepare.items() if key.endswith("pattern")}
    return tymbal.scan(data / "fsdd", **patterns).manifest


def _arabic(data: Path, _output: Path) -> tymbal.Manifest:
    listed = tymbal.Manifest.read(data / "arabic_commands" / "manifest.csv")
    sides = {"test": "validation", "validation": "train", "train": "train"}
    return tymbal.Manifest(tuple(clip.but(split=sides[clip.split or "train"]) for clip in listed), listed.root)


def _esc10(data: Path, _output: Path) -> tymbal.Manifest:
    found = tymbal.scan(data / "esc10", group_pattern=r"/(\d-\d+)-", split="none").manifest
    return tymbal.Manifest(tuple(clip.but(split="train") for clip in found), found.root)


def _wingbeats(_data: Path, output: Path) -> tymbal.Manifest:
    folder = output / "clips"
    if not folder.exists():
        write_clips(folder, each=30, known=5, seed=42)
    patterns = {"label_pattern": "known/([a-z_]+)/", "group_pattern": "/([a-z]+)-"}
    return tymbal.scan(folder, **patterns, validation_pattern=f"/{HELD_OUT.name}-").manifest


SETS = {
    "digits": LearningSet("digits", _digits, {"window": 1.12, "frames": 112, "longer": "crop-start"}, every=3),
    "arabic": LearningSet("Arabic commands", _arabic, {"window": 1.0}, every=6),
    "esc10": LearningSet("ESC-10", _esc10, {"window": 5.0, "frames": 512}, folds=5),
    "wingbeats": LearningSet("wingbeats", _wingbeats, {"window": 1.2}),
}


def few(clips: list[tymbal.Clip], count: int | None, draw: int) -> list[tymbal.Clip]:
    """So many clips of each label, drawn by a number; more of them hold the fewer. None is all."""
    if count is None:
        return clips
    kept: list[tymbal.Clip] = []
    for label in sorted({label for clip in clips for label in clip.labels}):
        of_class = sorted((clip for clip in clips if label in clip.labels), key=lambda clip: clip.id)
        random.Random(f"{draw} {label}").shuffle(of_class)
        kept += of_class[:count]
    return kept


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
        figure = f"{row['accuracy']:6.1%}" if "accuracy" in row else ""
        print(f"{row['data']:>9} seed {row['seed']}  {row['cell']:<34} {figure}", file=sys.stderr, flush=True)


def chosen_data(folder: Path, only: str | None) -> list[str]:
    """Names of the data sets that are wanted and there; says which are not."""
    names = [only] if only else list(DATA)
    missing = [name for name in names if not (folder / DATA[name].folder).is_dir()]
    if missing:
        print(f"skipped: no {', '.join(missing)} in {folder}", file=sys.stderr)
    return [name for name in names if name not in missing]


def some_of(folder: Path, count: int | None, patterns: dict[str, Any]) -> tymbal.Manifest:
    """About `count` clips of a folder, every n-th one, or all; `patterns` are settings of scanning."""
    manifest = tymbal.scan(folder, **patterns).manifest
    step = max(1, len(manifest) // count) if count else 1
    return tymbal.Manifest(manifest.clips[::step], manifest.root)


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation; in percent."""
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


def accuracies(names: list[str], figures: Figures, figure: str = "accuracy") -> Iterator[str]:
    """A table as markdown, a row a cell: mean and standard deviation over the seeds, in percent."""
    yield f"| {figure}, % | " + " | ".join(DATA[name].title for name in names) + " |"
    yield "|---|" + "---:|" * len(names)
    for cell in dict.fromkeys(row["cell"] for row in figures.rows if figure in row):
        found = [spread([row[figure] for row in figures.have(data=name, cell=cell) if figure in row]) for name in names]
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


def step_figures(pretrain: Callable[[], None]) -> dict[str, float]:
    """Watches the steps of a pretraining by LeJEPA.

    Args:
        pretrain: Runs it for some steps.

    Returns:
        Median processor seconds of a step (`each`); which share of them views take (`views`); and the arithmetic of
        the forward pass, over that of the blocks and the projection of patches, which the visible tokens alone pass
        (`arithmetic`).
    """
    began: list[float] = []
    views: list[float] = []
    totals: list[float] = []
    draw, forward = LeJEPAObjective.draw_views, LeJEPAObjective.forward

    def timed_draw(objective: LeJEPAObjective, *given: Any, **how: Any) -> Any:
        start = time.process_time()
        drawn = draw(objective, *given, **how)
        views[-1] += time.process_time() - start
        return drawn

    def timed_forward(objective: LeJEPAObjective, *given: Any, **batch: Any) -> Any:
        views.append(0.0)
        if not objective.training:
            computed = forward(objective, *given, **batch)
            views.pop()
            return computed
        began.append(time.process_time())
        if totals:
            return forward(objective, *given, **batch)
        with FlopCounterMode(display=False) as counter:
            computed = forward(objective, *given, **batch)
        seen = r"(^|\.)(blocks\.\d+|patch_projection)$"
        counts = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
        totals.append(counter.get_total_flops() / sum(n for name, n in counts.items() if re.search(seen, name)))
        return computed

    try:
        LeJEPAObjective.draw_views, LeJEPAObjective.forward = timed_draw, timed_forward  # type: ignore[method-assign]
        pretrain()
    finally:
        LeJEPAObjective.draw_views, LeJEPAObjective.forward = draw, forward  # type: ignore[method-assign]
    each = statistics.median(after - before for before, after in itertools.pairwise(began[2:]))
    return {"each": each, "views": statistics.median(views[2:]) / each, "arithmetic": totals[0]}


def keep_arguments(arguments: argparse.Namespace, free: tuple[str, ...] = ()) -> None:
    """Refuses to mix figures of different settings in one folder; those that are `free` may differ."""
    free = ("output", "data", "only", "seeds", "device", *free)
    now = {name: value for name, value in vars(arguments).items() if name not in free}
    file = arguments.output / "arguments.json"
    text = json.dumps(now, indent=2) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        sys.exit(f"{arguments.output} holds figures of other settings ({file}): choose another --output")
    file.write_text(text, encoding="utf-8")
