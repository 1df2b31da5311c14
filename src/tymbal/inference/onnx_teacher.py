"""Teachers that are ONNX files, one or a chain of them, run by onnxruntime as a small YAML says.

    sample_rate: 16000      # Hz
    scale: 32767            # a sample of full scale becomes this
    before: 0.5             # seconds of silence before each clip
    every: 0.08             # seconds from one vector to the next
    hears: 0.775            # seconds of sound that one vector is of
    chain:
      - file: melspectrogram.onnx      # beside this file, or in `folder`
        multiply: 0.1
        add: 2.0
      - file: embedding_model.onnx
        window: 76                     # frames of what comes in; without it, all of it at once
        step: 8
        shape: [-1, 76, 32, 1]

The first file takes waveforms, or, with `spectrogram` (settings of a filter bank), log-mel values [time, bins]. What
comes out of the last one is one vector, or one after the other in time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal import config as configuration
from tymbal.errors import ModelError, SettingsError
from tymbal.features.bank import filter_bank
from tymbal.features.normalisation import time_parts
from tymbal.inference.teachers import MOST_PARTS, SoundTeacher
from tymbal.settings import FeatureSettings
from tymbal.settings.fields import check
from tymbal.store.base import SpectrogramSource

__all__ = ["OnnxTeacher"]


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """How a chain of ONNX files is run.

    Attributes:
        sample_rate: Rate of the sound that it hears, in Hz.
        scale: What samples from -1 to 1, or log-mel values, are multiplied by.
        offset: What is added then.
        before: Seconds of silence before each clip: who has learned to answer when something ends wants it to end late.
        shortest: Seconds of silence and sound that it needs at least.
        every: Seconds from one vector to the next.
        hears: Seconds of sound that one vector is of; with `every`, vectors that reach into the silence behind a short
            clip are left out.
        folder: Folder of the files. None is that of the description.
    """

    verb = "the description of ONNX files"

    sample_rate: int
    scale: float = 1.0
    offset: float = 0.0
    before: float = 0.0
    shortest: float = 0.0
    every: float | None = None
    hears: float = 0.0
    folder: str | None = None

    def __post_init__(self) -> None:
        check(self.sample_rate >= 1, "sample_rate", self.sample_rate, "a rate in Hz, 1 or more")
        check(self.every is None or self.every > 0, "every", self.every, "a time in seconds above 0")
        for name in ("before", "shortest", "hears"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "a time in seconds, 0 or more")


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One file of the chain.

    Attributes:
        file: The file.
        window: Samples or frames of what comes in that it takes at once. None takes all.
        step: Samples or frames from one window to the next. None is the window.
        shape: What comes in is brought into this shape, -1 for what is left. None is [1, ...] without windows,
            [windows, ...] with them.
        output: Name of the output that is taken. None is the first.
        multiply: What comes out is multiplied by this.
        add: This is added then.
    """

    verb = "a file of the chain"

    file: str
    window: int | None = None
    step: int | None = None
    shape: tuple[int, ...] = ()
    output: str | None = None
    multiply: float = 1.0
    add: float = 0.0

    def __post_init__(self) -> None:
        check(self.window is None or self.window >= 1, "window", self.window, "1 or more")
        check(self.step is None or self.step >= 1, "step", self.step, "1 or more")


