"""Pictures from the course of a pretraining: what a mask hid of a few validation clips, and what was rebuilt.

    run/rebuilt/00000120.safetensors    the clips, what was hidden of them, and what stood there after step 120

They are written while it trains, since most checkpoints are gone at the end. Masks are those of the evaluation, so that
epochs compare. Of many pictures those remain that lie about evenly on a logarithmic scale, where each is about as far
from the next as learning is; the first and the last always. A resumed run deletes what lies behind its checkpoint.

`joint` and `mpg` rebuild masked patches, `reconstruction` the whole spectrogram. `mpc` rebuilds nothing, but solves a
puzzle: of the hidden patches of a clip it tells which one belongs where, and that can be laid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from typing_extensions import TypeIs

from tymbal.files import parse_json, replace_file
from tymbal.objectives.contract import RebuildingObjective, Rebuilt
from tymbal.store.dataset import NormalisedBatch

__all__ = [
    "MOST",
    "Snapshot",
    "can_rebuild",
    "kept_steps",
    "read_snapshots",
    "rebuilt_by",
    "snapshot_files",
    "write_snapshot",
]

MOST = 8
"""Pictures that remain."""

_ENDING = ".safetensors"
_SCHEMA = 1
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Snapshot:
    """The spectrograms rebuilt at one evaluation.

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


def kept_steps(steps: Sequence[int], most: int = MOST) -> list[int]:
    """The steps to keep: the first, the last, and between them those that leave the smallest gaps."""
    remaining = sorted(steps)
    while len(remaining) > most:
        gaps = [math.log(remaining[place + 1] / remaining[place - 1]) for place in range(1, len(remaining) - 1)]
        remaining.pop(1 + int(np.argmin(gaps)))
    return remaining


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Writes a snapshot, whole or not at all.

    Raises:
        OSError: The disk is full, or the like.
    """
    rebuilt = snapshot.rebuilt
    facts = {"schema": _SCHEMA, "step": snapshot.step, "epoch": snapshot.epoch, "names": snapshot.names}
    tensors = {
        "rows": np.array(snapshot.rows, np.int64),
        "frames": snapshot.frames,
        "true": _half(rebuilt.true),
        "hidden": rebuilt.hidden,
        "made": _half(rebuilt.made),
        "error": rebuilt.error,
    }
    with replace_file(folder / f"{snapshot.step:08}{_ENDING}") as aside:
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(contiguous, aside, metadata={"tymbal": json.dumps({**facts, "puzzle": rebuilt.puzzle})})


def read_snapshots(folder: Path) -> list[Snapshot]:
    """Reads the snapshots, ordered by step; unreadable files are skipped."""
    snapshots: list[Snapshot] = []
    for path in snapshot_files(folder).values():
        try:
            with safe_open(path, "np") as file:
                facts = parse_json((file.metadata() or {})["tymbal"])
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
            snapshots.append(Snapshot(facts["step"], facts["epoch"], rows, names, values["frames"], rebuilt))
        except (OSError, AttributeError, KeyError, TypeError, ValueError, SafetensorError):
            continue
    return snapshots


def snapshot_files(folder: Path) -> dict[int, Path]:
    """The files of snapshots in a folder, by step."""
    paths = sorted(folder.glob(f"*{_ENDING}"))
    return {int(path.stem): path for path in paths if path.stem.isdigit()}


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    return np.nan_to_num(values).clip(-_LARGEST, _LARGEST).astype(np.float16)


def can_rebuild(objective: object) -> TypeIs[RebuildingObjective]:
    """Whether an objective rebuilds masked parts of a clip, which can be drawn."""
    return hasattr(objective, "rebuilt")


def rebuilt_by(objective: RebuildingObjective, batch: NormalisedBatch) -> Rebuilt:
    """Hides parts of clips as in every evaluation, and has them rebuilt.

    Args:
        objective: In evaluation mode.
        batch: The clips, on the device of the objective. What is hidden depends on their rows.
    """
    return objective.rebuilt(batch.x, batch.frames, torch.from_numpy(batch.rows).to(batch.x.device))
