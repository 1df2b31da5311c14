"""Teachers: what other models say of a store's clips, computed once, kept, and read like a store.

Three kinds of teacher give vectors in order of time: a model that Tymbal opens, on the store's spectrograms or, where
it knows others, on the sound that they were made of; a table of embeddings (`inference.teacher_tables`); and ONNX files
(`inference.onnx_teacher`). Their vectors are kept beside the store, in STORE.teachers, where the next run finds them,
or in the run where nothing may be written there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.audio.decode import read
from tymbal.audio.failures import Failure, write_failures
from tymbal.errors import AudioError, ModelError, SettingsError, StoreError, TymbalError
from tymbal.features.bank import filter_bank
from tymbal.files import read_json
from tymbal.inference.encoding import check_features
from tymbal.inference.frontend import ComputeSettings, FrontEnd, ready_model
from tymbal.inference.streaming import Window
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.weights import fingerprint
from tymbal.objectives.distill import DistillObjective, TeacherEncoder
from tymbal.progress import Progress, tell
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches, readable_batches
from tymbal.store.vectors import RowVectors

__all__ = [
    "MOST_PARTS",
    "TEACHER_FILE",
    "Answer",
    "SoundTeacher",
    "Teacher",
    "kept_vectors",
    "open_teacher",
    "recorded_vectors",
    "side_by_side",
    "speeds",
    "teacher_speed",
]

TEACHER_FILE = "teacher.json"
"""What a run says of its teacher: where its vectors are, how well they are met, and sizes and speeds."""

MOST_PARTS = 8
"""Most vectors of a clip, where the teacher decides how many."""

_BATCH = 32
_BLOCK = 1024  # rows that are kept or not as a whole
_TIMED = 64  # clips
_LEFT_OUT = "teacher.failures.csv"
_TABLES = (".parquet", ".csv", ".npy")


@dataclass(frozen=True)
class Answer:
    """What a teacher says of some rows.

    Attributes:
        rows: Rows that it says something of, int64 [n].
        values: Its vectors, float32 [n, parts, width].
        nothing: Other rows, with the reason.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    nothing: Mapping[int, str] = field(default_factory=dict)


class Teacher(ABC):
    """A teacher of the clips of one store.

    Attributes:
        name: The path that the user gave.
        parts: Vectors of a clip, in order of time.
        width: Numbers of a vector.
        facts: Everything that decides the vectors, but the clips.
        megabytes: Size of its weights in 10^6 bytes; None where that is not known.
        hears: Whether it is given sound, and not the store's spectrograms.
    """

    name: str
    parts: int
    width: int
    facts: Mapping[str, Any]
    megabytes: float | None = None
    hears: bool = False

    @abstractmethod
    def ask(self, rows: NDArray[np.int64]) -> Iterator[Answer]:
        """Asks about rows of the store, a batch at a time."""

    def trial(self, rows: NDArray[np.int64]) -> tuple[int, float]:
        """Clips that were computed of some rows, and the seconds that took; no clips where nothing is computed."""
        del rows
        return 0, 0.0


class _OnSpectrograms(Teacher):
    """A model that reads the store's spectrograms."""

    def __init__(self, encoder: TeacherEncoder, store: SpectrogramSource, name: str, device: torch.device) -> None:
        self.name, self.parts, self.width = name, encoder.parts, encoder.width
        self.facts = {"teacher": name, "model": fingerprint(encoder.encoder), "heard": "the store's spectrograms"}
        self.megabytes = _megabytes(encoder.encoder)
        self._encoder, self._store, self._device = encoder, store, device

    def ask(self, rows: NDArray[np.int64]) -> Iterator[Answer]:
        """Encodes the spectrograms of rows."""
        for part, spectrograms in readable_batches(self._store, rows, batch_size=_BATCH):
            yield Answer(part, self._vectors(part, spectrograms))

    def trial(self, rows: NDArray[np.int64]) -> tuple[int, float]:
        """Encodes some clips that were read before."""
        batches = [(part, values.copy()) for part, values in readable_batches(self._store, rows, batch_size=_BATCH)]
        began = time.perf_counter()
        for part, values in batches:
            self._vectors(part, values)
        return sum(len(part) for part, _ in batches), time.perf_counter() - began

    def _vectors(self, rows: NDArray[np.int64], spectrograms: NDArray[np.float16]) -> NDArray[np.float32]:
        frames = torch.from_numpy(self._store.real_frames[rows].astype(np.int64)).to(self._device)
        vectors: NDArray[np.float32] = (
            self._encoder(torch.from_numpy(spectrograms).to(self._device), frames).cpu().numpy()
        )
        return vectors


