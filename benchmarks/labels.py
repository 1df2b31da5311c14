"""How many labels does pretraining save? Fine-tuning from nothing, from reconstruction and from joint pretraining.

    OMP_NUM_THREADS=1 python benchmarks/labels.py --data ../shared/data --output labels
    python benchmarks/labels.py --data ../shared/data --short

For ESC-10 (tested on fold 5) and spoken digits (tested on two speakers), for each seed, through Tymbal's public verbs
alone:

- pretraining on the training clips without labels, by `reconstruction` and by `joint`, for the same processor time;
- fine-tuning from either, and from random weights, on 1, 5, 10 and all clips of each class: equal steps;
- fine-tuning from random weights on all clips for the time of pretraining and fine-tuning together.

The few clips of a class are drawn by the seed, the same for all three. Nothing is learned from the tested clips, no
epoch and no setting is chosen by them: each model is measured once, at the end of its budget. Settings were chosen
with `--tested dev`: inside the training clips, on the speakers jackson and nicolas. With all labels random weights want
another learning rate and a random head; with few, what is best for them is best for all three.

With `--positions` it asks another question: what do clips of a second take of position embeddings of five seconds? One
joint pretraining on ESC-10 at five seconds, from which pretraining (then probed) and fine-tuning go on with one-second
clips of ESC-10 and with digits, by `--positions cut`, `first` and `resize`.

Budgets are processor time of one thread, turned into steps once, by timing a few, so that other work on the machine
does not change them. Figures are appended to `figures.jsonl` in the output folder as they come; the same command
continues.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import tymbal
from _learning import DATA, Figures, accuracies, chosen_data, keep_arguments, machine, processor_seconds, some_of

OBJECTIVES = ("reconstruction", "joint")
STARTS = ("scratch", *OBJECTIVES)
SHOTS = (1, 5, 10, None)
POSITIONS = ("cut", "first", "resize")
NEVER = 1_000_000
DEV = {
    "esc10": {"tested": r"/5-", "validation_pattern": r"/4-"},
    "digits": {"tested": r"_(theo|yweweler)_", "validation_pattern": r"_(jackson|nicolas)_"},
}
"""By data set: what is tested in the end, which `--tested dev` leaves out, and what is tested on then."""


class Trial:
    """All cells of one data set."""

    def __init__(self, name: str, arguments: argparse.Namespace, figures: Figures) -> None:
        self.name = name
        self.arguments = arguments
        self.figures = figures
        self.folder = arguments.output / name

    @cached_property
    def manifest(self) -> tymbal.Manifest:
        """The clips with labels, groups and split."""
        data = DATA[self.name]
        settings = {key: value for key, value in data.prepare.items() if key.endswith("pattern")}
        folder = self.arguments.data / data.folder
        if self.arguments.tested == "dev":
            settings["validation_pattern"] = DEV[self.name]["validation_pattern"]
        manifest = some_of(folder, self.arguments.clips, settings)
        clips = manifest.clips
        if self.arguments.tested == "dev":
            tested = tymbal.scan(folder, **{**settings, "validation_pattern": DEV[self.name]["tested"]}).manifest
            out = {clip.file for clip in tested.clips if clip.split == "validation"}
            clips = [clip for clip in clips if clip.file not in out]
        return tymbal.Manifest(list(clips), manifest.root)

    def store(self, shots: int | None, seed: int) -> Path:
        """The store of all training clips, or of a few of each class, always with all tested clips."""
        title = "all" if shots is None else f"{shots}-{seed}"
        folder: Path = self.folder / f"store-{title}"
        if (folder / "store.json").exists():
            return folder
        clips = self.manifest.clips
        if shots is not None:
            kept = {clip.id for clip in self._few(shots, seed)}
            clips = [clip for clip in clips if clip.split == "validation" or clip.id in kept]
        manifest = self.folder / f"manifest-{title}.csv"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        tymbal.Manifest(list(clips), self.manifest.root).write(manifest)
        settings = {key: value for key, value in self.preparing.items() if not key.endswith("pattern")}
        return tymbal.prepare(manifest, folder, split="keep", **settings).store.path

    @property
    def preparing(self) -> dict[str, Any]:
        """How the clips become spectrograms."""
        return DATA[self.name].prepare

    def _few(self, shots: int, seed: int) -> Iterator[tymbal.Clip]:
        """So many training clips of each class, drawn by the seed; more of them hold the fewer."""
        training = [clip for clip in self.manifest.clips if clip.split == "train"]
        for label in sorted({label for clip in training for label in clip.labels}):
            of_class = sorted((clip for clip in training if label in clip.labels), key=lambda clip: clip.id)
            random.Random(f"{seed} {label}").shuffle(of_class)
            yield from of_class[:shots]

    def run(self, seed: int) -> None:
        """Computes what is missing for one seed."""
        pretrained = {objective: self._pretrain(objective, seed) for objective in self.arguments.objectives}
        for shots in self.arguments.shots:
            for start in self.arguments.starts:
                self._finetune(start, pretrained.get(start), shots, seed, self._finetuning_steps(shots))
        if None in self.arguments.shots and "scratch" in self.arguments.starts and self.arguments.longer:
            factor = 1 + self.arguments.pretrain_minutes / self.arguments.finetune_minutes
            self._finetune("scratch, longer", None, None, seed, round(factor * self._finetuning_steps(None)))

    def _pretrain(self, objective: str, seed: int) -> Path:
        run = self.folder / f"{objective}-{seed}"
        settings = self._shape() | {"objective": objective} | self.arguments.pretrain
        settings |= self.arguments.reconstruction if objective == "reconstruction" else self.arguments.joint
        steps = self._steps(objective, tymbal.pretrain, settings, self.arguments.pretrain_minutes)
        tymbal.pretrain(self.store(None, 0), run, max_steps=steps, **settings, **self._common(seed))
        return run

    def _finetune(self, start: str, source: Path | None, shots: int | None, seed: int, steps: int) -> None:
        cell = f"{start}, " + ("all labels" if shots is None else f"{shots} a class")
        key = {"data": self.name, "seed": seed, "cell": cell}
        if self.figures.have(**key):
            return
        run = self.folder / f"finetune-{cell.replace(', ', '-').replace(' ', '-')}-{seed}"
        settings = self._finetuning(start, shots) | ({"from_": source} if source else self._shape())
        result = tymbal.finetune(self.store(shots, seed), run, max_steps=steps, **settings, **self._common(seed))
        self.figures.add(**key, accuracy=result.metrics["eval_accuracy"], steps=steps)
        shutil.rmtree(run)

    def _finetuning(self, start: str, shots: int | None) -> dict[str, Any]:
        arguments = self.arguments
        chosen = arguments.few if shots else arguments.scratch if start.startswith("scratch") else arguments.finetune
        return {"pooling": arguments.pooling, "batch_size": arguments.batch_size} | chosen

    def _finetuning_steps(self, shots: int | None) -> int:
        if shots is not None:
            return int(self.arguments.few_steps)
        settings = self._finetuning("scratch", None) | self._shape()
        return self._steps("finetune", tymbal.finetune, settings, self.arguments.finetune_minutes)

    def _shape(self) -> dict[str, Any]:
        return {name: getattr(self.arguments, name) for name in ("width", "depth", "heads", "patch")}

    def _common(self, seed: int) -> dict[str, Any]:
        # Nothing may be chosen by the tested clips: they are looked at once, at the end.
        still = {"eval_every": NEVER, "save_every": NEVER, "patience": 0, "report_to": ()}
        return {**still, "seed": seed, "device": self.arguments.device}

    def _steps(self, title: str, train: Any, settings: dict[str, Any], minutes: float) -> int:
        """How many steps the budget is: from the processor time of more steps less that of fewer."""
        if self.arguments.steps:
            return int(self.arguments.steps)
        file = self.folder / f"{title}.steps"
        if not file.exists():
            spent = []
            for steps in (10, 40):
                folder = self.folder / "timing"
                began = time.process_time()
                train(self.store(None, 0), folder, max_steps=steps, **settings, **self._common(0))
                spent.append(time.process_time() - began)
                shutil.rmtree(folder)
            each = (spent[1] - spent[0]) / 30
            print(f"{self.name}: {title}, {1000 * each:.0f} ms a step", file=sys.stderr)
            file.write_text(str(max(10, round(60 * minutes / each))), encoding="utf-8")
        return int(file.read_text(encoding="utf-8"))


class PositionTrial(Trial):
    """Goes on with clips of a second from a model of five seconds, with its position embeddings in three ways."""

    def __init__(self, name: str, arguments: argparse.Namespace, figures: Figures) -> None:
        super().__init__(name, arguments, figures)
        self.long = Trial("esc10", arguments, figures)
        self.folder = arguments.output / f"{name}-second"

    @property
    def preparing(self) -> dict[str, Any]:
        """As of the trials of labels, ESC-10 in windows of a second."""
        return {**super().preparing, "frames": 112} | ({"window": 1.0} if self.name == "esc10" else {})

    def run(self, seed: int) -> None:
        """Computes what is missing for one seed."""
        source = self.long._pretrain("joint", seed)
        settings = self._shape() | {"objective": "joint"} | self.arguments.pretrain | self.arguments.joint
        steps = self._steps("joint", tymbal.pretrain, settings, self.arguments.pretrain_minutes / 2)
        for how in POSITIONS:
            start = {"from_": source, "positions": how}
            key = {"data": self.name, "seed": seed, "cell": f"{how}: pretrained on, probe"}
            run = self.folder / f"{how}-{seed}"
            if not self.figures.have(**key):
                every = {**settings, **start, **self._common(seed)}
                tymbal.pretrain(self.store(None, 0), run, max_steps=steps, **every)
                read = {"readers": ("ridge",), "pooling": ("rows",), "random": False, "cache": False, "seed": seed}
                probe = tymbal.probe(run, self.store(None, 0), **read, device=self.arguments.device)
                self.figures.add(**key, accuracy=probe.figure("model", reader="ridge"), steps=steps)
            for shots in self.arguments.shots:
                amount = "all labels" if shots is None else f"{shots} a class"
                key["cell"] = f"{how}: fine-tuned, {amount}"
                if not self.figures.have(**key):
                    tuning = {**self._finetuning("joint", shots), **start, **self._common(seed)}
                    folder, count = self.folder / f"{how}-{amount}-{seed}", self._finetuning_steps(shots)
                    result = tymbal.finetune(self.store(shots, seed), folder, max_steps=count, **tuning)
                    self.figures.add(**key, accuracy=result.metrics["eval_accuracy"], steps=count)
                    shutil.rmtree(folder)


def table(names: list[str], figures: Figures) -> Iterator[str]:
    """The tables as markdown: mean and standard deviation over the seeds, in percent."""
    for name in names:
        cells = {row["cell"] for row in figures.have(data=name)}
        amounts = [amount for amount in ("1 a class", "5 a class", "10 a class", "all labels") if _any(cells, amount)]
        yield f"| {DATA[name].title}: accuracy, % | " + " | ".join(amounts) + " |"
        yield "|---|" + "---:|" * len(amounts)
        for start in (*STARTS, "scratch, longer"):
            if any(f"{start}, {amount}" in cells for amount in amounts):
                found = (_summary(figures.have(data=name, cell=f"{start}, {amount}")) for amount in amounts)
                yield f"| {start} | " + " | ".join(found) + " |"
        yield ""
        for row in figures.have(data=name, seed=1):
            if row["cell"].endswith("all labels"):
                yield f"- {row['cell']}: {row['steps']:,} steps of fine-tuning"
        yield ""


def _any(cells: set[str], amount: str) -> bool:
    return any(cell.endswith(amount) for cell in cells)


def _summary(rows: list[dict[str, Any]]) -> str:
    values = [100 * row["accuracy"] for row in rows]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}" if values else ""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with esc10/ and fsdd/")
    parser.add_argument("--output", type=Path, default=Path("labels"), help="folder for stores, runs and figures")
    parser.add_argument("--only", choices=list(DATA), help="one data set")
    parser.add_argument("--tested", default="test", choices=["test", "dev"], help="dev: only to choose settings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-minutes", type=float, default=1.5, help="processor minutes of each pretraining")
    parser.add_argument("--finetune-minutes", type=float, default=0.6, help="and of fine-tuning on all labels")
    parser.add_argument("--few-steps", type=int, default=40, help="steps of fine-tuning on a few clips a class")
    parser.add_argument("--steps", type=int, help="steps of each longer training, instead of minutes")
    parser.add_argument("--shots", type=_shots, default=SHOTS, help="as in 1,5,10,all")
    parser.add_argument("--starts", type=_names, default=STARTS, help="as in scratch,reconstruction,joint")
    parser.add_argument("--positions", action="store_true", help="instead: position embeddings of longer clips")
    parser.add_argument("--no-longer", dest="longer", action="store_false", help="without the longer one from scratch")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--patch", default="16x16")
    parser.add_argument("--batch-size", type=int, default=32, help="of fine-tuning")
    parser.add_argument("--pooling", default="rows", help="of the classifier")
    parser.add_argument("--pretrain", type=json.loads, default=PRETRAIN, help="settings of both, as JSON")
    parser.add_argument("--reconstruction", type=json.loads, default={}, help="more of reconstruction")
    parser.add_argument("--joint", type=json.loads, default={"encode": "visible"}, help="more of joint")
    parser.add_argument("--finetune", type=json.loads, default=FINETUNE, help="of fine-tuning on all labels")
    parser.add_argument("--scratch", type=json.loads, default=SCRATCH, help="the same from random weights")
    parser.add_argument("--few", type=json.loads, default=FEW, help="and from any, on a few clips a class")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, help="about so many clips of each data set, evenly taken")
    parser.add_argument("--short", action="store_true", help="under a minute: proves the machinery, teaches nothing")
    arguments = parser.parse_args()
    if arguments.short:
        small = {"width": 32, "depth": 1, "heads": 2, "clips": 100, "batch_size": 8}
        vars(arguments).update(small, steps=3, few_steps=3, seeds=1, shots=(1, None))
    arguments.objectives = tuple(start for start in arguments.starts if start in OBJECTIVES)
    return arguments


def _shots(text: str) -> tuple[int | None, ...]:
    return tuple(None if word == "all" else int(word) for word in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


PRETRAIN = {"learning_rate": 1e-3, "batch_size": 64, "accumulate": 1, "schedule": "cosine", "warmup": 0.1}
FINETUNE = {"learning_rate": 2e-4, "head_start": "probe"}
SCRATCH = {"learning_rate": 1e-3}
FEW = {"learning_rate": 2e-4, "head_start": "probe"}


def main() -> None:
    arguments = parse()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keep_arguments(arguments)
    figures = Figures(arguments.output / "figures.jsonl")
    names = chosen_data(arguments.data, arguments.only)
    # All data sets of a seed before the next seed, so that a run that is cut short still shows both.
    kind = PositionTrial if arguments.positions else Trial
    trials = [kind(name, arguments, figures) for name in names]
    for seed in range(1, arguments.seeds + 1):
        for trial in trials:
            trial.run(seed)
    if names:
        print("\n".join(accuracies(names, figures) if arguments.positions else table(names, figures)))
        print(f"{date.today().isoformat()}, {machine()}, {processor_seconds() / 60:.0f} processor minutes this time\n")
        print(f"    python {shlex.join(sys.argv)}")


if __name__ == "__main__":
    main()