class OnnxTeacher(SoundTeacher):
    """A chain of ONNX files.

    Args:
        path: Its description.
        store: The store of the clips.
        parts: Vectors of a clip; None takes as many as it gives of a window, at most 8, or 1 where the student compares
            one part.
        compared: Parts of the time that the student compares.

    Raises:
        SettingsError: The description is wrong, a file is missing, or onnxruntime is.
        ModelError: A file cannot be run so.
    """

    def __init__(self, path: Path, store: SpectrogramSource, *, parts: int | None, compared: int) -> None:
        self._path, self.store, self.name = path, store, str(path)
        content = configuration.read_yaml(path)
        chain, bank = content.pop("chain", None), content.pop("spectrogram", None)
        _require(content, "sample_rate", path)
        self._settings = configuration.from_mapping(ChainSettings, content, source=path)
        self.sample_rate = self._settings.sample_rate
        if not isinstance(chain, list) or not chain or not all(isinstance(stage, dict) for stage in chain):
            raise SettingsError(
                "the description has no chain of files",
                path=path,
                advice="Write 'chain:' and under it '- file: NAME.onnx'.",
            )
        for stage in chain:
            _require(stage, "file", path)
        self._stages = [configuration.from_mapping(StageSettings, stage, source=path) for stage in chain]
        self._bank = None
        if bank is not None:
            known = {"sample_rate": self.sample_rate, **bank}
            self._bank = filter_bank(configuration.from_mapping(FeatureSettings, known, source=path))
        folder = path.parent / (self._settings.folder or "")
        files = [folder / stage.file for stage in self._stages]
        self._sessions = [_session(file) for file in files]
        self.megabytes = sum(file.stat().st_size for file in files) / 1e6
        hashes = [hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in files]
        described = [configuration.to_mapping(each) for each in (self._settings, *self._stages)]
        self.facts = {"teacher": self.name, "files": hashes, "description": [*described, bank]}
        self._before, least = self._samples(self._settings.before), self._samples(self._settings.shortest)
        self._window = max(self._before + self.window_samples(), least)
        whole = self._run(np.zeros(self._window, np.float32))
        self.width = whole.shape[1]
        self.parts = parts or (1 if compared == 1 else min(MOST_PARTS, len(whole)))

    def hear(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Runs the chain on each clip, with silence behind it to the end of the window."""
        return np.stack([self._parts_of(sound) for sound in sounds])

    def _parts_of(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        end = self._before + len(sound)
        padded = np.zeros(self._window, np.float32)
        padded[self._before : end] = sound
        vectors = self._run(padded)
        if self._settings.every is not None:  # those that end with the sound or before
            beginnings = end - self._samples(self._settings.hears)
            vectors = vectors[: max(0, beginnings // max(1, self._samples(self._settings.every))) + 1]
        if len(vectors) == self.parts:
            return vectors
        averaged: NDArray[np.float32] = time_parts(vectors[None], np.array([len(vectors)]), self.parts)[0]
        return averaged

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.sample_rate)

    def _run(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of a piece of sound, float32 [vectors, width].

        Raises:
            ModelError: A file cannot be run on this.
        """
        x = samples
        if self._bank is not None:
            x = np.asarray(self._bank(torch.from_numpy(samples)).numpy(), np.float32)
        x = x * np.float32(self._settings.scale) + np.float32(self._settings.offset)
        for stage, session in zip(self._stages, self._sessions, strict=True):
            x = self._stage(stage, session, x)
        return x if x.ndim == 2 else x.reshape(1, -1)

    def _stage(self, stage: StageSettings, session: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
        windows = 1
        if stage.window is not None:
            if len(x) < stage.window:
                raise ModelError(
                    f"{stage.file} takes {stage.window} at once, and of this clip there are {len(x)}",
                    path=self._path,
                    advice="Set shortest: silence is then added behind the clip.",
                )
            views = np.lib.stride_tricks.sliding_window_view(x, stage.window, axis=0)[:: stage.step or stage.window]
            x = np.ascontiguousarray(np.moveaxis(views, -1, 1))  # [windows, window, ...]
            windows = len(x)
        else:
            x = x[None]
        shaped = self._shaped(x, stage)
        outputs = None if stage.output is None else [stage.output]
        try:
            made = np.asarray(session.run(outputs, {session.get_inputs()[0].name: shaped})[0], np.float32)
        except _errors() as error:
            said = str(error).strip().splitlines()
            raise ModelError(
                f"{stage.file} cannot be run on {list(shaped.shape)}: {said[0] if said else type(error).__name__}",
                path=self._path,
                advice="Compare window, shape and output with what the file takes: netron.app shows it.",
            ) from None
        made = made * np.float32(stage.multiply) + np.float32(stage.add)
        if stage.window is not None:
            return made.reshape(windows, -1)
        made = np.squeeze(made)
        if made.ndim > 2:
            raise ModelError(
                f"{stage.file} gives {list(made.shape)}, and not one vector, or one after the other",
                path=self._path,
                advice="Name another output.",
            )
        return made if made.ndim == 2 else made.reshape(1, -1)

    def _shaped(self, x: NDArray[np.float32], stage: StageSettings) -> NDArray[np.float32]:
        if not stage.shape:
            return x
        try:
            return x.reshape(stage.shape)
        except ValueError:
            raise ModelError(
                f"what {stage.file} is given, {list(x.shape)}, cannot be brought into the shape {list(stage.shape)}",
                path=self._path,
                advice="Write -1 for the number that depends on the clip.",
            ) from None


def _require(content: dict[str, Any], key: str, path: Path) -> None:
    if content.get(key) is None:
        raise SettingsError(f"the description does not say {key}", path=path, advice=f"Add a line '{key}: …'.")


def _session(file: Path) -> Any:
    """Opens an ONNX file.

    Raises:
        SettingsError: It is missing, or onnxruntime is not installed.
        ModelError: It cannot be read.
    """
    try:
        import onnxruntime
    except ImportError:
        raise SettingsError(
            "onnxruntime is not installed, which runs ONNX files", advice="pip install 'tymbal[onnx]'"
        ) from None
    if not file.is_file():
        raise SettingsError(
            "there is no such file of the teacher", path=file, advice="Put it there, or set folder in the description."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads would hold up others
    options.log_severity_level = 4  # what it cannot do is an error of ours
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except _errors() as error:
        said = str(error).strip().splitlines()
        raise ModelError(
            f"this is no ONNX file that can be run: {said[0] if said else type(error).__name__}", path=file
        ) from None


def _errors() -> tuple[type[Exception], ...]:
    """The errors of onnxruntime, which have no class in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)
