"""Pictures from the course of a pretraining: what was rebuilt of a few validation clips, at evaluations over all of it.

    run/rebuilt/00000120.safetensors    the clips, what was hidden of them, and what stood there after step 120

They are written while it trains, since most checkpoints are gone at the end. Masks are those of the evaluation, so that
epochs compare. Of many pictures those remain that lie about evenly on a logarithmic scale, where each is about as far
from the next as learning is; the first and the last always. A resumed run deletes what lies behind its checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.files import replace_file
from tymbal.objectives.rebuilt import Rebuilding, Rebuilt, rebuilt_by
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.training.watch import undisturbed

__all__ = ["MOST", "Snapshot", "Snapshots", "kept_steps", "read_snapshots"]

MOST = 8
"""Pictures that remain."""

_ENDING = ".safetensors"
_SCHEMA = 1
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Snapshot:
    """What was rebuilt at one evaluation.

    Attributes:
        step: Optimizer steps that were done.
        epoch: Epochs that were done.
        rows: Rows of the store, [clips].
        names: File and start of each clip in its recording, in seconds.
        frames: Real frames of each, [clips].
        rebuilt: The pictures.
    """

    step: int
    epoch: float
    rows: tuple[int, ...]
    names: tuple[tuple[str, float], ...]
    frames: NDArray[np.int64]
    rebuilt: Rebuilt


class Snapshots(TrainerCallback):
    """Writes down with every evaluation what is rebuilt of some clips; in the first process only.

    Args:
        folder: Where to.
        objective: The objective.
        store: The validation clips.
        rows: Their rows.
        clips: How many of them.
    """

    def __init__(
        self, folder: Path, objective: Rebuilding, store: SpectrogramSource, rows: NDArray[np.int64], *, clips: int
    ) -> None:
        self._folder = folder
        self._objective = objective
        self._store = store
        self._rows = rows[np.unique(np.linspace(0, len(rows) - 1, clips + 2)[1:-1].round().astype(np.int64))]

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            for step, path in _files(self._folder).items():
                if step > state.global_step:
                    path.unlink()

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not len(self._rows):
            return
        with undisturbed():
            self._write(state.global_step, float(state.epoch or 0.0))
        files = _files(self._folder)
        for step in set(files) - set(kept_steps(list(files))):
            files[step].unlink()

    def _write(self, step: int, epoch: float) -> None:
        try:
            raw = torch.from_numpy(np.array(self._store.gather(self._rows)))
        except DamagedRowsError as error:
            self._rows = np.setdiff1d(self._rows, list(error.rows))
            if len(self._rows):
                self._write(step, epoch)
            return
        device = next(self._objective.parameters()).device
        frames = torch.from_numpy(self._store.real_frames[self._rows].astype(np.int64)).to(device)
        was_training = self._objective.training
        self._objective.eval()
        found = rebuilt_by(self._objective, raw.to(device), frames, torch.from_numpy(self._rows).to(device))
        self._objective.train(was_training)
        index = self._store.index
        names = [(index["file"][row].as_py() or "", index["start"][row].as_py() or 0.0) for row in self._rows.tolist()]
        facts = {"schema": _SCHEMA, "step": step, "epoch": epoch, "names": names, "puzzle": found.puzzle}
        tensors = {
            "rows": self._rows.astype(np.int64),
            "frames": frames.cpu().numpy(),
            "true": _half(found.true),
            "hidden": found.hidden,
            "made": _half(found.made),
            "error": found.error,
        }
        with replace_file(self._folder / f"{step:08}{_ENDING}") as aside:
            whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
            save_file(whole, aside, metadata={"tymbal": json.dumps(facts)})


def kept_steps(steps: Sequence[int], most: int = MOST) -> list[int]:
    """Which of some steps remain: the first, the last, and between them those that leave the smallest gaps."""
    kept = sorted(steps)
    while len(kept) > most:
        gaps = [math.log(kept[place + 1] / kept[place - 1]) for place in range(1, len(kept) - 1)]
        kept.pop(1 + int(np.argmin(gaps)))
    return kept


def read_snapshots(folder: Path) -> list[Snapshot]:
    """What was written, by step; files that cannot be read are passed over."""
    found: list[Snapshot] = []
    for path in _files(folder).values():
        try:
            with safe_open(path, "np") as file:
                facts = json.loads((file.metadata() or {})["tymbal"])
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            rebuilt = Rebuilt(
                true=values["true"].astype(np.float32),
                hidden=values["hidden"],
                made=values["made"].astype(np.float32),
                error=values["error"],
                puzzle=facts["puzzle"],
            )
            names = tuple((file, float(start)) for file, start in facts["names"])
            rows = tuple(values["rows"].tolist())
            found.append(Snapshot(facts["step"], facts["epoch"], rows, names, values["frames"], rebuilt))
        except (OSError, KeyError, ValueError, SafetensorError):
            continue
    return found


def _files(folder: Path) -> dict[int, Path]:
    paths = sorted(folder.glob(f"*{_ENDING}"))
    return {int(path.stem): path for path in paths if path.stem.isdigit()}


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    return np.nan_to_num(values).clip(-_LARGEST, _LARGEST).astype(np.float16)
