"""What a teacher says of a store's clips, asked once before a student learns, kept, and read like a store.

Vectors are kept beside the store, in STORE.teachers, where the next run finds them, or in the run where nothing may be
written there. A run writes down where they are, so that it goes on also where its teacher is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tymbal.audio.failures import Failure, write_failures
from tymbal.compute.processes import on_rank_zero
from tymbal.errors import ModelError, SettingsError, StoreError, TymbalError
from tymbal.files import read_json, write_json
from tymbal.inference.teachers import Answer, Teacher, open_teacher
from tymbal.objectives.distill import DistillSettings
from tymbal.progress import Progress, tell
from tymbal.store.base import SpectrogramSource
from tymbal.store.vectors import RowVectors

__all__ = ["TEACHER_FILE", "kept_vectors", "recorded_vectors", "taught", "teacher_of"]

TEACHER_FILE = "teacher.json"
"""What a run says of its teacher: where its vectors are, how well they are met, and sizes and speeds."""

_BLOCK = 1024  # rows that are kept or not as a whole
_FOR_SCALE = 512
"""Clips that tell the scale of the vectors of a teacher that is asked about views."""
_LEFT_OUT = "teacher.failures.csv"


def taught(
    data: SpectrogramSource,
    settings: DistillSettings,
    run: Path,
    train_rows: NDArray[np.int64],
    validation_rows: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Has the teacher say its vectors of the clips, as far as they are not kept, for the store to give with them.

    Args:
        data: The store, which has them in `taught` afterwards.
        settings: The teacher, and whether it is asked about views instead.
        run: The run folder.
        train_rows: Rows to learn from, int64 [n].
        validation_rows: Rows to validate on, int64 [n].

    Returns:
        The rows to learn from and to validate on of which it says something.

    Raises:
        SettingsError: There is no teacher, or it cannot be asked about views.
        TymbalError: It cannot be read or does not fit the clips.
    """
    asked = train_rows
    if settings.teacher_views:  # of the clips as they are it is asked only for the scale of its vectors
        asked = train_rows[np.unique(np.linspace(0, len(train_rows) - 1, _FOR_SCALE).astype(np.int64))]
    rows = np.unique(np.concatenate([asked, validation_rows]))

    def ask() -> str:
        file = run / TEACHER_FILE
        try:
            teacher = teacher_of(data, settings)
            if settings.teacher_views and (teacher.hears or teacher.megabytes is None):
                raise SettingsError(
                    f"the teacher {settings.teacher} does not read the store's spectrograms, of which views are drawn",
                    advice="Leave out teacher_views: it is then asked once about each clip as it is.",
                )
            vectors = kept_vectors(teacher, data, rows, run)
        except TymbalError as error:
            kept = recorded_vectors(file, data, rows)
            if kept is None or settings.teacher_views:
                raise
            tell(f"The teacher cannot be read any more ({error.what}); its kept vectors are taken", warning=True)
            vectors = kept
        known = int(vectors.known(rows).sum())
        write_json(file, {"teacher": settings.teacher, "kept": str(vectors.path), "known": known})
        return str(vectors.path)

    data.taught = RowVectors.open(Path(on_rank_zero(ask)))
    data.taught.learned = asked
    tell(
        f"The teacher gives {data.taught.width:,} numbers for each of {data.taught.parts} parts of a clip"
        if data.taught.parts > 1
        else f"The teacher gives {data.taught.width:,} numbers a clip"
    )
    if not settings.teacher_views:
        train_rows = train_rows[data.taught.known(train_rows)]
    validation_rows = validation_rows[data.taught.known(validation_rows)]
    if not len(train_rows):
        raise StoreError("the teacher says nothing of any clip to learn from", path=data.path)
    return train_rows, validation_rows


def teacher_of(data: SpectrogramSource, settings: DistillSettings) -> Teacher:
    """Opens the teacher of a distillation.

    Raises:
        SettingsError: None is given.
        TymbalError: It cannot be read, or does not fit the clips.
    """
    if settings.teacher is None:
        raise SettingsError(
            "distill learns from a teacher, and none is given",
            advice="Give --teacher: a model, a table of embeddings, or the .yaml of an ONNX file.",
        )
    parts, compared = settings.teacher_parts, settings.parts or 1
    return open_teacher(settings.teacher, data, parts=parts, compared=compared, settings=settings)


