"""Does the rule that chooses patches choose right on sound that did not make it?

    apt install espeak-ng fluidsynth timgm6mb-soundfont        # or --soundfont FILE.sf2
    python benchmarks/patch_rule.py --output patch_rule --minutes 1

The rule (`models/encoder_choice.py`) was made on wingbeats, digits, ESC-10 and Arabic commands. Two sets that it has
not seen are synthesised here: twenty words by eSpeak's voices, asked are those of four accents that were never heard,
and notes of twenty instruments, asked are two octaves that were never heard. Each is pretrained with either patch by
the default objective, for equal processor time, and read by the probe: right is the patch that reads better.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import numpy as np
import soundfile  # type: ignore[import-untyped]

import tymbal
from _learning import Figures, machine, processor_seconds
from learning import STILL
from tymbal.models.encoder_choice import patch_for, time_structure
from tymbal.store.packed.packed_store import Store

PATCHES = ("128x4", "16x16")
WORDS = (
    *("apple", "basket", "candle", "dolphin", "engine", "feather", "garden", "hammer", "island", "jacket"),
    *("kettle", "ladder", "mirror", "needle", "orange", "pencil", "rabbit", "silver", "tunnel", "window"),
)
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "de", "fr", "es", "it", "pt", "nl", "sv")
KINDS = ("m1", "m3", "m5", "m7", "f1", "f2", "f4")
PROGRAMS = (0, 6, 11, 13, 16, 21, 24, 33, 40, 42, 46, 52, 56, 57, 65, 68, 71, 73, 75, 104)
RATE = 22_050
SOUNDFONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")


def write_words(folder: Path) -> None:
    """Writes each word by each voice, `WORD/VOICE.wav`; tempo and pitch differ by voice."""
    rng = np.random.default_rng(1)
    for voice in (f"{accent}+{kind}" for accent in ACCENTS for kind in KINDS):
        tempo, pitch = rng.integers(120, 220), rng.integers(20, 80)
        for word in WORDS:
            path = folder / word / f"{voice}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["espeak-ng", "-v", voice, "-s", str(tempo), "-p", str(pitch), "-w", str(path), word], check=True
            )


def write_notes(folder: Path, soundfont: Path) -> None:
    """Writes notes of each instrument over four octaves, `PROGRAM/octaveO-NUMBER.wav`, of a second and a half."""
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    for program in PROGRAMS:
        octaves = [octave for octave in range(4) for _ in range(12)]
        notes = [(36 + 12 * octave + int(rng.integers(12)), int(rng.integers(50, 120))) for octave in octaves]
        midi, wave = folder / "notes.mid", folder / "notes.wav"
        midi.write_bytes(_midi(program, notes))
        words = ["fluidsynth", "-ni", "-q", "-r", str(RATE), "-F", str(wave), str(soundfont), str(midi)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        samples = soundfile.read(wave)[0].mean(axis=1)
        for number, octave in enumerate(octaves):
            clip = samples[2 * number * RATE : 2 * number * RATE + RATE * 3 // 2]
            path = folder / f"program{program}" / f"octave{octave}-{number}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, clip + rng.normal(scale=1e-4, size=len(clip)), RATE)
        midi.unlink()
        wave.unlink()


def _midi(program: int, notes: list[tuple[int, int]]) -> bytes:
    """A MIDI file of one track: a note every two seconds, each held for 1.2; 500 ticks a beat of half a second."""
    events = bytes((0, 0xC0, program))
    for note, velocity in notes:
        events += bytes((0, 0x90, note, velocity)) + _length(1200) + bytes((0x80, note, 0))
        events += _length(800) + bytes((0xB0, 123, 0))
    events += bytes((0, 0xFF, 0x2F, 0))
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500) + b"MTrk" + struct.pack(">I", len(events)) + events


def _length(ticks: int) -> bytes:
    """A number as MIDI has it: seven bits a byte."""
    return bytes((0x80 | ticks >> 7, ticks & 0x7F))


SETS = {
    "words": ("/(en-029|de|it|sv)[+]", r"/([a-z0-9-]+[+][a-z0-9]+)\.wav", 1.0),
    "instruments": ("/octave[03]-", "/(octave[0-9])-", 1.5),
}
"""Pattern of those who are asked, of groups, and the window in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1.0, help="processor minutes of a pretraining")
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT)
    arguments = parser.parse_args()
    for program in ("espeak-ng", "fluidsynth"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed: see the head of this file")
    arguments.output.mkdir(parents=True, exist_ok=True)
    figures = Figures(arguments.output / "figures.jsonl")
    print(f"{date.today()}, {machine()}\n")
    print("| set | slow share | course over spectrum | chosen | " + " | ".join(PATCHES) + " | better |")
    print("|---|---:|---:|---|---:|---:|---|")
    for name, (asked, group, window) in SETS.items():
        print(trial(name, arguments, figures, asked=asked, group=group, window=window), flush=True)


def trial(name: str, arguments: argparse.Namespace, figures: Figures, *, asked: str, group: str, window: float) -> str:
    """The row of a set."""
    folder = arguments.output / name
    if not (folder / "sound").exists():
        shutil.rmtree(folder / "making", ignore_errors=True)
        making = folder / "making"
        write_words(making) if name == "words" else write_notes(making, arguments.soundfont)
        making.rename(folder / "sound")
    if not (folder / "store").exists():
        tymbal.prepare(folder / "sound", folder / "store", window=window, group_pattern=group, validation_pattern=asked)
    store = Store.open(folder / "store")
    structure = time_structure(store, store.rows("train"))
    chosen = patch_for(structure, mels=store.mels, frames=store.frames)[0]
    read = {patch: _read(name, folder, patch, arguments.minutes, figures) for patch in PATCHES}
    better = max(PATCHES, key=lambda patch: read[patch][0])
    cells = " | ".join(" / ".join(f"{100 * value:.1f}" for value in read[patch]) for patch in PATCHES)
    return f"| {name} | {structure.slow:.2f} | {structure.over_spectrum:.2f} | {chosen} | {cells} | {better} |"


def _read(name: str, folder: Path, patch: str, minutes: float, figures: Figures) -> tuple[float, float]:
    """Ridge regression and nearest neighbours of an encoder of so many processor minutes."""
    key = {"data": name, "row": patch, "minutes": minutes, "seed": 1, "cell": "probe"}
    if not figures.have(**key):
        run, spent = folder / f"run-{patch}", {}
        for steps in (8, 8, 40):
            spent[steps] = _pretrain(folder / "store", run, patch, steps)
        each = (spent[40] - spent[8]) / 32
        steps = max(10, round((60 * minutes - spent[8]) / each))
        seconds = _pretrain(folder / "store", run, patch, steps)
        result = tymbal.probe(
            run, folder / "store", readers=("ridge", "knn"), pooling=("grid",), layer="both", random=False
        )
        rows = {
            row.reader: row.figures["accuracy"]
            for row in result.rows
            if row.features == "model" and row.layer == "both"
        }
        figures.add(**key, accuracy=rows["ridge"], knn=rows["knn"], steps=steps, seconds=seconds)
    found = figures.have(**key)[0]
    return found["accuracy"], found["knn"]


def _pretrain(store: Path, run: Path, patch: str, steps: int) -> float:
    """Processor seconds of a pretraining."""
    shutil.rmtree(run, ignore_errors=True)
    began = processor_seconds()
    tymbal.pretrain(store, run, patch=patch, max_steps=steps, seed=1, **STILL)
    return processor_seconds() - began


if __name__ == "__main__":
    main()
