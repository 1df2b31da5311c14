"""Teachers: other models, which say of each of a store's clips what they hear.

Three kinds of teacher give vectors in order of time: a model that Tymbal opens, on the store's spectrograms or, where
it knows others, on the sound that they were made of; a table of embeddings (`inference.teacher_tables`); and ONNX files
(`inference.onnx_teacher`).
"""

from __future__ import annotations

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
from tymbal.errors import AudioError, ModelError, SettingsError
from tymbal.inference.encoding import check_features
from tymbal.inference.frontend import ComputeSettings, FrontEnd, ready_model
from tymbal.inference.streaming import Window
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.weights import fingerprint
from tymbal.objectives.distill import TeacherEncoder
from tymbal.progress import tell
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import readable_batches

__all__ = ["MOST_PARTS", "Answer", "SoundTeacher", "Teacher", "megabytes", "open_teacher"]

MOST_PARTS = 8
"""Most vectors of a clip, where the teacher decides how many."""

_BATCH = 32
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
        self.megabytes = megabytes(encoder.encoder)
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
        self.megabytes = megabytes(encoder.encoder)
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


def megabytes(encoder: SpectrogramEncoder) -> float:
    """Size of an encoder's weights in float32, in 10^6 bytes."""
    return sum(value.numel() for value in encoder.parameters()) * 4 / 1e6
