"""Does the pretraining pay? The whole matrix on ESC-10 and on spoken digits, at an equal budget of minutes.

    python benchmarks/learning.py --data ../shared/data --minutes 10 --seeds 3 --output learning
    python benchmarks/learning.py --data ../shared/data --short

For each data set and seed, through Tymbal's public verbs alone:

- a linear probe of the encoder with random weights and of the pretrained one, in three poolings;
- fine-tuning from random weights and from the pretrained ones, each for the budget that the pretraining had;
- beside them the plain baseline: mean, spread and spread of differences of the spectrogram over time, read by a
  logistic regression.

ESC-10 is tested on fold 5, the digits on the two speakers theo and yweweler. Nothing is learned from the tested clips,
no epoch, strength or setting is chosen by them: pretraining and fine-tuning are measured once, at the end of their
budget, and the probe's regularisation is chosen inside the training clips by whole source clips or speakers. The budget
is turned into a number of steps by timing a few, so that the learning rate comes down to nothing in time.

Figures are appended to `figures.jsonl` in the output folder as they come. The same command continues; figures that are
there are not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import tymbal
from _learning import DATA, Figures, accuracies, chosen_data, keep_arguments, machine, prepared

POOLINGS = ("rows", "mean", "cls")
NEVER = 1_000_000
_TIMED = 40


class Matrix:
    """All cells of one data set."""

    def __init__(self, name: str, arguments: argparse.Namespace, figures: Figures) -> None:
        self.name = name
        self.arguments = arguments
        self.figures = figures
        self.folder = arguments.output / name
        self.store = prepared(name, arguments.data, self.folder, arguments.clips)

    def run(self, seed: int) -> None:
        """Computes what is missing for one seed."""
        pretrained = self.folder / f"pretrain-{seed}"
        key = {"data": self.name, "seed": seed}
        self._train("pretrain", pretrained, seed)
        if not self.figures.have(**key, cell=f"probe pretrained, {POOLINGS[0]}"):
            self._probe(pretrained, key)
        for start, source in (("scratch", None), ("pretrained", pretrained)):
            cell = f"fine-tuned from {start}"
            if not self.figures.have(**key, cell=cell):
                result = self._train("finetune", self.folder / f"finetune-{start}-{seed}", seed, source=source)
                self.figures.add(**key, cell=cell, accuracy=result.metrics["eval_accuracy"], steps=result.steps)

    def _probe(self, model: Path, key: dict[str, Any]) -> None:
        result = tymbal.probe(model, self.store, pooling=POOLINGS, seed=key["seed"], device=self.arguments.device)
        steps = json.loads((model / "result.json").read_text(encoding="utf-8"))["steps"]
        self.figures.add(**key, cell="baseline", accuracy=result.figure("baseline"))
        for pooling in POOLINGS:
            for title, features in (("random", "random"), ("pretrained", "model")):
                accuracy, neighbours = (
                    result.figure(features, pooling=pooling, reader=reader) for reader in ("logistic", "knn")
                )
                cell = f"probe {title}, {pooling}"
                self.figures.add(**key, cell=cell, accuracy=accuracy, knn=neighbours, steps=steps)

    def _train(self, verb: str, run: Path, seed: int, source: Path | None = None) -> Any:
        """Trains for the budget; a run that is there is continued, or taken as it is where it is finished."""
        arguments = self.arguments
        settings: dict[str, Any] = {"seed": seed, "device": arguments.device, "batch_size": arguments.batch_size}
        if source is None:
            settings |= {name: getattr(arguments, name) for name in ("size", "width", "depth", "heads", "patch")}
        if verb == "pretrain":
            settings |= arguments.pretrain | {"learning_rate": arguments.learning_rate}
            train: Callable[..., Any] = tymbal.pretrain
        else:
            settings |= arguments.finetune | {"learning_rate": arguments.finetune_rate}
            settings |= {"pooling": arguments.pooling, "from_": source}
            train = tymbal.finetune
        # Nothing may be chosen by the tested clips: they are looked at once, at the end.
        settings |= {"eval_every": NEVER, "save_every": NEVER, "report_to": ()}
        steps_file = run.with_name(run.name + ".steps")
        if not steps_file.exists():
            steps_file.write_text(str(self._steps(train, run.with_name("timing"), settings)), encoding="utf-8")
        steps = int(steps_file.read_text(encoding="utf-8"))
        began = time.monotonic()
        result = train(self.store, run, max_steps=steps, **settings)
        if time.monotonic() - began > 1:
            spent = (time.monotonic() - began) / 60
            print(f"{self.name}: {run.name}, {result.steps:,} steps in {spent:.1f} minutes", file=sys.stderr)
        return result

    def _steps(self, train: Callable[..., Any], folder: Path, settings: dict[str, Any]) -> int:
        """How many steps the budget is, from the median time of a few after the first ones."""
        if self.arguments.steps:
            return int(self.arguments.steps)
        shutil.rmtree(folder, ignore_errors=True)
        train(self.store, folder, max_steps=_TIMED, **{**settings, "log_every": 1})
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        seconds = [figures["seconds"] for figures in map(json.loads, lines) if "loss" in figures]
        each = statistics.median(after - before for before, after in itertools.pairwise(seconds[_TIMED // 4 :]))
        shutil.rmtree(folder, ignore_errors=True)
        return max(10, int(60 * self.arguments.minutes / each))


def table(names: list[str], figures: Figures) -> Iterator[str]:
    """The table as markdown: mean and standard deviation over the seeds, in percent."""
    yield from accuracies(names, figures)
    yield ""
    for name in names:
        for cell in (f"probe pretrained, {POOLINGS[0]}", "fine-tuned from scratch", "fine-tuned from pretrained"):
            steps = [row["steps"] for row in figures.have(data=name, cell=cell)]
            if steps:
                what = "pretraining" if cell.startswith("probe") else cell
                yield f"- {DATA[name].title}, {what}: {min(steps):,} to {max(steps):,} steps"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with esc10/ and fsdd/")
    parser.add_argument("--output", type=Path, default=Path("learning"), help="folder for stores, runs and figures")
    parser.add_argument("--only", choices=list(DATA), help="one data set")
    parser.add_argument("--minutes", type=float, default=10.0, help="budget of each training")
    parser.add_argument("--steps", type=int, help="steps of each training, instead of minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="small", choices=["tiny", "small", "base"])
    parser.add_argument("--width", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--patch", default="16x16")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the pretraining")
    parser.add_argument("--finetune-rate", type=float, default=5e-4)
    parser.add_argument("--pooling", default="rows", choices=POOLINGS, help="of the fine-tuned classifier")
    parser.add_argument("--pretrain", type=json.loads, default={}, help="more settings of the pretraining, as JSON")
    parser.add_argument("--finetune", type=json.loads, default={}, help="more settings of the fine-tuning, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, help="about so many clips of each data set, evenly taken")
    parser.add_argument("--short", action="store_true", help="about a minute: proves the machinery, teaches nothing")
    arguments = parser.parse_args()
    if arguments.short:
        vars(arguments).update(steps=10, seeds=1, width=32, depth=1, heads=2, clips=200, batch_size=16)
    return arguments


def main() -> None:
    arguments = parse()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keep_arguments(arguments)
    figures = Figures(arguments.output / "figures.jsonl")
    names = chosen_data(arguments.data, arguments.only)
    for name in names:
        matrix = Matrix(name, arguments, figures)
        for seed in range(1, arguments.seeds + 1):
            matrix.run(seed)
    if names:
        print("\n".join(table(names, figures)))
        budget = f"{arguments.steps:,} steps" if arguments.steps else f"{arguments.minutes:g} minutes"
        print(f"\n{date.today().isoformat()}, {machine()}, {budget} a training\n")
        print(f"    python {shlex.join(sys.argv)}")


if __name__ == "__main__":
    main()
