"""What an evaluation found of each class, the average of weights, and the log that a person reads."""

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

__all__ = ["HEADER", "ByClass", "ClassDetails", "is_figure", "log_line", "read_counts"]

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


HEADER = f"{'elapsed':>8}{'epoch':>8}{'step':>8}\n"

_LINE_PLACE = ("step", "epoch", "seconds")
_VALIDATION = "eval_"


def is_figure(name: str) -> bool:
    """Whether a logged value says something of the model, not of the speed of its evaluation."""
    return name not in _LINE_PLACE and not name.endswith(("_runtime", "_per_second"))


def log_line(line: Mapping[str, Any]) -> str:
    """One line of `metrics.jsonl` in words, with its newline."""
    figures = {name: value for name, value in line.items() if is_figure(name)}
    of_validation = any(name.startswith(_VALIDATION) for name in figures)
    order = sorted(figures, key=lambda name: (not name.endswith("loss"), name == "batch_size"))
    told = [f"{name.removeprefix(_VALIDATION).replace('_', ' ')} {_figure_text(figures[name])}" for name in order]
    minutes, seconds = divmod(int(line["seconds"]), 60)
    elapsed = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    what = "validation: " if of_validation else ""
    return f"{elapsed:>8}{line['epoch']:>8.2f}{line['step']:>8}  {what}{', '.join(told)}\n"


def _figure_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not a number" if value is None else f"{value:,}"
