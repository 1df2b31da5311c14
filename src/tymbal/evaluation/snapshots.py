"""Pictures from the course of a pretraining: what a mask hid of a few validation clips, and what was rebuilt."""

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
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import TypeIs, override

from tymbal.evaluation.watch import undisturbed
from tymbal.files import replace_file
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.objectives.masks import Masks
from tymbal.objectives.reconstruction import ReconstructionObjective
from tymbal.objectives.ssast import SSASTObjective, tell_apart
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import NormalisedBatch, normalised_batches

__all__ = [
    "MOST",
    "Rebuilding",
    "Rebuilt",
    "Snapshot",
    "Snapshots",
    "can_rebuild",
    "kept_steps",
    "read_snapshots",
    "rebuilt_by",
]

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
        index = self._store.index
        names = [(index["file"][row].as_py() or "", index["start"][row].as_py() or 0.0) for row in batch.rows.tolist()]
        facts = {"schema": _SCHEMA, "step": step, "epoch": epoch, "names": names, "puzzle": rebuilt.puzzle}
        tensors = {
            "rows": batch.rows,
            "frames": batch.frames.cpu().numpy(),
            "true": _half(rebuilt.true),
            "hidden": rebuilt.hidden,
            "made": _half(rebuilt.made),
            "error": rebuilt.error,
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


Rebuilding = SSASTObjective | ReconstructionObjective
"""The objectives of which there is something to draw."""


@dataclass(frozen=True)
class Rebuilt:
    """Clips as they are, what of them was hidden, and what the objective made of the rest.

    Attributes:
        true: Normalised spectrograms, float32 [clips, frames, mels].
        hidden: What the encoder did not see, bool [clips, frames, mels].
        made: Rebuilt spectrograms, float32 [clips, frames, mels].
        error: Of each clip the mean squared error of what was hidden, [clips]; of a puzzle the share of patches that
            lie wrong.
        puzzle: Whether patches were laid, and not rebuilt.
    """

    true: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    made: NDArray[np.float32]
    error: NDArray[np.float32]
    puzzle: bool


def can_rebuild(objective: nn.Module) -> TypeIs[Rebuilding]:
    """Whether there is something to draw."""
    return isinstance(objective, Rebuilding)


@torch.no_grad()
def rebuilt_by(objective: Rebuilding, batch: NormalisedBatch) -> Rebuilt:
    """Masks clips as in every evaluation, and has them rebuilt.

    Args:
        objective: In evaluation mode.
        batch: The clips, on the device of the objective. The masks depend on their rows.
    """
    rows = torch.from_numpy(batch.rows).to(batch.x.device)
    x, epoch = batch.x, torch.zeros_like(rows)
    if isinstance(objective, ReconstructionObjective):
        masked = objective.make_masks(x.shape[1], batch.frames, rows, epoch)
        made = objective.reconstruct(x.masked_fill(masked, 0.0)).float()
        return _rebuilt(x, masked, made)
    masks = objective.make_masks(x.shape[1], batch.frames, rows, epoch)
    tokens, patches = objective.predict(x, masks)[:, PREFIX_TOKENS:].float(), objective.encoder.patchify(x).float()
    encoder = objective.encoder
    true = _picture(encoder, patches)
    hidden = _picture(encoder, masks.mask.unsqueeze(2).expand_as(patches))
    if "gpred" in objective.heads:
        made = objective.heads["gpred"](tokens)
        if objective.normalize_targets:
            spread = patches.var(-1, keepdim=True, unbiased=False).add(1e-6).sqrt()
            made = made * spread + patches.mean(-1, keepdim=True)
        return _rebuilt(true, hidden, _picture(encoder, torch.where(masks.mask.unsqueeze(2), made, patches)))
    laid, wrong = _laid(objective, tokens, patches, masks)
    return _as_arrays(true, hidden, _picture(encoder, laid), wrong, puzzle=True)


def _laid(objective: SSASTObjective, tokens: Tensor, patches: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """Patches [clips, patches, area] with the hidden ones where the objective would put them, and the share wrong."""

    def chosen(values: Tensor) -> Tensor:
        return values.gather(1, masks.index.unsqueeze(2).expand(-1, -1, values.shape[2]))

    true = chosen(patches)
    choice = tell_apart(objective.heads["cpred"](chosen(tokens)), true, masks.valid)[1]
    right = (choice == torch.arange(choice.shape[1], device=choice.device)) & masks.valid
    put = true.gather(1, choice.unsqueeze(2).expand_as(true))
    put = torch.where(masks.valid.unsqueeze(2), put, true)
    laid = patches.scatter(1, masks.index.unsqueeze(2).expand_as(put), put)
    return laid, 1 - right.sum(1) / masks.valid.sum(1)


def _rebuilt(true: Tensor, hidden: Tensor, made: Tensor) -> Rebuilt:
    count = hidden.sum((1, 2)).clamp(min=1)  # masks of reconstruction may all happen to have no width
    error = torch.where(hidden, (made - true).square(), 0.0).sum((1, 2)) / count
    return _as_arrays(true, hidden, made, error, puzzle=False)


def _as_arrays(true: Tensor, hidden: Tensor, made: Tensor, error: Tensor, *, puzzle: bool) -> Rebuilt:
    floats = [each.float().cpu().numpy() for each in (true, made, error)]
    return Rebuilt(floats[0], hidden.cpu().numpy(), floats[1], floats[2], puzzle)


def _picture(encoder: SpectrogramEncoder, patches: Tensor) -> Tensor:
    """Patches [batch, patches, area] as pictures [batch, frames, mels]."""
    config = encoder.config
    (rows, columns), (tall, wide) = config.grid, config.patch
    shaped = patches.reshape(len(patches), rows, columns, tall, wide).permute(0, 2, 4, 1, 3)
    return shaped.reshape(len(patches), columns * wide, rows * tall)
