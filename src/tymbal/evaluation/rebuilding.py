"""What writes down in the course of a pretraining what is rebuilt: a callback of the trainer; see `snapshots`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.evaluation.snapshots import Snapshot, kept_steps, rebuilt_by, snapshot_files, write_snapshot
from tymbal.evaluation.watch import undisturbed
from tymbal.objectives.contract import RebuildingObjective
from tymbal.progress import tell
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

__all__ = ["Snapshots"]


class Snapshots(TrainerCallback):
    """Writes down with every evaluation what is rebuilt of some clips; in the first process only.

    Args:
        folder: The folder to write.
        objective: The objective.
        store: The validation clips.
        rows: Their rows.
        clips: How many of them.
    """

    def __init__(
        self,
        folder: Path,
        objective: RebuildingObjective,
        store: SpectrogramSource,
        rows: NDArray[np.int64],
        *,
        clips: int,
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
            for step, path in snapshot_files(self._folder).items():
                if step > state.global_step:
                    path.unlink()

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not len(self._rows):
            return
        try:
            with undisturbed():
                self._write(state.global_step, float(state.epoch or 0.0))
            files = snapshot_files(self._folder)
            for step in set(files) - set(kept_steps(list(files))):
                files[step].unlink()
        except (OSError, SafetensorError) as error:
            tell(f"What is rebuilt after step {state.global_step:,} is not kept for the report: {error}", warning=True)

    def _write(self, step: int, epoch: float) -> None:
        batch = next(
            normalised_batches(
                self._store,
                self._rows,
                normalisation=self._objective.normalisation,
                batch_size=len(self._rows),
                device=next(self._objective.parameters()).device,
            ),
            None,
        )
        if batch is None:  # no file of the clips can be read any more
            return
        was_training = self._objective.training
        self._objective.eval()
        rebuilt = rebuilt_by(self._objective, batch)
        self._objective.train(was_training)
        index, frames = self._store.index, batch.frames.cpu().numpy()
        names = [(index["file"][row].as_py() or "", index["start"][row].as_py() or 0.0) for row in batch.rows.tolist()]
        write_snapshot(self._folder, Snapshot(step, epoch, tuple(batch.rows.tolist()), tuple(names), frames, rebuilt))
