"""Does variety of views pay? Contrastive pretraining from generated and from fresh views, beside other objectives.

    python benchmarks/views_learning.py --data ../shared/data --output views          # half an hour of one core
    python benchmarks/views_learning.py --data ../shared/data --short
    python benchmarks/views_learning.py --data ../shared/data --grid --device cuda    # for a GPU
    python benchmarks/views_learning.py --output views --picture docs/pictures/views_learning.png

ESC-10 is tested on fold 5, the digits on the two speakers theo and yweweler. For each seed the same small encoder is
pretrained, for the same number of steps and with the same optimizer, on the training clips and no others:

- `contrastive, N generated`: from N pairs of views of each clip, made once (`tymbal prepare --views N`);
- `contrastive, fresh`: from new views of each clip in every epoch;
- `contrastive, fresh, masked`: the same, of one view whole columns of time hidden and of the other rows of frequency;
- `reconstruction` and `joint` (only the visible patches encoded) of the plain spectrograms.

Then its frozen embeddings are read by a linear probe and by nearest neighbours, beside those of random weights. Nothing
is chosen by the tested clips; the settings of the views are configs/short_clips.yaml, as they were first written down.
A contrastive step sees two views a clip, so that it has twice the spectrograms of another objective's; seconds a step
of processor time stand in the table. Of ESC-10's clips the first half is taken, of the digits one in three.

Figures are appended to `figures.jsonl` in the output folder as they come. The same command continues; figures that are
there are not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import tymbal
from _learning import DATA, Figures, accuracies, chosen_data, keep_arguments, machine, processor_seconds, some_of
from _views_picture import draw

POOLINGS = ("rows", "mean")
NEVER = 1_000_000
AUGMENTATIONS = Path(__file__).parents[1] / "configs" / "short_clips.yaml"
WATCHED = ("loss", "acc", "alignment", "uniformity", "rank")
BASELINE, RANDOM = "baseline", "random"
FRESH = "fresh"
LENGTH = {"esc10": {"frames": 256, "longer": "crop-start"}, "digits": {"frames": 112, "longer": "crop-start"}}
"""Of plain spectrograms and views alike: of ESC-10's 5 s the first half, so that a step costs half as much."""

CLIPS = {"esc10": None, "digits": 1000}
"""About so many, where not all: few enough that an hour passes over each one many times."""

STEPS = {"esc10": 160, "digits": 320}


@dataclass(frozen=True)
class Arm:
    """A way to pretrain.

    Attributes:
        title: Its name in the table.
        settings: Of `tymbal.pretrain`.
        views: Where views come from: a number of generated versions, `fresh`, or None for plain spectrograms.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    views: int | str | None = None


def contrastive(views: int | str, *, masked: bool = False) -> Arm:
    title = f"contrastive, {views}" + (" generated" if isinstance(views, int) else "") + (", masked" if masked else "")
    return Arm(title, {"objective": "contrastive", "view_mask": "crossed" if masked else "none"}, views)


PLAIN = (
    Arm("joint", {"objective": "joint", "encode": "visible"}),
    Arm("reconstruction", {"objective": "reconstruction", "schedule": "cosine", "warmup": 0.1, "accumulate": 1}),
)
ARMS = (*PLAIN, contrastive(1), contrastive(5), contrastive(FRESH), contrastive(FRESH, masked=True))
GRID = (
    *PLAIN,
    *(contrastive(views, masked=masked) for masked in (False, True) for views in (1, 3, 5, 10, FRESH)),
)


class Trial:
    """All arms on one data set."""

    def __init__(self, name: str, arguments: argparse.Namespace, figures: Figures) -> None:
        self.name = name
        self.arguments = arguments
        self.figures = figures
        self.folder = arguments.output / name
        data = DATA[name]
        patterns = {key: value for key, value in data.prepare.items() if key.endswith("pattern")}
        count = arguments.clips or CLIPS[name]
        manifest = some_of(arguments.data / data.folder, count, patterns)
        manifest.write(self.folder / "clips.csv")
        self.store = tymbal.prepare(self.folder / "clips.csv", self.folder / "store", **LENGTH[name]).store.path
        # No view of a tested clip is ever made.
        self.train_clips = self.folder / "train.csv"
        training = [clip for clip in manifest.clips if clip.split == "train"]
        tymbal.Manifest(training, manifest.root).write(self.train_clips)

    def run(self, seed: int) -> None:
        """Computes what is missing for one seed."""
        for arm in GRID if self.arguments.grid else ARMS:
            if not self.figures.have(data=self.name, seed=seed, arm=arm.title, cell=f"{arm.title}, {POOLINGS[-1]}"):
                self._arm(arm, seed)

    def _arm(self, arm: Arm, seed: int) -> None:
        key = {"data": self.name, "seed": seed, "arm": arm.title}
        source, made = measured(lambda: self._source(arm, seed))
        run = self.folder / f"{arm.title.replace(', ', '-').replace(' ', '-')}-{seed}"
        # Half a run would be continued, and its time not known.
        shutil.rmtree(run, ignore_errors=True)
        result, trained = measured(lambda: self._pretrain(arm, source, run, seed))
        first = not self.figures.have(data=self.name, seed=seed, cell=BASELINE)
        probe, read = measured(
            lambda: tymbal.probe(
                run, self.store, pooling=POOLINGS, random=first, seed=seed, device=self.arguments.device, cache=False
            )
        )
        if first:
            plain = {"data": self.name, "seed": seed}
            self.figures.add(**plain, arm=BASELINE, cell=BASELINE, accuracy=probe.figure("baseline"))
            for pooling in POOLINGS:
                self._add(probe, RANDOM, pooling, {**plain, "arm": RANDOM})
        told = {"steps": result.steps, "seconds": {"views": made, "training": trained, "probe": read}}
        told |= watched(run)
        for pooling in POOLINGS:
            self._add(probe, "model", pooling, {**key, **(told if pooling == POOLINGS[0] else {})})
        if not self.arguments.keep:
            shutil.rmtree(run)

    def _add(self, probe: Any, features: str, pooling: str, key: dict[str, Any]) -> None:
        accuracy, neighbours = (
            probe.figure(features, pooling=pooling, reader=reader) for reader in ("logistic", "knn")
        )
        self.figures.add(**key, cell=f"{key['arm']}, {pooling}", pooling=pooling, accuracy=accuracy, knn=neighbours)

    def _source(self, arm: Arm, seed: int) -> Path:
        """What an arm learns from; views are made once a seed."""
        if arm.views is None:
            return self.store
        fresh = arm.views == FRESH
        place = self.folder / (f"views-{arm.views}" if fresh else f"views-{arm.views}-{seed}")
        made = tymbal.prepare(
            self.train_clips,
            place,
            views=1 if fresh else arm.views,
            write="waveforms" if fresh else "store",
            augmentations=str(AUGMENTATIONS),
            filter_bank="kaldi",
            sample_rate=16_000,
            low_freq=20.0,
            split="keep",
            seed=seed if not fresh else 1,
            workers=1,
            **LENGTH[self.name],
        )
        return Path(made.path)

    def _pretrain(self, arm: Arm, source: Path, run: Path, seed: int) -> Any:
        arguments = self.arguments
        settings = {name: getattr(arguments, name) for name in ("width", "depth", "heads", "patch", "device")}
        settings |= {"seed": seed, "learning_rate": arguments.learning_rate, **arm.settings, **arguments.pretrain}
        if arm.views is not None:
            settings["augmentations"] = str(AUGMENTATIONS)
        steps = arguments.steps or STEPS[self.name]
        settings |= {"max_steps": steps, "batch_size": arguments.batch_size, "log_every": max(1, steps // 20)}
        # The tested clips are looked at once, at the end.
        never = {"eval_every": NEVER, "save_every": NEVER, "report_to": (), "patience": 0}
        return tymbal.pretrain(source, run, **never, **settings)


def watched(run: Path) -> dict[str, Any]:
    """What a run ended with, the mean of the last three lines of its log."""
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))
    last = [line for line in lines if "loss" in line][-3:]
    names = [name for name in WATCHED if name in last[0]]
    return {name: round(statistics.fmean(line[name] for line in last), 4) for name in names}


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and the processor time that it took, children included."""
    before = processor_seconds()
    result = work()
    return result, round(processor_seconds() - before, 2)