def kept_vectors(teacher: Teacher, store: SpectrogramSource, rows: NDArray[np.int64], run: Path) -> RowVectors:
    """The teacher's vectors of rows, computed as far as they are not kept yet.

    Clips that it has nothing to say of are named in `run/teacher.failures.csv`.

    Args:
        teacher: The teacher.
        store: The store of the clips.
        rows: Which of them.
        run: The run folder.

    Raises:
        StoreError: What is kept is damaged, or it says nothing of any of the clips.
        ModelError: What it says is no number.
    """
    facts = {**teacher.facts, "parts": teacher.parts, "clips": _identity(store)}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=10).hexdigest()
    shape = {"count": len(store), "parts": teacher.parts, "width": teacher.width}
    vectors = RowVectors.begin(_place(store, run, digest) / digest, **shape, facts=facts)
    reasons: dict[int, str] = {}
    if len(vectors.pending(rows)):
        with vectors.filling():
            pending = vectors.pending(rows)
            with Progress(len(pending), "Asking the teacher", unit="clips") as progress:
                for start in range(0, len(pending), _BLOCK):
                    _ask(teacher, vectors, pending[start : start + _BLOCK], reasons, progress)
    known = vectors.known(rows)
    if not known.all():
        files = store.index["file"].take(rows[~known]).to_pylist()
        said = [reasons.get(row, "missing: the teacher says nothing of it") for row in rows[~known].tolist()]
        advice = "It is left out. Add its row to the table, or put its sound back, and run again in a new folder."
        write_failures(
            run / _LEFT_OUT, [Failure(str(file), reason, advice) for file, reason in zip(files, said, strict=True)]
        )
        tell(
            f"{(~known).sum():,} clips of which the teacher says nothing are left out: {run / _LEFT_OUT}", warning=True
        )
    if not known.any():
        raise StoreError(
            f"the teacher {teacher.name} says nothing of any clip of this store",
            path=store.path,
            advice=f"{run / _LEFT_OUT} says why. Is it of the same recordings, and are they where they were?",
        )
    return vectors


def _ask(
    teacher: Teacher, vectors: RowVectors, rows: NDArray[np.int64], reasons: dict[int, str], progress: Progress
) -> None:
    """Keeps what the teacher says of a block of rows."""
    answers: list[Answer] = []
    for answer in teacher.ask(rows):
        if not np.isfinite(answer.values).all():
            raise ModelError(
                "the teacher's vectors are not finite numbers",
                path=teacher.name,
                advice="Use --precision float32. Does it hear samples at the scale that it expects?",
            )
        answers.append(answer)
        reasons.update(answer.nothing)
        progress.advance(len(answer.rows) + len(answer.nothing))
    known = np.concatenate([rows[:0], *(answer.rows for answer in answers)])
    shape = (0, vectors.parts, vectors.width)
    values = np.concatenate([np.empty(shape, np.float32), *(answer.values for answer in answers)])
    # What could not be read may be there again the next time.
    said = [row for answer in answers for row in answer.nothing if not teacher.hears]
    vectors.add(known, values, np.array(sorted(said), np.int64))


def recorded_vectors(file: Path, store: SpectrogramSource, rows: NDArray[np.int64]) -> RowVectors | None:
    """Kept vectors of a run that goes on, whose teacher need not be there any more; None where they are not the same.

    Args:
        file: What the run has written down of its teacher.
        store: The store of the clips.
        rows: The rows that the run asked for.
    """
    try:
        recorded = read_json(file)
        vectors = RowVectors.open(Path(recorded["kept"]))
        known = int(recorded["known"])
    except (OSError, ValueError, KeyError, TypeError, StoreError):
        return None
    same = vectors.facts.get("clips") == _identity(store) and vectors.count == len(store)
    return vectors if same and int(vectors.known(rows).sum()) == known else None


def _place(store: SpectrogramSource, run: Path, name: str) -> Path:
    """The folder for kept vectors of a name: beside a packed store, where they may be written; else in the run."""
    beside = store.path.absolute().with_name(f"{store.path.absolute().name}.teachers")
    places = (beside / name, beside, beside.parent)
    writable = os.access(next(place for place in places if place.exists()), os.W_OK)
    here = store.location == str(store.path)
    return beside if here and store.description_files and writable else run / "teacher"


def _identity(store: SpectrogramSource) -> str:
    """A hash of which clips a store has."""
    digest = hashlib.blake2b(digest_size=16)
    for file in store.description_files:
        digest.update(file.read_bytes())
    if not store.description_files:
        digest.update(str(store.path.absolute()).encode())
    clips = store.index.select(["id", "file", "start", "end", "frames"]).to_pydict()
    digest.update(json.dumps(clips).encode())
    return digest.hexdigest()
