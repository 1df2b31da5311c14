"""How fast are pairs of augmented views made, from decoding to disk, against audiomentations and librosa?

    python -m venv /tmp/peer && /tmp/peer/bin/pip install audiomentations librosa
    python benchmarks/views.py --data ../shared/data/esc10 --peer /tmp/peer/bin/python

A clip-version is a pair of views of 3 s at 22,050 Hz, with 3 changes of the waveform and 2 of the spectrogram each; a
clip is decoded once for N = 5 of them, on either side. Both draw from the same nine changes of the waveform, work on
one core and write to the disk; the start of Python and its libraries is left out, and so are the first clips. They
take turns. The peer is the straightforward program that people write; without `--peer` it is left out, and the table
says so. Ratios are of processor time, which other work on the machine disturbs little; the rates by the clock stand
beside them.

Below, what Tymbal's time goes into: each step alone on the same clips.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from _report import machine, ratios, table
from tymbal.audio.decode import read
from tymbal.machine import tune_malloc
from tymbal.preparation.build_views import ViewTask, build_views
from tymbal.preparation.plan import Window
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.views.augmentation_config import augmentation_from, augmentation_mapping
from tymbal.views.draw import clip_key, draw, view_keys
from tymbal.views.make import Mode, ViewMaker

RATE, SECONDS = 22_050, 3.0
FEATURES = FeatureSettings(filter_bank="librosa", sample_rate=RATE, low_freq=0.0)
SAMPLES = round(RATE * SECONDS)
ONLY_OURS = ("speed", "reverberation")
PEER = "audiomentations + librosa"


class Rate(NamedTuple):
    """Clip-versions a second, by the clock and of processor time."""

    clock: float
    processor: float


def main() -> None:
    options = parse()
    tune_malloc()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        files = sound_files(folder, options)
        print(f"{len(files)} clips of {SECONDS:g} s, {options.versions} versions, {options.rounds} rounds, one core")
        print(f"{machine()}, torch {torch.__version__}\n")
        sides: dict[str, Callable[[], Rate]] = {
            "spectral, packed": lambda: ours(folder, files, options.versions, mode="spectral", write="store"),
            "spectral, .pt": lambda: ours(folder, files, options.versions, mode="spectral", write="pt"),
            "exact, packed": lambda: ours(folder, files[: options.few], options.versions, mode="exact", write="store"),
        }
        if options.peer:
            sides[PEER] = lambda: peer(folder, files[: options.few], options)
        for side in sides.values():
            side()  # the first time reads files from the disk and fills caches
        rounds: dict[str, list[Rate]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for side_name, side in sides.items():
                rounds[side_name].append(side())
        print(report(rounds, peer=bool(options.peer)))
        print("\n" + steps(files[: options.few], options.versions))


def report(rounds: dict[str, list[Rate]], *, peer: bool) -> str:
    against = PEER if peer else "exact, packed"
    processor = {name: [rate.processor for rate in rates] for name, rates in rounds.items()}
    rows = [
        [
            name,
            f"{statistics.median(rate.clock for rate in rates):,.1f}",
            f"{statistics.median(processor[name]):,.1f}",
            f"{ratios(processor, name, against):.1f}",
        ]
        for name, rates in rounds.items()
    ]
    lines = [table(["clip-versions", "a second", "a processor second", f"of {against}"], rows)]
    if not peer:
        lines.append(f"{PEER}: left out. Give --peer the Python of an environment that has both.")
    return "\n".join(lines)


def settings() -> AugmentationSettings:
    """The nine changes of the waveform that both sides have, and all of the spectrogram."""
    mapping = augmentation_mapping(AugmentationSettings())
    for name in ONLY_OURS:
        del mapping["waveform"][name]
    return augmentation_from(mapping)


def ours(folder: Path, files: list[Path], versions: int, *, mode: str, write: str) -> Rate:
    """From decoding to disk."""
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    windows = tuple(
        Window(id=file.stem, file=str(file), start=0.0, end=SECONDS, whole=True, labels=(), group=None, split="train")
        for file in files
    )
    task = ViewTask(
        store=str(store),
        work=str(store / "work"),
        number=0,
        windows=windows,
        features=FEATURES,
        frames=FEATURES.frames_of(SAMPLES),
        silence_db=-200.0,
        min_seconds=0.01,
        samples=SAMPLES,
        versions=versions,
        augmentations=settings(),
        mode=mode,
        stems=tuple(f"{number:05d}" for number in range(len(files))) if write == "pt" else (),
    )
    start, busy = time.perf_counter(), time.process_time()
    made = len(build_views(task).entries)
    return Rate(made / (time.perf_counter() - start), made / (time.process_time() - busy))


def peer(folder: Path, files: list[Path], options: argparse.Namespace) -> Rate:
    """The same of the peer, in a process of its own, its start left out."""
    out = folder / "peer"
    out.mkdir(exist_ok=True)
    job = {
        "files": [str(file) for file in files],
        "output": str(out),
        "versions": options.versions,
        "sample_rate": RATE,
        "seconds": SECONDS,
    }
    (folder / "job.json").write_text(json.dumps(job))
    one = {**os.environ, **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}}
    one.pop("PYTHONPATH", None)
    command = [options.peer, str(Path(__file__).with_name("_views_peer.py")), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=one, check=False)
    if done.returncode != 0:
        sys.exit(f"the peer cannot run: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    spent = json.loads(done.stdout.strip().splitlines()[-1])
    made = len(files) * options.versions
    return Rate(made / spent["seconds"], made / spent["busy"])


def steps(files: list[Path], versions: int) -> str:
    """Milliseconds of processor time a clip-version of each step alone, in either mode."""
    modes: tuple[Mode, ...] = ("spectral", "exact")
    spent = [steps_of(ViewMaker(settings(), FEATURES, SAMPLES, mode=mode), files, versions) for mode in modes]
    rows = [[name, *(f"{found[name]:.3f}" for found in spent)] for name in spent[0]]
    return table(["step by step, ms a clip-version", *modes], rows)


def steps_of(maker: ViewMaker, files: list[Path], versions: int) -> dict[str, float]:
    clip = torch.zeros(2 * versions, dtype=torch.int64)
    names = ("decode and resample", "draw", "transform", "views", "to float16")
    spent = dict.fromkeys(names, 0.0)
    for repeat in range(2):  # the first one warms up
        spent = dict.fromkeys(names, 0.0)
        for file in files:
            moments = [time.process_time()]
            waveform = torch.zeros(1, SAMPLES)
            found = torch.from_numpy(read(file, sample_rate=RATE, end=SECONDS)[0])
            waveform[0, : len(found)] = found
            moments.append(time.process_time())
            keys = view_keys(repeat, torch.full((versions,), clip_key(file.stem)), torch.arange(versions))
            draws = draw(maker.settings, keys, [version for version in range(versions) for _ in range(2)])
            moments.append(time.process_time())
            clips = maker.transform(waveform)
            moments.append(time.process_time())
            views = maker.views(waveform if maker.mode == "exact" else clips, clip, draws, clips.mel[clip])
            moments.append(time.process_time())
            views.half().numpy()
            moments.append(time.process_time())
            for name, begin, end in zip(names, moments, moments[1:], strict=False):
                spent[name] += end - begin
    return {name: seconds / (len(files) * versions) * 1000 for name, seconds in spent.items()}


def sound_files(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Files from `--data`, or chirps in noise at 44,100 Hz."""
    if options.data is not None:
        files = sorted(path for path in options.data.rglob("*") if path.suffix in (".wav", ".ogg", ".flac"))
        if not files:
            sys.exit(f"{options.data}: no .wav, .ogg or .flac files there")
        return files[:: max(len(files) // options.clips, 1)][: options.clips]
    made = []
    axis = np.arange(round(44_100 * SECONDS)) / 44_100
    for number in range(options.clips):
        random = np.random.default_rng(number)
        chirp = np.sin(2 * np.pi * (random.uniform(100, 2000) + 300 * axis) * axis)
        sound = 0.3 * chirp * (1 + np.sin(2 * np.pi * 4 * axis)) / 2 + random.normal(0, 0.02, len(axis))
        made.append(folder / f"{number:05d}.flac")
        soundfile.write(made[-1], sound, 44_100)
    return made


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of sound; without it sound is made")
    parser.add_argument("--peer", help="a Python that has audiomentations and librosa")
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--few", type=int, default=40, help="clips of the slow sides")
    parser.add_argument("--versions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; the default is the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