def table(names: list[str], figures: Figures) -> Iterator[str]:
    """Accuracies of the probe and of nearest neighbours, then what it cost."""
    yield from accuracies(names, figures)
    yield ""
    yield from accuracies(names, figures, "knn")
    yield ""
    yield "| steps; processor seconds a step | " + " | ".join(DATA[name].title for name in names) + " |"
    yield "|---|" + "---:|" * len(names)
    timed = [row for row in figures.rows if "seconds" in row]
    for arm in dict.fromkeys(row["arm"] for row in timed):
        cells = []
        for name in names:
            rows = [row for row in timed if row["arm"] == arm and row["data"] == name]
            each = [row["seconds"]["training"] / row["steps"] for row in rows]
            cells.append(f"{rows[0]['steps']:,}; {statistics.median(each):.3f}" if rows else "")
        yield f"| {arm} | " + " | ".join(cells) + " |"
    spent = {part: sum(row["seconds"][part] for row in timed) / 60 for part in ("views", "training", "probe")}
    told = ", ".join(f"{part} {minutes:.1f}" for part, minutes in spent.items())
    yield f"\nProcessor minutes: {told}; in all {sum(spent.values()):.1f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with esc10/ and fsdd/")
    parser.add_argument("--output", type=Path, default=Path("views"), help="folder for stores, runs and figures")
    parser.add_argument("--only", choices=list(DATA), help="one data set")
    parser.add_argument("--grid", action="store_true", help="1, 3, 5, 10 generated and fresh, with and without masks")
    parser.add_argument("--steps", type=int, help="of each training, instead of those of the data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--patch", default="16x16")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pretrain", type=json.loads, default={}, help="more settings of all trainings, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, help="about so many clips of each data set, evenly taken")
    parser.add_argument("--keep", action="store_true", help="keep the runs, models and all")
    parser.add_argument("--picture", type=Path, help="only draw the figures that are there, into this file")
    parser.add_argument("--short", action="store_true", help="under a minute: proves the machinery, teaches nothing")
    arguments = parser.parse_args()
    if arguments.short:
        vars(arguments).update(steps=3, seeds=1, width=32, depth=1, heads=2, clips=60, batch_size=8)
    return arguments


def main() -> None:
    arguments = parse()
    figures = Figures(arguments.output / "figures.jsonl")
    if arguments.picture is not None:
        if not figures.rows:
            sys.exit(f"no figures are in {arguments.output}: run it without --picture first")
        names = [name for name in DATA if figures.have(data=name)]
        draw(figures, names, arguments.picture)
        print("\n".join(table(names, figures)))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    keep_arguments(arguments, free=("grid", "keep"))
    names = chosen_data(arguments.data, arguments.only)
    for seed in range(1, arguments.seeds + 1):
        for name in names:
            Trial(name, arguments, figures).run(seed)
    if names:
        print("\n".join(table(names, figures)))
        print(f"\n{date.today().isoformat()}, {machine()}\n")
        print(f"    python {shlex.join(sys.argv)}")


if __name__ == "__main__":
    main()
