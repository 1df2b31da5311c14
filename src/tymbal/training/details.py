"""What an evaluation found of each class: `classes.csv`, and the counts behind it in every checkpoint.

    step,epoch,class,clips,predicted,precision,recall,f1,average_precision,auc

A resumed run takes the table up where its checkpoint was written, as it does `metrics.jsonl`. The counts lie in the
checkpoint of their step; so those of the best model are at hand at the end, whichever session evaluated it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.files import write_text

__all__ = ["ByClass", "ClassDetails", "read_counts"]

_FILE = "evaluation.safetensors"
_PLACE = ("step", "epoch", "class")
_KEPT = ("confusion", "decisions")


class ByClass(Protocol):
    """An objective that can tell what it found of each class."""

    def by_class(self, sums: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Figures of each class from the sums of an evaluation, each [classes]."""


class ClassDetails(TrainerCallback):
    """Writes down what every evaluation found of each class; in the first process only.

    Args:
        path: The table.
        objective: Reads the sums of an evaluation.
        classes: Names of the classes.
    """

    def __init__(self, path: Path, objective: ByClass, classes: Sequence[str]) -> None:
        self._path = path
        self._objective = objective
        self._classes = tuple(classes)
        self._sums: dict[str, Tensor] = {}
        self._step = -1

    def take(self, sums: Mapping[str, Tensor]) -> None:
        """Told the sums of an evaluation, before `on_evaluate`."""
        self._sums = dict(sums)

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        rows = list(csv.reader(io.StringIO(text, newline="")))
        write_text(self._path, _as_csv(rows[:1] + [row for row in rows[1:] if int(row[0]) <= state.global_step]))

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step = state.global_step
        if not state.is_world_process_zero:
            return
        figures = self._objective.by_class(self._sums)
        rows = [] if self._path.stat().st_size else [[*_PLACE, *figures]]
        columns = [column.tolist() for column in figures.values()]
        for name, *values in zip(self._classes, *columns, strict=True):
            rows.append([str(self._step), f"{state.epoch:.4f}", name, *map(_shown, values)])
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_as_csv(rows))

    def save(self, checkpoint: Path, step: int) -> None:
        """Writes the counts of the evaluation of this step, if there was one, into its checkpoint."""
        if step == self._step:
            counts = {name: self._sums[name].contiguous() for name in _KEPT if name in self._sums}
            save_file(counts, checkpoint / _FILE)


def read_counts(checkpoint: Path) -> dict[str, Tensor]:
    """The counts that lie in a checkpoint: `confusion`, or `decisions` with several labels a clip; or none."""
    file = checkpoint / _FILE
    return load_file(file) if file.is_file() else {}


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else "" if math.isnan(value) else f"{value:.6g}"
