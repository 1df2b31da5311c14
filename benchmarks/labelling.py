"""How many labels does choosing save? Answers of an oracle, by ways to choose what is asked next.

    OMP_NUM_THREADS=1 python benchmarks/labelling.py --data ../shared/data --output labelling
    python benchmarks/labelling.py --data ../shared/data --short
    OMP_NUM_THREADS=1 python benchmarks/labelling.py --latency
    OMP_NUM_THREADS=1 python benchmarks/labelling.py --latency --windows 7200000 --width 64      # 10,000 hours

Sets: ESC-10 and Arabic commands, a label a clip; and long recordings of weather in which one window in 200 holds an
event of each of three kinds, made of clips of ESC-10. What is tested comes from another fold, from other speakers,
other ones in each draw. On the recordings everybody begins with one example of each kind, elsewhere with nothing. Ten
windows are asked about, the head is fitted to all answers, and reads what is tested: accuracy, or the mAP. All ways
share the head. Where events are rare, answers are three times as many, and random ones go on until all is answered.

Embeddings are those of an encoder that is pretrained for `--minutes` on the recordings to label, without a label
(`tymbal`), or of `--encoder`; mean, deviation and deviation of differences of 20 cepstral coefficients (`mfcc`); and
BirdNET's, where `--birdnet` names the Python of an environment that has it (see `_birdnet_embeddings.py`).

Where it is known from when to when an event is heard, boxes are measured, too: those that the model proposes with the
head of the answers of `mixed`, in all tested windows with an event, beside the window as a whole.

With `--latency` it asks another question: how long does one wait for the next window among 100,000 of 512 numbers?
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr
import torch

import tymbal
from _labelling_sounds import RATE, SETS, Sounds
from _report import machine, table
from tymbal.audio.decode import read
from tymbal.evaluation.baseline import spectrogram_moments
from tymbal.evaluation.linear import quality
from tymbal.features.bank import filter_bank
from tymbal.inference.embeddings import read_record
from tymbal.inference.frontend import ready_model
from tymbal.inference.streaming import Window as Piece
from tymbal.inference.streaming import cut_for
from tymbal.inference.tables import vectors
from tymbal.labelling.boxes import BoxFinder
from tymbal.labelling.choosing import next_places
from tymbal.labelling.head import Examples, Head
from tymbal.labelling.windows import Windows
from tymbal.settings import EmbedSettings, FeatureSettings

WAYS = {"random": "random", "uncertain": "uncertain", "committee": "committee", "mixed": "ours"}
BATCH = 10
ENOUGH = 0.95
LONGER = 3
"""How many times as many answers are given where events are rare."""

REFERENCES = 16
MOST = 100_000
"""Windows that are held at once, as by default."""
COEFFICIENTS = 20


class Trial:
    """A set with embeddings: what is asked about, and what is tested.

    Args:
        sounds: The set.
        embeddings: What the embeddings are.
        folder: Where the tables of both sides lie.

    Attributes:
        last: The head at the end of the last `curve`.
    """

    def __init__(self, sounds: Sounds, embeddings: str, folder: Path) -> None:
        self.sounds, self.embeddings = sounds, embeddings
        self.windows = Windows(folder / "pool.parquet", most=MOST, seed=0)
        self.truth = self._heard(folder / "pool.parquet")
        self.tested = self.windows.projection(vectors(pq.read_table(folder / "tested.parquet")))
        self.tested_truth = self._heard(folder / "tested.parquet")
        self.last: Head | None = None
        self.figure = "mAP" if sounds.several else "accuracy"
        self.full = self._reads(self.examples(np.arange(len(self.windows))).head(self.windows))

    def _heard(self, table_: Path) -> np.ndarray:
        rows = pq.read_table(table_, columns=["file", "start"]).to_pylist()
        heard = [self.sounds.heard.get((row["file"], round(row["start"] / self.sounds.window)), ()) for row in rows]
        return np.array([[label in labels for label in self.sounds.labels] for labels in heard])

    def examples(self, places: np.ndarray) -> Examples:
        """Places with their labels, as a person who knows all would give them."""
        return Examples(places, self.truth[places], self.sounds.labels, self.sounds.several)

    def _reads(self, head: Head | None) -> float:
        if head is None:
            return 0.0
        scores = np.full(self.tested_truth.shape, -1e9)
        scores[:, [self.sounds.labels.index(label) for label in head.labels]] = head.logits(self.tested)
        return quality(scores, self.tested_truth, multilabel=self.sounds.several)[self.figure]

    def curve(self, way: str, seed: int, budget: int) -> list[tuple[int, float, float]]:
        """Answers, the figure, and the share of the labels that were found, after each ten questions."""
        rng = np.random.default_rng([seed, 7])
        places: list[int] = []
        if self.sounds.several:
            places = [int(rng.choice(np.flatnonzero(column))) for column in self.truth.T]
        result, last = [], ()
        examples = self.examples(np.array(places, np.int64))
        head = examples.head(self.windows)
        while len(places) < min(budget, len(self.windows)):
            asked = np.zeros(len(self.windows), bool)
            asked[places] = True
            chosen = next_places(
                self.windows,
                BATCH,
                by=way,
                head=head,
                examples=examples,
                asked=asked,
                last=last,
                seed=(seed, len(places)),
            )
            if not chosen:  # only neighbours of the last one are left
                break
            places += [place for place, _ in chosen]
            last = (places[-1],)
            examples = self.examples(np.array(places, np.int64))
            head = examples.head(self.windows)
            found = float(self.truth[places].sum() / self.truth.sum())
            result.append((len(places), self._reads(head), found))
        self.last = head
        return result

    def boxes(self, model: Path, head: Head) -> list[tuple[float, float, float]]:
        """How boxes share their time with events: the proposed one, the whole window, and its middle, as IoU."""
        table_ = self.windows.table
        embedder = ready_model(model, EmbedSettings(device="cpu")).embedder_like(read_record(table_), index=table_)
        rate, window = embedder.description.features.sample_rate, self.sounds.window
        usual = [self.windows.window(place) for place in np.random.default_rng(0).permutation(len(self.windows))]
        finder = BoxFinder(
            embedder,
            length=cut_for(embedder.description, window=window, hop=window).length,
            references=[_piece(one.file, one.start, one.end, rate) for one in usual[:REFERENCES]],
        )
        tested, result = {str(path) for path in self.sounds.tested}, []
        for (file, place, label), (begin, end) in self.sounds.where.items():
            if file in tested and label in head.labels:
                direction = self.windows.projection.weight @ head.weight[:, head.labels.index(label)]
                found = finder.find(_piece(file, place * window, (place + 1) * window, rate), direction)
                stretch = (0.0, window) if found is None else (found.start, found.end)
                middle = (window / 2 - (end - begin) / 2, window / 2 + (end - begin) / 2)
                result.append(tuple(_iou(one, (begin, end)) for one in (stretch, (0.0, window), middle)))
        return result


def _piece(file: str, start: float, end: float, rate: int) -> Piece:
    return Piece(0, read(Path(file), sample_rate=rate, start=start, end=end)[0])


def _iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (one[1] - one[0] + other[1] - other[0] - shared)


def needed(curve: list[tuple[int, float, float]], full: float) -> float:
    """Answers after which the last three figures reach 95 % of the full one in the mean; infinite where none do."""
    figures = np.array([figure for _, figure, _ in curve])
    if len(figures) < 3:
        return float("inf")
    reached = np.flatnonzero(np.convolve(figures, np.ones(3) / 3, "valid") >= ENOUGH * full)
    return float(curve[reached[0] + 2][0]) if len(reached) else float("inf")


def embedded(sounds: Sounds, kind: str, folder: Path, arguments: argparse.Namespace) -> Path | None:
    """The folder of the tables of embeddings, which are made where they are not there; None where there are none."""
    place = folder / kind
    for side, files in (("pool", sounds.pool), ("tested", sounds.tested)):
        output = place / f"{side}.parquet"
        if output.is_file():
            continue
        place.mkdir(parents=True, exist_ok=True)
        if kind == "tymbal":
            run = arguments.encoder or _pretrained(sounds, folder, arguments)
            tymbal.embed(run, files, output, window=sounds.window, batch_size=64, device="cpu")
        elif kind == "mfcc":
            _write(output, sounds, files, lambda path: _mfcc(path, sounds.window))
        elif arguments.birdnet is None:
            return None
        else:
            known = _heard_by_birdnet(arguments.birdnet, sounds, files, place / f"{side}.csv")
            _write(output, sounds, files, lambda path, known=known: known[str(path)])
    return place


def _heard_by_birdnet(python: str, sounds: Sounds, files: list[Path], listed: Path) -> dict[str, np.ndarray]:
    """BirdNET's embeddings of the windows of files, by file, [windows, 1024]."""
    with listed.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "file", "start", "end", "label"))
        for path in files:
            windows = max(1, round(soundfile.info(path).duration / sounds.window))
            for place in range(windows):
                start = place * sounds.window
                rows.writerow((f"{path}#{place}", path.absolute(), start, start + sounds.window, "any"))
    script = Path(__file__).with_name("_birdnet_embeddings.py")
    subprocess.run([python, str(script), str(listed), str(listed.with_suffix(".npz"))], check=True, stdout=sys.stderr)
    kept = np.load(listed.with_suffix(".npz"), allow_pickle=False)
    result: dict[str, list[np.ndarray]] = {}
    for name, row in zip(kept["clips"].tolist(), kept["embeddings"], strict=True):
        result.setdefault(name.rpartition("#")[0], []).append(row)
    return {name: np.array(found) for name, found in result.items()}


