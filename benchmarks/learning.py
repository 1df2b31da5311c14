"""Does pretraining pay, and what do minutes buy? Objectives, plain lines and fine-tuning on four sets of real sound.

    python benchmarks/learning.py --data ../shared/data --output learning --minutes 1 4 --seeds 1 2 3
    python benchmarks/learning.py --data ../shared/data --output learning --minutes 15 60 --sets digits arabic
    python benchmarks/learning.py --output learning --table
    python benchmarks/learning.py --data ../shared/data --short

For each set, budget and seed, through Tymbal's public verbs alone, with their defaults:

- `tymbal pretrain` without a flag (`default`), and each objective with the shape and patch that the default chose;
  `joint before` is what the verb did without a flag before LeJEPA was the default;
- `tymbal probe` of each: the model, random weights in the same patch and reading, the best plain line, and model and
  plain line side by side;
- `tymbal finetune` from nothing and from each pretraining, in the same shape, for equal steps, on 1, 5, 10 and all
  labels a class, several times with other labels, without and with light views as augmentation; the better of the two
  counts, for both alike.

The sets: wingbeats (the demo's, 180 labels, a device that was never heard), digits (667 labels of four speakers, two
unheard ones are asked), ESC-10 (five folds; the pretraining hears all clips, without labels) and Arabic commands (800
labels, six unheard speakers). Nothing is learned from the labels of clips that are asked, no step, strength or setting
is chosen by them: a model is measured once, at the end of its budget.

Minutes are processor time of one thread for the whole verb. They become a number of steps by the processor time of a
few, so that other work on the machine changes little; `--max-minutes` would count by the clock. What the training then
took stands beside its figures. Figures are appended to `figures.jsonl` in the output folder as they come; the same
command continues, and one with other sets, budgets or rows adds to them.

Embeddings of a large pretrained model that `_birdnet_embeddings.py` wrote to SET/birdnet.npz are read in the same way.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import numpy as np
import yaml

import tymbal
from _learning import SETS, Figures, few, machine, processor_seconds, spread, step_figures
from tymbal.evaluation.probe_tasks import ProbeTask

NEVER = 1_000_000
STILL = {"eval_every": NEVER, "save_every": NEVER, "patience": 0, "report_to": ()}
"""Nothing may be chosen by the clips that are asked: they are looked at once, at the end."""

EQUAL = {"learning_rate": 1e-3, "batch_size": 32}
BEFORE = {"size": "small", "patch": "16x16", "learning_rate": 5e-4, "batch_size": 64}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "contrastive": {"objective": "contrastive", **EQUAL},
    "mpg": {"objective": "mpg", "encode": "visible", **EQUAL},
    "joint": {"objective": "joint", "encode": "visible", **EQUAL},
    "reconstruction": {"objective": "reconstruction", "accumulate": 1, "schedule": "cosine", "warmup": 0.1, **EQUAL},
    "joint before": {"objective": "joint", **BEFORE},
}
# The probe as a candidate for the best model would be chosen by the clips that are asked.
FINETUNE: dict[str, Any] = {"batch_size": 32, "eval_start": False}
AUGMENTED: dict[str, dict[str, Any]] = {"no views": {"view_strength": 0.0}, "light views": {"view_strength": 0.5}}
FEW_STEPS, ALL_STEPS = 100, 300
READERS = {
    "frozen probe, logistic regression": ("", "logistic"),
    "frozen probe, ridge regression": (", ridge", "ridge"),
    "nearest neighbours": (", neighbours", "knn"),
}
"""By title of their table, what stands behind the names of their figures, and what they are called in a probe."""


class Trial:
    """All cells of one set."""

    def __init__(self, name: str, arguments: argparse.Namespace, figures: Figures) -> None:
        self.name = name
        self.set = SETS[name]
        self.arguments = arguments
        self.figures = figures
        self.folder: Path = arguments.output / name
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def manifest(self) -> tymbal.Manifest:
        """All clips; those that count as unlabelled have no label."""
        return self.set.manifest(self.arguments.data, self.folder, self.arguments.clips)

    @cached_property
    def store(self) -> Path:
        """The store of all clips that is pretrained on."""
        return self._prepared("store", self.manifest.clips)

    @cached_property
    def asked(self) -> Path:
        """The store that a probe reads: with folds, each of them is a group of its own, and the last one a side."""
        if self.set.folds is None:
            return self.store
        last = str(self.set.folds)
        sides = {True: "validation", False: "train"}
        clips = (clip.but(group=_fold(clip), split=sides[_fold(clip) == last]) for clip in self.manifest)
        return self._prepared("store-folds", tuple(clips))

    def _prepared(self, title: str, clips: tuple[tymbal.Clip, ...]) -> Path:
        store = self.folder / title
        if not (store / "store.json").exists():
            manifest = self.folder / f"{title}.csv"
            tymbal.Manifest(clips, self.manifest.root).write(manifest)
            tymbal.prepare(manifest, store, split="keep", **self.set.prepare)
        return store

    # Pretraining and probes

    def pretrained(self, row: str, minutes: float, seed: int) -> Path:
        """The run of an objective; where it is not there yet, it is trained and read."""
        run = self.folder / f"{row.replace(' ', '-')}-{minutes:g}-{seed}"
        key = {"data": self.name, "row": row, "minutes": minutes, "seed": seed}
        if not self.figures.have(**key, cell="pretraining"):
            steps = self._steps(row, minutes)
            shutil.rmtree(run, ignore_errors=True)  # half a run would be continued, and its time not known
            began = processor_seconds()
            self._pretrain(row, run, steps, seed)
            self.figures.add(**key, cell="pretraining", steps=steps, seconds=processor_seconds() - began)
        return run

    def probe(self, row: str, minutes: float, seed: int) -> None:
        """Reads a pretrained encoder beside what it must beat."""
        key = {"data": self.name, "row": row, "minutes": minutes, "seed": seed}
        run = self.pretrained(row, minutes, seed)
        if self.figures.have(**key, cell="probe"):
            return
        readers = tuple(reader for _, reader in READERS.values())
        result = tymbal.probe(
            run,
            self.asked,
            folds=self.set.folds,
            readers=readers,
            pooling=("grid",),
            layer="both",
            seed=seed,
            device=self.arguments.device,
        )
        verdict = result.verdict
        assert verdict is not None
        lines = {
            f"{each.features} {each.pooling} {'last' if each.layer is None else each.layer} {each.reader}": next(
                iter(each.figures.values())
            )
            for each in result.rows
        }
        # Middle and last layer side by side, where a line has layers.
        figures = {
            f"{each.features}{suffix}": next(iter(each.figures.values()))
            for each in result.rows
            for suffix, reader in READERS.values()
            if each.reader == reader and (each.layer == "both" or each.features in ("baseline", "plain"))
        }
        shape = tymbal.load_model(run).description.encoder
        self.figures.add(
            **key,
            cell="probe",
            accuracy=verdict.model,
            reading=verdict.pooling,
            margin=verdict.margin,
            best_other=verdict.best,
            pays=verdict.pays,
            patch="x".join(map(str, shape.patch)),
            **figures,
            lines=lines,
        )

    def yardstick(self, title: str, file: str) -> None:
        """Reads the embeddings of another model in the way of a probe, where they are there."""
        path = self.folder / file
        if not path.exists() or self.figures.have(data=self.name, cell="yardstick", row=title):
            return
        with np.load(path) as found:
            features = dict(zip(found["clips"].tolist(), found["embeddings"], strict=True))
        clips = [clip for clip in self.manifest if clip.labels]
        if self.set.folds is None:
            parts = [[clip.split == "validation" for clip in clips]]
        else:
            parts = [[_fold(clip) == str(fold + 1) for clip in clips] for fold in range(self.set.folds)]
        hits: dict[str, float] = {}
        classes = sorted({clip.labels[0] for clip in clips})
        for asked in parts:
            ordered = [clip for clip, out in zip(clips, asked, strict=True) if not out]
            learned = len(ordered)
            ordered += [clip for clip, out in zip(clips, asked, strict=True) if out]
            truth = np.array([[clip.labels[0] == name for name in classes] for clip in ordered])
            groups = [_fold(clip) if self.set.folds else clip.group or clip.id for clip in ordered[:learned]]
            task = ProbeTask(
                train=truth[:learned],
                validation=truth[learned:],
                groups=groups,
                multilabel=False,
                neighbours=10,
                seed=1,
            )
            values = np.array([features[clip.id] for clip in ordered])
            read = task.run(values, name="model", pooling=title, readers=[reader for _, reader in READERS.values()])
            for row in read:
                hits[row.reader] = hits.get(row.reader, 0.0) + row.figures["accuracy"] / len(parts)
        key = {"data": self.name, "row": title, "seed": 1, "cell": "yardstick"}
        found = {f"model{suffix}": hits[reader] for suffix, reader in READERS.values()}
        self.figures.add(**key, accuracy=hits["logistic"], **found)

    def _pretrain(self, row: str, run: Path, steps: int, seed: int) -> None:
        settings = OBJECTIVES[row] | {"max_steps": steps, "max_minutes": NEVER}
        settings |= {"seed": seed, "device": self.arguments.device}
        if row not in ("default", "joint before"):
            settings |= self._shape()
        if self.arguments.short:
            settings |= {"width": 32, "depth": 2, "heads": 2, "batch_size": 8}
        tymbal.pretrain(self.store, run, **settings, **STILL)

    def _shape(self) -> dict[str, Any]:
        """Width, depth, heads, stem and patch of the default, as any of its runs has them."""
        config = self._chosen.encoder
        shape = {name: getattr(config, name) for name in ("width", "depth", "heads", "stem")}
        return shape | {"patch": "x".join(map(str, config.patch))}

    @property
    def _chosen(self) -> Any:
        """The description of a model of the default: what it chose for this sound."""
        made = self.figures.have(data=self.name, row="default", cell="pretraining")
        if not made:
            return tymbal.load_model(
                self.pretrained("default", self.arguments.minutes[0], self.arguments.seeds[0])
            ).description
        run = self.folder / f"default-{made[0]['minutes']:g}-{made[0]['seed']}"
        return tymbal.load_model(run).description

    def _steps(self, row: str, minutes: float) -> int:
        """How many steps the budget holds, the start of the verb included: from runs of few and of more steps."""
        if self.arguments.short:
            return 3
        key = {"data": self.name, "row": row, "seed": 0, "cell": "pace"}
        if not self.figures.have(**key):
            spent = {}
            for steps in (8, 8, 48):  # the first one warms up
                folder = self.folder / "timing"
                shutil.rmtree(folder, ignore_errors=True)
                began = processor_seconds()
                self._pretrain(row, folder, steps, 0)
                spent[steps] = processor_seconds() - began
            # As with --max-minutes, no more than the epochs that the verb then takes without a flag.
            chosen = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))["settings"]
            batches = sum(clip.split == "train" for clip in self.manifest) // chosen["batch_size"]
            most = min(NEVER, chosen["epochs"] * batches)
            shutil.rmtree(folder)
            each = (spent[48] - spent[8]) / 40
            self.figures.add(**key, each=each, start=max(0.0, spent[8] - 8 * each), most=most)
        pace = self.figures.have(**key)[0]
        return max(10, min(round(pace["most"]), round((60 * minutes - pace["start"]) / pace["each"])))

    def speed(self) -> None:
        """What a step of the default spends on views, and its arithmetic beside that of the tokens that it sees."""
        key = {"data": self.name, "row": "default", "seed": 0, "cell": "speed"}
        if not self.figures.have(**key):
            run = self.folder / "timing"
            shutil.rmtree(run, ignore_errors=True)
            steps = 6 if self.arguments.short else 40
            self.figures.add(**key, **step_figures(lambda: self._pretrain("default", run, steps, 0)))
            shutil.rmtree(run)

    # Fine-tuning

    def finetune(self, row: str, minutes: float, seed: int, labels: int | None, draw: int) -> None:
        """Fine-tunes from a pretraining (or from nothing) on a few or all labels, in every augmentation."""
        amount = "all" if labels is None else str(labels)
        for augmentation, augmented in AUGMENTED.items():
            key = {"data": self.name, "row": row, "minutes": minutes, "seed": seed, "labels": amount, "draw": draw}
            if self.figures.have(**key, augmentation=augmentation):
                continue
            start = self._shape() if row == "nothing" else {"from_": self.pretrained(row, minutes, seed)}
            start |= {"pooling": self._chosen.own_grid}  # the same head for all
            store = self._labelled(labels, draw)
            run = self.folder / "finetune"
            shutil.rmtree(run, ignore_errors=True)
            steps = 3 if self.arguments.short else FEW_STEPS if labels else ALL_STEPS
            settings = FINETUNE | augmented | start | {"max_steps": steps, "seed": seed + draw}
            began = processor_seconds()
            result = tymbal.finetune(store, run, device=self.arguments.device, **settings, **STILL)
            self.figures.add(
                **key,
                augmentation=augmentation,
                cell=f"fine-tuned, {amount} labels",
                accuracy=result.metrics["eval_accuracy"],
                steps=steps,
                seconds=processor_seconds() - began,
            )
            shutil.rmtree(run)

    def _labelled(self, labels: int | None, draw: int) -> Path:
        """The store of some labelled clips and those that are asked; with folds, draw by draw another fold."""
        folds = self.set.folds
        fold = None if folds is None else str(draw % folds + 1)
        clips = [clip for clip in self.manifest if clip.labels]
        if fold is not None:
            clips = [clip.but(split="validation" if _fold(clip) == fold else "train") for clip in clips]
        asked = [clip for clip in clips if clip.split == "validation"]
        learned = few([clip for clip in clips if clip.split == "train"], labels, draw)
        amount = "all" if labels is None else f"{labels}-{draw}"
        title = f"store-{amount}" if fold is None or labels is not None else f"store-all-{fold}"
        return self._prepared(title, (*learned, *asked))


def _fold(clip: tymbal.Clip) -> str:
    return Path(clip.file).name[0]


def run(arguments: argparse.Namespace, figures: Figures) -> None:
    """Computes what is missing: all sets of a seed and budget before the next, so that a run cut short shows all."""
    trials = [Trial(name, arguments, figures) for name in arguments.sets]
    for trial in trials:
        trial.yardstick("BirdNET V2.4", "birdnet.npz")
        if arguments.speed:
            trial.speed()
    for seed in arguments.seeds:
        for minutes in arguments.minutes:
            for trial in trials:
                for row in arguments.rows:
                    trial.probe(row, minutes, seed)
            for trial in trials:
                for labels in arguments.labels:
                    for draw in range(arguments.draws):
                        trial.finetune("nothing", 0, seed, labels, draw)
                        for row in arguments.starts:
                            trial.finetune(row, minutes, seed, labels, draw)


def table(figures: Figures) -> Iterator[str]:
    """All figures as markdown: means and standard deviations over seeds (and draws of labels), in percent."""
    names = [name for name in SETS if figures.have(data=name, cell="probe")]
    probes = figures.have(cell="probe")
    for title, (suffix, _) in READERS.items():
        yield f"| {title}, % | " + " | ".join(SETS[name].title for name in names) + " |"
        yield "|---|" + "---:|" * len(names)
        for line in ("plain", "random", "random+plain"):
            # Those beside the default, whose patch they have; once a seed.
            beside = {(row["data"], row["seed"]): row for row in figures.have(cell="probe", row="default")}
            yield _row(line, list(beside.values()), line + suffix, names)
        for row, minutes in _arms(probes):
            of_arm = figures.have(cell="probe", row=row, minutes=minutes)
            yield _row(f"{row}, {minutes:g} min", of_arm, "model" + suffix, names)
            if row == "default":
                yield _row(f"{row} + plain, {minutes:g} min", of_arm, "model+plain" + suffix, names)
        yardsticks = figures.have(cell="yardstick")
        for row in dict.fromkeys(each["row"] for each in yardsticks):
            yield _row(row, figures.have(cell="yardstick", row=row), "model" + suffix, names)
        yield ""
    yield from _verdicts(probes)
    for name in names:
        yield from _finetuned(figures, name)
    yield from _paces(figures, names)


def _row(title: str, rows: list[dict[str, Any]], figure: str, names: list[str]) -> str:
    cells = [spread([row[figure] for row in rows if row["data"] == name and figure in row]) for name in names]
    return f"| {title} | " + " | ".join(cells) + " |"


def _arms(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    arms = {(row["row"], row["minutes"]) for row in rows}
    return sorted(arms, key=lambda arm: (list(OBJECTIVES).index(arm[0]), arm[1]))


def _verdicts(probes: list[dict[str, Any]]) -> Iterator[str]:
    yield "| default | seed | patch | reading | model | best of plain and random | difference, 95 % margin |"
    yield "|---|---:|---|---|---:|---:|---:|"
    for row in probes:
        if row["row"] == "default":
            difference = f"{100 * (row['accuracy'] - row['best_other']):+.1f} ± {100 * row['margin']:.1f}"
            figures = f"{100 * row['accuracy']:.1f} | {100 * row['best_other']:.1f} | {difference}"
            what = f"{SETS[row['data']].title}, {row['minutes']:g} min | {row['seed']}"
            yield f"| {what} | {row['patch']} | {row['reading']} | {figures} |"
    yield ""


def _finetuned(figures: Figures, name: str) -> Iterator[str]:
    rows = [row for row in figures.have(data=name) if "labels" in row]
    amounts = [amount for amount in ("1", "5", "10", "all") if any(row["labels"] == amount for row in rows)]
    if not rows:
        return
    yield f"| {SETS[name].title}: fine-tuned, % | " + " | ".join(amounts) + " |"
    yield "|---|" + "---:|" * len(amounts)
    for start, minutes in sorted({(row["row"], row["minutes"]) for row in rows}, key=lambda arm: (arm[1], arm[0])):
        for augmentation in AUGMENTED:
            of_arm = [row for row in rows if (row["row"], row["minutes"]) == (start, minutes)]
            of_arm = [row for row in of_arm if row["augmentation"] == augmentation]
            cells = [spread([row["accuracy"] for row in of_arm if row["labels"] == amount]) for amount in amounts]
            budget = f", {minutes:g} min" if minutes else ""
            yield f"| from {start}{budget}, {augmentation} | " + " | ".join(cells) + " |"
    yield ""


def _paces(figures: Figures, names: list[str]) -> Iterator[str]:
    speeds = {name: row for name in names for row in figures.have(data=name, cell="speed")}
    parts = (f"{SETS[name].title} {100 * row['views']:.0f} %, {row['arithmetic']:.2f}" for name, row in speeds.items())
    if speeds:
        yield "A step of the default: the views' share of its time, and its arithmetic over that of visible tokens: "
        yield "; ".join(parts) + "."
        yield ""
    yield "| processor milliseconds a step | " + " | ".join(SETS[name].title for name in names) + " |"
    yield "|---|" + "---:|" * len(names)
    for row in OBJECTIVES:
        cells = [[1000 * each["each"] for each in figures.have(data=name, row=row, cell="pace")] for name in names]
        if any(cells):
            yield f"| {row} | " + " | ".join(f"{cell[0]:.0f}" if cell else "" for cell in cells) + " |"
    yield ""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="with esc10/, fsdd/, arabic_commands/"
    )
    parser.add_argument("--output", type=Path, default=Path("learning"), help="folder for stores, runs and figures")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument(
        "--minutes", nargs="+", type=float, default=[1.0, 4.0], help="processor minutes of a pretraining"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--rows", nargs="*", choices=list(OBJECTIVES), default=["default"], help="what is probed")
    parser.add_argument("--starts", nargs="*", choices=list(OBJECTIVES), default=["default"], help="what is fine-tuned")
    parser.add_argument("--labels", nargs="*", type=_amount, default=[1, 5, 10, None], help="a class, as in 1 5 all")
    parser.add_argument("--draws", type=int, default=5, help="times that labels are drawn anew")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, help="about so many clips of each set, evenly taken")
    parser.add_argument("--speed", action="store_true", help="also time the parts of a step")
    parser.add_argument("--table", action="store_true", help="only show what is there")
    parser.add_argument("--short", action="store_true", help="under a minute: proves the machinery, teaches nothing")
    arguments = parser.parse_args()
    if arguments.short:
        small = {"clips": 120, "minutes": [1.0], "labels": [1, None], "draws": 1, "rows": ["default", "mpg"]}
        vars(arguments).update(small)
    return arguments


def _amount(text: str) -> int | None:
    return None if text == "all" else int(text)


def main() -> None:
    arguments = parse()
    arguments.output.mkdir(parents=True, exist_ok=True)
    figures = Figures(arguments.output / "figures.jsonl")
    if not arguments.table:
        run(arguments, figures)
    print("\n".join(table(figures)))
    print(f"{date.today().isoformat()}, {machine()}, {processor_seconds() / 60:.0f} processor minutes this time\n")
    print(f"    python {shlex.join(sys.argv)}")


if __name__ == "__main__":
    main()
