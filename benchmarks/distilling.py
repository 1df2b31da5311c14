"""What is a teacher worth? Students of it, alone and with LeJEPA, beside LeJEPA alone, at equal processor time.

    pip download --no-deps openwakeword==0.4.0               # Apache-2.0: its embedding; the wake words are CC BY-NC-SA
    unzip -j openwakeword-0.4.0-*.whl '*/melspectrogram.onnx' '*/embedding_model.onnx' -d teacher
    cp configs/speech_embedding.yaml teacher/
    python benchmarks/distilling.py --data ../shared/data --output distilling --minutes 2 --seeds 1 2 3 \
        --teachers arabic=teacher/speech_embedding.yaml digits=teacher/speech_embedding.yaml
    python benchmarks/distilling.py --output distilling --table

Sets, labels and budgets are those of `learning.py`: who is asked was never heard with a label, nothing is chosen by the
clips that are asked, and minutes are processor time of one thread, of the student's training alone: the teacher is
asked about all clips before. For each set and seed:

- `lejepa`: `tymbal pretrain` without a flag;
- `distill`: `--objective distill --teacher T`; `both`: the same `--with lejepa 0.5`;
- `tymbal probe` of each, middle and last layer side by side; beside the first one the teacher itself, with its size and
  speed;
- with `--labels 5`, fine-tuning on so few labels a word, from each and from nothing, 100 steps.

A table of embeddings as a teacher: `_birdnet_embeddings.py` writes SET/birdnet.npy with its rows. `SET=own` is a
teacher of our own: a base-size classifier that is fine-tuned from nothing on all labels (`--teacher-steps`); its
accuracy stands beside that of its students, which are then also fine-tuned on all labels.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import numpy as np

import learning
import tymbal
from _learning import SETS, Figures, machine, processor_seconds, spread
from tymbal.inference.taught import kept_vectors
from tymbal.inference.teachers import open_teacher
from tymbal.models.encoder_choice import is_full_height, patch_for, time_structure
from tymbal.settings import PretrainSettings
from tymbal.store.packed.packed_store import Store

ARMS: dict[str, dict[str, Any]] = {"lejepa": {}, "distill": {}, "both": {"with_": ("lejepa", "0.5")}}
READERS = ("ridge", "logistic", "knn")


class Trial(learning.Trial):
    """All cells of one set and its teacher."""

    def __init__(self, name: str, teacher: str, arguments: argparse.Namespace, figures: Figures) -> None:
        super().__init__(name, arguments, figures)
        self.teacher = str(self._own_teacher()) if teacher == "own" else teacher

    def _own_teacher(self) -> Path:
        """A classifier of base size that all labels have taught."""
        folder = self.folder / "own-teacher"
        if self.figures.have(data=self.name, row="own teacher"):
            return folder
        size = {"width": 48, "depth": 2, "heads": 2} if self.arguments.short else {"size": "base"}
        steps = 3 if self.arguments.short else self.arguments.teacher_steps
        settings = learning.FINETUNE | learning.AUGMENTED["light views"] | size | {"patch": self._patch()}
        began = processor_seconds()
        result = tymbal.finetune(
            self._labelled(None, 0), folder, max_steps=steps, device=self.arguments.device, **settings, **learning.STILL
        )
        spent = processor_seconds() - began
        accuracy = result.metrics["eval_accuracy"]
        self.figures.add(data=self.name, row="own teacher", seed=0, cell="own", accuracy=accuracy, seconds=spent)
        return folder

    def ask(self) -> None:
        """Has the teacher say its vectors of all clips, so that no arm pays for them."""
        if self.figures.have(data=self.name, cell="asking"):
            return
        began = processor_seconds()
        for path in {self.store, self.asked}:
            store = Store.open(path)
            patch = self._patch()
            compared = 4 if is_full_height(patch, store.mels) else 1
            teacher = open_teacher(self.teacher, store, parts=None, compared=compared, settings=PretrainSettings())
            kept_vectors(teacher, store, store.rows(), self.folder)
        self.figures.add(data=self.name, seed=0, row="teacher", cell="asking", seconds=processor_seconds() - began)

    def _patch(self) -> str:
        """The patch that the default chooses for this sound."""
        store = Store.open(self.store)
        structure = time_structure(store, store.rows("train"))
        return patch_for(structure, mels=store.mels, frames=store.frames)[0]

    def _pretrain(self, row: str, run: Path, steps: int, seed: int) -> None:
        settings: dict[str, Any] = {"max_steps": steps, "max_minutes": learning.NEVER, "seed": seed}
        settings |= {"device": self.arguments.device}
        if row != "lejepa":
            settings |= {"objective": "distill", "teacher": self.teacher, **ARMS[row]}
        if self.arguments.short:
            settings |= {"width": 32, "depth": 2, "heads": 2, "batch_size": 8}
        tymbal.pretrain(self.store, run, **settings, **learning.STILL)

    def _shape(self) -> dict[str, Any]:
        """The shape of any of its runs."""
        config = self._chosen.encoder
        return {name: getattr(config, name) for name in ("width", "depth", "heads")} | {
            "patch": "x".join(map(str, config.patch))
        }

    @property
    def _chosen(self) -> Any:
        row = next(each for each in self.figures.have(data=self.name, cell="pretraining"))
        return tymbal.load_model(self.folder / f"{row['row']}-{row['minutes']:g}-{row['seed']}").description

    def probe(self, row: str, minutes: float, seed: int) -> None:
        """Reads an arm, and with the first one the teacher."""
        key = {"data": self.name, "row": row, "minutes": minutes, "seed": seed}
        run = self.pretrained(row, minutes, seed)
        if self.figures.have(**key, cell="probe"):
            return
        first = not self.figures.have(data=self.name, row="teacher", cell="probe")
        result = tymbal.probe(
            run,
            self.asked,
            folds=self.set.folds,
            readers=READERS,
            pooling=("grid",),
            layer="both",
            random=first,
            teacher=self.teacher if first else None,
            seed=seed,
            device=self.arguments.device,
        )
        lines = {name: _read(result, name) for name in ("model", "model+plain")}
        self.figures.add(**key, cell="probe", accuracy=lines["model"]["ridge"], **_flat(lines))
        if first:
            beside = {name: _read(result, name) for name in ("teacher", "plain", "random")}
            for name, figures in beside.items():
                shown = {reader: value for reader, value in figures.items() if value is not None}
                sides = result.sides if name == "teacher" else {}
                self.figures.add(
                    data=self.name, row=name, seed=seed, cell="probe", accuracy=shown["ridge"], **shown, sides=sides
                )

    def few(self, row: str, minutes: float, seed: int, labels: int | None) -> None:
        """Fine-tunes on a few labels of each class (None: all), with light views, from an arm or from nothing."""
        key = {"data": self.name, "row": row, "minutes": minutes, "seed": seed, "labels": labels or "all"}
        if self.figures.have(**key):
            return
        start = self._shape() if row == "nothing" else {"from_": self.pretrained(row, minutes, seed)}
        settings = learning.FINETUNE | learning.AUGMENTED["light views"] | start | {"pooling": self._chosen.own_grid}
        run = self.folder / "finetune"
        shutil.rmtree(run, ignore_errors=True)
        steps = 3 if self.arguments.short else learning.FEW_STEPS if labels else learning.ALL_STEPS
        store = self._labelled(labels, seed if labels else 0)
        result = tymbal.finetune(
            store, run, max_steps=steps, seed=seed, device=self.arguments.device, **settings, **learning.STILL
        )
        self.figures.add(**key, cell=f"fine-tuned, {labels or 'all'} labels", accuracy=result.metrics["eval_accuracy"])
        shutil.rmtree(run)


def _read(result: tymbal.ProbeResult, features: str) -> dict[str, float | None]:
    """Accuracy by reader, of encoders with middle and last layer side by side."""
    found: dict[str, float | None] = {}
    for reader in READERS:
        rows = [row for row in result.rows if row.features == features and row.reader == reader]
        rows = [row for row in rows if row.layer == "both"] or rows
        found[reader] = rows[0].figures["accuracy"] if rows else None
    return found


def _flat(lines: dict[str, dict[str, float | None]]) -> dict[str, float]:
    return {
        f"{name} {reader}" if name != "model" else reader: value
        for name, figures in lines.items()
        for reader, value in figures.items()
        if value is not None
    }


def run(arguments: argparse.Namespace, figures: Figures) -> None:
    """Computes what is missing: all sets of a seed before the next, so that a run cut short shows all."""
    teachers = dict(each.split("=", 1) for each in arguments.teachers)
    trials = [Trial(name, teacher, arguments, figures) for name, teacher in teachers.items()]
    for trial in trials:
        trial.ask()
    for seed in arguments.seeds:
        for row in arguments.rows:
            for trial in trials:
                trial.probe(row, arguments.minutes, seed)
        for labels in arguments.labels:
            for row in ("nothing", *arguments.rows):
                for trial in trials:
                    trial.few(row, arguments.minutes if row != "nothing" else 0, seed, labels)
        for trial in (each for each in trials if figures.have(data=each.name, row="own teacher")):
            for row in arguments.rows:
                trial.few(row, arguments.minutes, seed, None)


def table(figures: Figures) -> Iterator[str]:
    """All figures as markdown: means and standard deviations over seeds, in percent."""
    names = [name for name in SETS if figures.have(data=name, cell="probe")]
    yield "| ridge / logistic regression / neighbours, % | " + " | ".join(SETS[name].title for name in names) + " |"
    yield "|---|" + "---:|" * len(names)
    for row in ("plain", "random", "teacher", *ARMS):
        cells = []
        for name in names:
            found = figures.have(data=name, row=row, cell="probe")
            cells.append(" / ".join(spread([each[reader] for each in found]) for reader in READERS) if found else "")
        if any(cells):
            yield f"| {row} | " + " | ".join(cells) + " |"
    for labels in sorted({row["labels"] for row in figures.rows if "labels" in row}, key=str):
        yield ""
        yield f"| fine-tuned, {labels} labels a class, % | " + " | ".join(SETS[name].title for name in names) + " |"
        yield "|---|" + "---:|" * len(names)
        for row in ("nothing", *ARMS):
            cells = [spread([each["accuracy"] for each in figures.have(data=n, row=row, labels=labels)]) for n in names]
            if any(cells):
                yield f"| {row} | " + " | ".join(cells) + " |"
    yield ""
    for name in names:
        for row in figures.have(data=name, row="own teacher"):
            own = f"our own teacher {100 * row['accuracy']:.1f} %, {row['seconds']:.0f} processor seconds"
            yield f"{SETS[name].title}: {own}"
        for row in figures.have(data=name, row="teacher", cell="probe"):
            yield f"{SETS[name].title}: " + "; ".join(
                f"{side} {_number(each['megabytes'])} MB, {_number(each['clips_per_second'])} clips a second"
                for side, each in row["sides"].items()
            )
        for row in ARMS:
            spent = [each["seconds"] for each in figures.have(data=name, row=row, cell="pretraining")]
            steps = [each["steps"] for each in figures.have(data=name, row=row, cell="pretraining")]
            if spent:
                yield f"{SETS[name].title}, {row}: {np.mean(spent):.0f} processor seconds, {np.mean(steps):.0f} steps"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teachers", nargs="+", default=[], metavar="SET=TEACHER")
    parser.add_argument("--rows", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--minutes", type=float, default=2.0, help="processor minutes of a student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--labels", type=int, nargs="*", default=[])
    parser.add_argument("--teacher-steps", type=int, default=300, help="steps of a teacher of our own")
    parser.add_argument("--clips", type=int, help="about so many clips of each set, to try it out")
    parser.add_argument("--short", action="store_true", help="a few steps of a small encoder, to try it out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--table", action="store_true", help="show what is there, compute nothing")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.clips, arguments.seeds = arguments.clips or 60, arguments.seeds[:1]
    arguments.output.mkdir(parents=True, exist_ok=True)
    figures = Figures(arguments.output / "figures.jsonl")
    if not arguments.table:
        run(arguments, figures)
    print(f"{date.today()}, {machine()}\n")
    print("\n".join(table(figures)))


if __name__ == "__main__":
    sys.exit(main())
