"""The records of a run: `metrics.jsonl`, the same in words in `log.txt`, and `classes.csv`.

Only the first process writes.

    step,epoch,class,clips,predicted,precision,recall,f1,average_precision,auc

A resumed run takes the table up where its checkpoint was written, as it does `metrics.jsonl`. The counts lie in the
checkpoint of their step; so those of the best model are at hand at the end, whichever session evaluated it.

elapsed   epoch    step
0:00:31    1.00      19  loss 1.023, accuracy 0.41, learning rate 9.3e-05, batch size 8
0:00:32    1.00      19  validation: loss 0.9813, accuracy 0.5
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.files import disk_errors, write_text
from tymbal.training.batches import BatchPlan
from tymbal.training.figures import HEADER, log_line, read_metrics

__all__ = ["ByClass", "ClassDetails", "MetricsFile", "read_counts"]

_CLASS_PLACE = ("step", "epoch", "class")
_COUNTS_FILE = "evaluation.safetensors"
_COUNTS = ("confusion", "decisions")


class MetricsFile(TrainerCallback):
    """Writes every logged figure to `metrics.jsonl`, one JSON object a line: step, epoch, seconds, figures.

    A resumed run takes the file up where its checkpoint was written: later lines, and a line that a kill cut short,
    go; so every step is in it once. `log.txt` says the same in words.

    Args:
        path: The file.
        log: The file in words.
        plan: Gives the batch size of each step.
        seconds: Gives the seconds of training so far.
    """

    def __init__(self, path: Path, log: Path, plan: BatchPlan, seconds: Callable[[], float]) -> None:
        self._path = path
        self._log = log
        self._plan = plan
        self._seconds = seconds
        self._file: IO[str] | None = None

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            past = [line for line in read_metrics(self._path) if line["step"] <= state.global_step]
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in past))
            write_text(self._log, HEADER + "".join(map(log_line, past)))
            self._file = self._path.open("a", encoding="utf-8")

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # This file is the history. The copy in the trainer's state would go into every checkpoint and grow for ever.
        state.log_history.clear()
        if self._file is None:
            return
        line = {"step": state.global_step, "epoch": round(state.epoch, 4), "seconds": round(self._seconds(), 2)}
        if "loss" in kwargs["logs"]:
            line["batch_size"] = self._plan.batch_size_of(state.global_step - 1)
        # JSON has no NaN; a reader that meets one in the middle of a file stops.
        figures = {name: _finite(value) for name, value in kwargs["logs"].items() if name != "epoch"}
        self._file.write(json.dumps({**line, **figures}) + "\n")
        self._file.flush()
        with self._log.open("a", encoding="utf-8") as log:
            log.write(log_line({**line, **figures}))

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing is lost without it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ByClass(Protocol):
    """An objective that has figures of each class."""

    def by_class(self, sums: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Figures of each class from the sums of an evaluation, each [classes]."""


class ClassDetails(TrainerCallback):
    """Appends the figures of each class to `classes.csv` with every evaluation.

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
        """Receives the sums of an evaluation, before `on_evaluate`."""
        self._sums = dict(sums)

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        try:
            rows = list(csv.reader(io.StringIO(text, newline="")))
        except csv.Error:
            rows = []
        whole = rows[:1] if rows and tuple(rows[0][: len(_CLASS_PLACE)]) == _CLASS_PLACE else []
        past = [row for row in rows[1:] if whole and len(row) == len(whole[0]) and row[0].isdecimal()]
        write_text(self._path, _as_csv([*whole, *(row for row in past if int(row[0]) <= state.global_step)]))

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step = state.global_step
        if not state.is_world_process_zero:
            return
        figures = self._objective.by_class(self._sums)
        rows = [] if self._path.stat().st_size else [[*_CLASS_PLACE, *figures]]
        columns = [column.tolist() for column in figures.values()]
        for name, *values in zip(self._classes, *columns, strict=True):
            rows.append([str(self._step), f"{state.epoch:.4f}", name, *map(_as_cell, values)])
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_as_csv(rows))

    def save(self, checkpoint: Path, step: int) -> None:
        """Writes the counts of this step's evaluation, if any, into its checkpoint."""
        if step == self._step:
            counts = {name: self._sums[name].contiguous() for name in _COUNTS if name in self._sums}
            save_file(counts, checkpoint / _COUNTS_FILE)


def read_counts(checkpoint: Path) -> dict[str, Tensor]:
    """The counts that lie in a checkpoint: `confusion`, or `decisions` with several labels a clip; or none."""
    file = checkpoint / _COUNTS_FILE
    with disk_errors(file):
        return load_file(file) if file.is_file() else {}


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _as_cell(value: float) -> str:
    return str(value) if isinstance(value, int) else "" if math.isnan(value) else f"{value:.6g}"
