"""Sounds of the trial of labelling: sets of clips, and long recordings in which events are rare, with what is heard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000
EVENTS = ("dog_bark", "rooster", "person_sneeze")
BACKGROUND = ("rain", "sea_waves", "fire_crackling")
WINDOW = 2.5
"""Seconds of a window of the long recordings."""

RARE = 200
"""One window in so many holds an event of a kind."""

OFTEN = 40
"""The same where it is tested, so that figures are not those of a handful."""


@dataclass(frozen=True)
class Sounds:
    """Recordings to label, and others by which what was learned is tested.

    Attributes:
        title: What they are called in tables.
        pool: The recordings to label.
        tested: Those that are tested.
        heard: What is heard, by file and number of the window.
        labels: Names of the labels.
        several: Whether a window may have several labels, or none.
        window: Seconds of a window.
        where: Of events, by file, number of the window and label: from and up to which second of the window 90 % of
            their energy lie.
    """

    title: str
    pool: list[Path]
    tested: list[Path]
    heard: Mapping[tuple[str, int], tuple[str, ...]]
    labels: tuple[str, ...]
    several: bool
    window: float
    where: Mapping[tuple[str, int, str], tuple[float, float]] = field(default_factory=dict)


def esc10(data: Path, _folder: Path, *, seed: int, short: bool) -> Sounds:
    """ESC-10; one fold is tested, by the seed."""
    clips = [(path, path.parent.name) for path in sorted((data / "esc10").glob("*/*.ogg"))]
    fold = f"{1 + seed % 5}-"
    return _clips("ESC-10", clips, {path for path, _ in clips if path.name.startswith(fold)}, 5.0, short=short)


def arabic(data: Path, _folder: Path, *, seed: int, short: bool) -> Sounds:
    """Every third of the Arabic commands; a fifth of the speakers is tested, by the seed."""
    paths = sorted((data / "arabic_commands").glob("*/*.ogg"))[::3]
    speakers = sorted({path.name.partition("_")[0] for path in paths})
    tested = set(np.random.default_rng(seed).permutation(speakers)[: len(speakers) // 5].tolist())
    clips = [(path, path.parent.name) for path in paths]
    inside = {path for path in paths if path.name.partition("_")[0] in tested}
    return _clips("Arabic commands", clips, inside, 1.0, short=short)


def _clips(title: str, clips: list[tuple[Path, str]], tested: set[Path], window: float, *, short: bool) -> Sounds:
    kept = clips[:: 8 if short else 1]
    sides = {side: [path for path, _ in kept if (path in tested) == side] for side in (False, True)}
    heard = {(str(path), 0): (label,) for path, label in kept}
    labels = tuple(sorted({label for _, label in kept}))
    return Sounds(title, sides[False], sides[True], heard, labels, several=False, window=window)


def rare(data: Path, folder: Path, *, seed: int, short: bool) -> Sounds:
    """Long recordings of weather, in which a window in 200 has an event of each kind.

    Clips of the tested recordings are those of another fold of ESC-10 than those of the others.
    """
    rng = np.random.default_rng([seed, 200])
    fold = f"{1 + seed % 5}-"
    minutes, windows = (2, 80) if short else (10, 400)
    heard: dict[tuple[str, int], tuple[str, ...]] = {}
    where: dict[tuple[str, int, str], tuple[float, float]] = {}
    sides: dict[bool, list[Path]] = {False: [], True: []}
    for tested, count in ((False, minutes), (True, minutes // 2)):
        clips = {name: _of_fold(data, name, fold, inside=tested) for name in (*EVENTS, *BACKGROUND)}
        for number in range(count):
            path = folder / f"{'tested' if tested else 'night'}-{number:02}.flac"
            one_in = 20 if short else OFTEN if tested else RARE
            sound, found = _recording(clips, windows, rng, one_in=one_in)
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, sound, RATE, subtype="PCM_16")
            for (place, name), stretch in found.items():
                heard[str(path), place] = (*heard.get((str(path), place), ()), name)
                where[str(path), place, name] = stretch
            sides[tested].append(path)
    return Sounds("rare events", sides[False], sides[True], heard, EVENTS, several=True, window=WINDOW, where=where)


def _of_fold(data: Path, name: str, fold: str, *, inside: bool) -> list[Path]:
    return [path for path in sorted((data / "esc10" / name).iterdir()) if path.name.startswith(fold) == inside]


def _recording(
    clips: Mapping[str, list[Path]], windows: int, rng: np.random.Generator, *, one_in: int
) -> tuple[np.ndarray, dict[tuple[int, str], tuple[float, float]]]:
    """A recording of some windows, and in which of them what is heard, from and up to which second."""
    length = round(WINDOW * RATE)
    sound = np.zeros(windows * length, np.float32)
    kind = BACKGROUND[rng.integers(len(BACKGROUND))]
    at = 0
    while at < len(sound):  # one weather, clip after clip, each as loud as any
        piece = _loud(_read(clips[kind][rng.integers(len(clips[kind]))]), 0.05 * 10 ** rng.uniform(-0.3, 0.3))
        piece = piece[: len(sound) - at]
        sound[at : at + len(piece)] += piece
        at += len(piece)
    found: dict[tuple[int, str], tuple[float, float]] = {}
    for name in EVENTS:
        for place in np.flatnonzero(rng.random(windows) < 1 / one_in):
            event = _event(_read(clips[name][rng.integers(len(clips[name]))]), length)
            event = _loud(event, 0.05 * 10 ** rng.uniform(0.2, 0.8))
            at = int(rng.integers(0, length - len(event) + 1))
            begin = place * length + at
            sound[begin : begin + len(event)] += event
            found[int(place), name] = tuple((at + edge) / RATE for edge in _most_of(event))
    return np.clip(sound, -1, 1), found


def _read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(1), rate, RATE)


def _event(sound: np.ndarray, most: int) -> np.ndarray:
    """The loudest second and a half of a clip, or less where it is silent."""
    size = min(round(1.5 * RATE), most, len(sound))
    total = np.concatenate([np.zeros(1), np.cumsum(np.square(sound, dtype=np.float64))])
    begin = int((total[size:] - total[:-size]).argmax())
    part = sound[begin : begin + size].copy()
    ramp = round(0.01 * RATE)
    part[:ramp] *= np.linspace(0, 1, ramp)
    part[-ramp:] *= np.linspace(1, 0, ramp)
    return part


def _most_of(sound: np.ndarray) -> tuple[int, int]:
    """From and up to which sample 90 % of the energy of a sound lie, 5 % before and 5 % behind, as Raven measures."""
    share = np.cumsum(np.square(sound, dtype=np.float64)) / max(float(np.square(sound, dtype=np.float64).sum()), 1e-12)
    return int(np.searchsorted(share, 0.05)), int(np.searchsorted(share, 0.95)) + 1


def _loud(sound: np.ndarray, level: float) -> np.ndarray:
    return sound * (level / max(float(np.sqrt(np.mean(np.square(sound)))), 1e-6))


SETS = {"esc10": esc10, "arabic": arabic, "rare": rare}
