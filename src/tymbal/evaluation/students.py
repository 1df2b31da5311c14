"""Students beside their teachers: how well the vectors are met, label by label, and how large and fast both are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.errors import TymbalError
from tymbal.features.bank import filter_bank
from tymbal.files import read_json, write_json
from tymbal.inference.taught import TEACHER_FILE, teacher_of
from tymbal.inference.teachers import Teacher, megabytes
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.objectives.distill import DistillObjective, DistillSettings
from tymbal.progress import tell
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches, readable_batches
from tymbal.store.vectors import RowVectors

__all__ = ["compare", "side_by_side", "speeds", "teacher_speed"]

_BATCH = 32
_TIMED = 64  # clips
_COMPARED, _HARDLY = 2000, 0.1
"""Clips on which student and teacher are compared at the end, and what share of its variance is hardly any."""


def compare(
    objective: DistillObjective,
    description: ModelDescription,
    data: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    settings: DistillSettings,
    run: Path,
) -> None:
    """Writes down how well the student meets its teacher on validation clips, and how large and fast both are.

    Args:
        objective: The student.
        description: Its description.
        data: The store of the clips, with the teacher's vectors.
        rows: Clips that the teacher knows; where there are none, all that it knows.
        settings: The teacher.
        run: The run folder.
    """
    try:
        teacher: Teacher | None = teacher_of(data, settings)
    except TymbalError:
        teacher = None
    rows = rows if len(rows) else data.rows()[data.taught.known(data.rows())] if data.taught is not None else rows
    rows = np.sort(np.random.default_rng(settings.seed).permutation(rows)[:_COMPARED])
    was_training = objective.training
    found = side_by_side(objective.eval(), description, data, rows, teacher)
    objective.train(was_training)
    file = run / TEACHER_FILE
    write_json(file, {**read_json(file), **found})
    rates = {name: found[name]["clips_per_second"] for name in ("teacher", "student")}
    met = f"{100 * found['fit']:.0f} % of the teacher's variance is met" if "fit" in found else "the student is saved"
    if rates["teacher"] and rates["student"]:
        met += f"; {rates['student']:,.0f} clips a second, the teacher {rates['teacher']:,.0f}"
    tell(met[0].upper() + met[1:])
    if found.get("fit", 1.0) < _HARDLY:
        tell("The student hardly meets its teacher: more epochs or a larger --size may", warning=True)


def teacher_speed(teacher: Teacher, rows: NDArray[np.int64]) -> float | None:
    """Clips a second that the teacher computes, reading not counted; None where it computes none."""
    try:
        teacher.trial(rows[:8])  # the first ones make room and choose kernels
        clips, seconds = teacher.trial(rows[:_TIMED])
    except TymbalError:
        return None
    return clips / seconds if clips and seconds > 0 else None


@torch.no_grad()
def _student_speed(
    encoder: SpectrogramEncoder,
    description: ModelDescription,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    hears: bool,
) -> float | None:
    """Clips a second that a student encodes, and, where its teacher hears sound, makes spectrograms of before.

    Args:
        encoder: The student, in evaluation mode.
        description: Its description.
        store: The store of the clips.
        rows: Clips to try it on.
        hears: Whether its teacher hears sound.
    """
    device = encoder.position_embedding.device
    parts = [(part, values.copy()) for part, values in readable_batches(store, rows[:_TIMED], batch_size=_BATCH)]
    bank = filter_bank(description.features)
    samples = description.features.samples_of(store.frames)
    times: list[float] = []
    for part, values in [*parts[:1], *parts]:
        waveforms = torch.zeros(len(part), samples)
        frames = torch.from_numpy(store.real_frames[part].astype(np.int64)).to(device)
        began = time.perf_counter()
        if hears:
            bank(waveforms)
        tokens = encoder(description.normalisation(torch.from_numpy(values).to(device), frames), frames=frames).tokens
        tokens.mean().item()  # waits for the device
        times.append(time.perf_counter() - began)
    seconds = sum(times[1:])  # the first one makes room and chooses kernels
    return sum(len(part) for part, _ in parts) / seconds if seconds > 0 else None


def side_by_side(
    objective: DistillObjective,
    description: ModelDescription,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    teacher: Teacher | None,
) -> dict[str, Any]:
    """How well a student meets its teacher on some clips, label by label, and how large and fast both are.

    Args:
        objective: The student, in evaluation mode.
        description: Its description.
        store: The store of the clips, with the teacher's vectors.
        rows: Clips that the teacher knows.
        teacher: The teacher; None where it is not there any more.

    Returns:
        `teacher` and `student` with `megabytes` and `clips_per_second`, None where they are not known; `clips`, `fit`
        and `cosine`; and `labels`, the last three of each label.
    """
    taught = store.taught
    met: dict[str, Any] = {"labels": {}}
    if taught is not None and len(rows):
        error, variance, cosine, read_rows = _met(objective, store, taught, rows)
        met |= _figures(error, variance, cosine)
        matrix = store.label_matrix(read_rows) > 0
        met["labels"] = {
            name: _figures(error[inside], variance[inside], cosine[inside])
            for name, inside in zip(store.labels, matrix.T, strict=True)
            if inside.any()
        }
    sides = speeds(teacher, objective.encoder, description, store, rows)
    return {**sides, "hears": teacher is None or teacher.hears, **met}


def speeds(
    teacher: Teacher | None,
    encoder: SpectrogramEncoder,
    description: ModelDescription,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
) -> dict[str, dict[str, float | None]]:
    """Size and speed of a teacher and a student, from sound where the teacher hears sound; None is not known."""
    hears = teacher is None or teacher.hears
    return {
        "teacher": {
            "megabytes": None if teacher is None else teacher.megabytes,
            "clips_per_second": None if teacher is None else teacher_speed(teacher, rows),
        },
        "student": {
            "megabytes": megabytes(encoder),
            "clips_per_second": _student_speed(encoder, description, store, rows, hears=hears),
        },
    }


def _met(
    objective: DistillObjective, store: SpectrogramSource, taught: RowVectors, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Squared error, variance and cosine of each clip that can be read, and their rows."""
    device = objective.target_mean.device
    parts: list[NDArray[np.float64]] = []
    read_rows: list[NDArray[np.int64]] = []
    for batch in normalised_batches(
        store, rows, normalisation=objective.normalisation, batch_size=_BATCH, device=device
    ):
        given = objective.predicted(batch.x, batch.frames)
        wanted = objective.standardised(torch.from_numpy(taught.gather(batch.rows)).to(device))
        figures = (
            (given - wanted).square().sum((1, 2)),
            wanted.square().sum((1, 2)),
            torch.nn.functional.cosine_similarity(given, wanted, dim=2).mean(1),
        )
        parts.append(torch.stack(figures).double().cpu().numpy())
        read_rows.append(batch.rows)
    error, variance, cosine = np.concatenate([np.empty((3, 0)), *parts], axis=1)
    return error, variance, cosine, np.concatenate([rows[:0], *read_rows])


def _figures(
    error: NDArray[np.float64], variance: NDArray[np.float64], cosine: NDArray[np.float64]
) -> dict[str, float | int]:
    fit = 1 - float(error.sum()) / max(float(variance.sum()), 1e-12)
    return {"clips": len(error), "fit": fit, "cosine": float(cosine.mean()) if len(cosine) else 0.0}