class SoundTeacher(Teacher):
    """A teacher that hears the sound that the store was made of, each clip in a window as long as the longest of them.

    Attributes:
        sample_rate: Of what it hears, in Hz.
        store: The store of the clips.
    """

    hears = True
    sample_rate: int
    store: SpectrogramSource

    @abstractmethod
    def hear(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Vectors of clips, each float32 [samples] and at most a window long: float32 [clips, parts, width]."""

    def window_samples(self) -> int:
        """Samples of the longest clip at the teacher's rate, at most those of the store's window."""
        features = self.store.features
        if features is None:
            raise SettingsError(
                "these spectrograms do not say of which sound they are made, and the teacher hears sound",
                path=self.store.path,
                advice="Prepare a store from the sound, or give a table of the teacher's embeddings.",
            )
        most = features.samples_of(self.store.frames)
        longest = int(self.store.clip_samples().max(initial=0))
        return round((min(longest, most) if longest > 0 else most) / features.sample_rate * self.sample_rate)

    def ask(self, rows: NDArray[np.int64]) -> Iterator[Answer]:
        """Reads the sound of rows, and hears it."""
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            sounds, nothing = self._sounds(part)
            known = np.array(sorted(sounds), np.int64)
            shape = (0, self.parts, self.width)
            values = self.hear([sounds[row] for row in known.tolist()]) if len(known) else np.empty(shape, np.float32)
            yield Answer(known, values, nothing)

    def trial(self, rows: NDArray[np.int64]) -> tuple[int, float]:
        """Hears some clips that were read before."""
        sounds = list(self._sounds(rows)[0].values())
        began = time.perf_counter()
        for start in range(0, len(sounds), _BATCH):
            self.hear(sounds[start : start + _BATCH])
        return len(sounds), time.perf_counter() - began

    def _sounds(self, rows: NDArray[np.int64]) -> tuple[dict[int, NDArray[np.float32]], dict[int, str]]:
        """The sound of rows, and why that of others cannot be read."""
        clips = self.store.index.select(["file", "start", "end"]).take(rows).to_pylist()
        most = self.window_samples()
        sounds: dict[int, NDArray[np.float32]] = {}
        nothing: dict[int, str] = {}
        for row, clip in zip(rows.tolist(), clips, strict=True):
            try:
                sound, _ = read(clip["file"], sample_rate=self.sample_rate, start=clip["start"], end=clip["end"])
            except AudioError as error:
                nothing[row] = error.what
            else:
                sounds[row] = sound[:most]
        return sounds, nothing


class _OnSound(SoundTeacher):
    """A model of other spectrograms, which it makes of the sound as it knows them."""

    def __init__(
        self,
        encoder: TeacherEncoder,
        description: ModelDescription,
        store: SpectrogramSource,
        name: str,
        device: torch.device,
    ) -> None:
        self.name, self.parts, self.width, self.store = name, encoder.parts, encoder.width, store
        self.facts = {"teacher": name, "model": fingerprint(encoder.encoder), "heard": "the sound of the clips"}
        self.megabytes = _megabytes(encoder.encoder)
        self.sample_rate = description.features.sample_rate
        # It normalises by itself what the front end would have normalised.
        self._encoder, self._front = encoder, FrontEnd(description, device)
        self._length = self.window_samples()

    def hear(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Computes the model's own spectrograms, and encodes them."""
        x, frames = self._front([Window(0, sound) for sound in sounds], length=self._length)
        vectors: NDArray[np.float32] = self._encoder.encoded(x, frames).cpu().numpy()
        return vectors


def open_teacher(
    path: str, store: SpectrogramSource, *, parts: int | None, compared: int, settings: ComputeSettings
) -> Teacher:
    """Opens a teacher for the clips of a store.

    Args:
        path: A model, a table of embeddings, or the description of an ONNX chain.
        store: The store.
        parts: Vectors of a clip; None lets the teacher decide.
        compared: Parts of the time that the student compares.
        settings: Device and precision.

    Raises:
        TymbalError: It cannot be read, or does not fit the clips.
    """
    place = Path(path)
    if place.suffix.lower() in (".yaml", ".yml"):
        from tymbal.inference.onnx_teacher import OnnxTeacher

        return OnnxTeacher(place, store, parts=parts, compared=compared)
    if place.suffix.lower() == ".onnx":
        raise SettingsError(
            "an ONNX file does not say what it hears",
            path=path,
            advice="Write a .yaml that says it: configs/speech_embedding.yaml is one. Give that as the teacher.",
        )
    if place.suffix.lower() in _TABLES:
        from tymbal.inference.teacher_tables import TableTeacher

        return TableTeacher(place, store, parts=parts, compared=compared)
    ready = ready_model(path, settings)
    encoder = TeacherEncoder(ready.loaded, parts=parts or compared)
    encoder.encoder.to(ready.device)
    try:
        check_features(store, ready.description, path=path)
    except ModelError as misfit:
        if store.features is None:
            raise
        first = misfit.what.splitlines()[-1].strip()
        tell(f"The teacher knows other spectrograms than the store's, and hears the sound ({first})")
        return _OnSound(encoder, ready.description, store, path, ready.device)
    return _OnSpectrograms(encoder, store, path, ready.device)


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
        advice = "It is left out. Add its row to the table, or put its sound back, and delete the kept vectors."
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
    return beside if store.description_files and writable else run / "teacher"


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
            "megabytes": _megabytes(encoder),
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


def _megabytes(encoder: SpectrogramEncoder) -> float:
    return sum(value.numel() for value in encoder.parameters()) * 4 / 1e6