def _pretrained(sounds: Sounds, folder: Path, arguments: argparse.Namespace) -> Path:
    run: Path = folder / "run"
    if not (run / "result.json").is_file():
        listed = folder / "pool.txt"
        listed.write_text("\n".join(str(path.absolute()) for path in sounds.pool))
        tymbal.pretrain(
            listed, run, max_minutes=arguments.minutes, size="mini", window=sounds.window, device="cpu", seed=0
        )
    return run


def _write(output: Path, sounds: Sounds, files: list[Path], embed: Any) -> None:
    """A table of embeddings of windows, as `tymbal embed` writes it."""
    rows: list[dict[str, Any]] = []
    for path in files:
        for place, vector in enumerate(embed(path)):
            start = place * sounds.window
            rows.append({"file": str(path), "start": start, "end": start + sounds.window, "embedding": vector.tolist()})
    width = len(rows[0]["embedding"])
    kinds = [("file", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema([*kinds, ("embedding", pa.list_(pa.float32(), width))])), output
    )


def _mfcc(path: Path, window: float) -> np.ndarray:
    """Moments of cepstral coefficients of each window of a file, [windows, 60]."""
    features = FeatureSettings(sample_rate=RATE)
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    sound = soxr.resample(samples.mean(1), rate, RATE).astype(np.float32)
    length = round(window * RATE)
    sound = np.pad(sound, (0, max(0, length - len(sound))))
    pieces = [sound[at : at + length] for at in range(0, len(sound) - length // 2, length)]
    pieces = [np.pad(piece, (0, length - len(piece))) for piece in pieces]
    bank = filter_bank(features)
    mels = np.stack([bank(torch.from_numpy(piece)).numpy() for piece in pieces])
    order = np.arange(COEFFICIENTS)[:, None]
    basis = np.cos(np.pi * order * (np.arange(mels.shape[2]) + 0.5) / mels.shape[2]).T.astype(np.float32)
    return spectrogram_moments(mels @ basis, np.full(len(mels), mels.shape[1]))


def run(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row a set, embeddings, way and seed."""
    done = arguments.output / "figures.jsonl"
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.is_file() else []
    for name in arguments.sets:
        for draw in arguments.draws:
            folder = arguments.output / name / str(draw)
            sounds = SETS[name](arguments.data, folder / "sound", seed=draw, short=arguments.short)
            for kind in arguments.embeddings:
                place = embedded(sounds, kind, folder, arguments)
                key = {"set": name, "draw": draw, "embeddings": kind}
                for row in _curves(key, sounds, place, arguments, rows) if place is not None else ():
                    if row not in rows:
                        with done.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                    yield row


def _curves(
    shared: dict[str, Any], sounds: Sounds, place: Path, arguments: argparse.Namespace, rows: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row a way and seed; those that are known are given as they are."""
    trial = None
    for way in arguments.ways:
        for seed in range(arguments.seeds):
            key = {**shared, "way": way, "seed": seed}
            row = next((row for row in rows if key.items() <= row.items()), None)
            if row is None:
                trial = trial or Trial(sounds, key["embeddings"], place)
                budget = arguments.budget
                if sounds.several and not arguments.short:
                    budget = len(trial.windows) if way == "random" else LONGER * budget
                curve = trial.curve(way, seed, budget)
                facts = {"title": sounds.title, "figure": trial.figure, "full": trial.full}
                row = {**key, **facts, "windows": len(trial.windows), "curve": curve}
                if sounds.where and key["embeddings"] == "tymbal" and way == "mixed" and trial.last is not None:
                    row["boxes"] = trial.boxes(arguments.encoder or place.parent / "run", trial.last)
                print(*key.values(), f"{curve[-1][1]:.3f}", file=sys.stderr, flush=True)
            yield row


def report(rows: list[dict[str, Any]]) -> str:
    """Tables as markdown: a line a set, embeddings and way."""
    lines = []
    for key in dict.fromkeys((row["set"], row["embeddings"]) for row in rows):
        own = [row for row in rows if (row["set"], row["embeddings"]) == key]
        points = _points([len_ for len_, _, _ in min((row["curve"] for row in own), key=len)])
        first, full = own[0], statistics.fmean({row["draw"]: row["full"] for row in own}.values())
        lines.append(f"**{first['title']}, {key[1]}**: {first['windows']:,} windows; all labels: {full:.3f}\n")
        last = min(row["curve"][-1][0] for row in own)
        head = [f"{first['figure']} after", *map(str, points), f"found after {last:,}", "answers for 95 %", "reached"]
        lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        for way, title in WAYS.items():
            curves = [(row["curve"], row["full"]) for row in own if row["way"] == way]
            if not curves:
                continue
            cells = [_spread([_at(curve, point)[1] for curve, _ in curves]) for point in points]
            found = f"{100 * statistics.fmean(_at(curve, last)[2] for curve, _ in curves):.0f} %"
            counts = [needed(curve, of_all) for curve, of_all in curves]
            enough, most = statistics.median(counts), max(curve[-1][0] for curve, _ in curves)
            said = f"{enough:,.0f}" if enough < float("inf") else f"> {most:,}"
            reached = f"{sum(count < float('inf') for count in counts)} of {len(counts)}"
            lines.append("| " + " | ".join([title, *cells, found, said, reached]) + " |")
        boxes = [box for row in own for box in row.get("boxes", ())]
        if boxes:
            what = ("proposed", "whole window", "as long as the event, in the middle")
            said = ", ".join(f"{name} {statistics.fmean(box[n] for box in boxes):.2f}" for n, name in enumerate(what))
            lines.append(f"\nIoU of boxes with {len(boxes):,} events, in time: {said}.")
        lines.append("")
    return "\n".join(lines)


def _at(curve: list[tuple[int, float, float]], point: int) -> tuple[int, float, float]:
    """The first reading after so many answers."""
    return next(reading for reading in curve if reading[0] >= point)


def _points(counts: list[int]) -> list[int]:
    wanted = [20, 50, 100, 200, 400, 800, 1200]
    return [next(count for count in counts if count >= point) for point in wanted if point <= counts[-1]] or [
        counts[-1]
    ]


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def _noise(path: Path, windows: int, width: int, rng: np.random.Generator) -> None:
    """A table of embeddings of 5-s windows of nights of an hour, as `tymbal embed` writes it.

    They vary in 32 directions and a little in all, as sounds do: of noise in all directions an index finds half.
    """
    directions = rng.standard_normal((32, width), np.float32)
    kinds = [("file", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    schema = pa.schema([*kinds, ("embedding", pa.list_(pa.float32(), width))]).with_metadata({"tymbal": "{}"})
    with pq.ParquetWriter(path, schema) as table_:
        for first in range(0, windows, MOST):
            rows = np.arange(first, min(first + MOST, windows))
            values = rng.standard_normal((len(rows), 32), np.float32) @ directions
            values += rng.standard_normal(values.shape, np.float32)
            columns = {
                "file": [f"/nights/{row // 720}.wav" for row in rows],
                "start": rows % 720 * 5.0,
                "end": rows % 720 * 5.0 + 5,
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width),
            }
            table_.write_table(pa.table(columns, schema))


def latency(windows: int, width: int, answers: int) -> str:
    """Seconds from an answer to the next window, with the head fitted anew, by way to choose."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / "windows.parquet", Path(folder) / "windows.safetensors"
        _noise(path, windows, width, rng)
        lines = []
        for time_ in ("opened", "opened again"):
            began = time.perf_counter()
            held = Windows(path, most=MOST, seed=0, kept=kept)
            lines.append(f"{time_} in {time.perf_counter() - began:.1f} s, {len(held):,} windows held")
        began = time.perf_counter(), time.process_time()
        held.make_searchable()
        if windows > MOST:
            spent_ = time.process_time() - began[1]
            lines.append(f"indexed in {time.perf_counter() - began[0]:.0f} s ({spent_:.0f} s of processor time)")
        for what in ("an example found", "another one found") if windows > MOST else ():
            example = held.embedding(int(rng.integers(windows)))
            began = time.perf_counter()
            held.nearest(example, 50)
            lines.append(f"{what} in {time.perf_counter() - began:.1f} s")
    windows = len(held)
    truth = held.vectors[:, :3] > 1.5 * held.vectors[:, :3].std(axis=0)
    rows = []
    for way in ("mixed", "likely", "uncertain", "committee", "different", "clusters", "random"):
        spent: list[float] = []
        places = rng.permutation(windows)[:answers].tolist()
        for step in range(15):
            began = time.perf_counter()
            examples = Examples(np.array(places), truth[places], ("a", "b", "c"), several=True)
            head = examples.head(held)
            asked = np.zeros(windows, bool)
            asked[places] = True
            chosen = next_places(held, 1, by=way, head=head, examples=examples, asked=asked, seed=(step,))
            spent.append(time.perf_counter() - began)
            places.append(chosen[0][0])
        rows.append([way, f"{statistics.median(spent):.3f}", f"{max(spent):.3f}"])
    lines.append(table(["seconds to the next window", "median", "longest"], rows))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("labelling"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--embeddings", nargs="+", default=["tymbal", "mfcc", "birdnet"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--encoder", type=Path, help="a run or model; without it, one is pretrained for --minutes")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--birdnet", help="Python of an environment with BirdNET")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--draws", type=int, nargs="+", default=[0, 1, 2], help="what is tested; ways were tuned on 101 to 103"
    )
    parser.add_argument("--budget", type=int, default=400)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--windows", type=int, default=MOST, help="of --latency")
    parser.add_argument("--width", type=int, default=512, help="of --latency")
    arguments = parser.parse_args()
    if arguments.latency:
        print(f"{machine()}\n{arguments.windows:,} windows of {arguments.width} numbers, 300 answers")
        print(latency(arguments.windows, arguments.width, 300))
        return
    if arguments.short:
        kinds = ["mfcc", "tymbal"] if arguments.encoder else ["mfcc"]
        short = {"sets": ["esc10", "rare"], "embeddings": kinds, "draws": [0], "seeds": 1, "budget": 30}
        vars(arguments).update(short)
    print(report(list(run(arguments))))
    print(machine())


if __name__ == "__main__":
    main()
