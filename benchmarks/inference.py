"""How many hours of sound are embedded and scored in a minute, against a loop over the stock classes of transformers?

    python benchmarks/inference.py                     # base, 10 s clips: some minutes a round
    python benchmarks/inference.py --size tiny --clips 64
    python benchmarks/inference.py --trial             # that it works, in seconds
    python benchmarks/inference.py --birdnet yardstick/bin/python      # beside BirdNET, windows of 3 s
    export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
    python benchmarks/inference.py --precisions float32 int8

The peer is what one writes with transformers: read a batch of files with soundfile, `ASTFeatureExtractor`,
`ASTForAudioClassification`, softmax, in float32. `tymbal.predict` and `tymbal.embed` load the very same folder, read
the same files (16-bit WAV at 16 kHz, so that nobody resamples), and also spool and write their tables. Their rate is
that of a further clip: the time for all clips less that for one, which takes out the loading of the model. Scores of
both sides are compared first.

Feature extraction alone runs on one thread, on sound in memory. Sides take turns within a round; ratios are medians
over the rounds, by the clock and by processor time, which tells more on a machine that has other work to do.

The last form is as on a CPU without AVX-512 and bf16, for both sides; what FBGEMM computes for `int8` it does not
limit. BirdNET V2.4 runs in an environment of its own (see `_birdnet_embeddings.py`) on one thread, and so do we then:
`tymbal predict`, from decoding to the table, with encoders of random weights and windows of three seconds.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch

import tymbal
from _report import machine, ratios, table
from tymbal.compute.device import choose_device, choose_precision
from tymbal.features.kaldi import KaldiFbank
from tymbal.machine import tune_malloc
from tymbal.progress import quietly
from tymbal.settings import SIZES

RATE, SECONDS, LABELS = 16_000, 10, 50


class Cost(NamedTuple):
    """What a clip took.

    Attributes:
        seconds: By the clock.
        processor: Processor seconds of this process.
    """

    seconds: float
    processor: float


def main() -> None:
    options = parse()
    tune_malloc()  # as the command line does; it serves both sides
    device, _ = choose_device(options.device)
    _, why = choose_precision("auto", device)
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device))
    print(f"Clips of {SECONDS} s at {RATE:,} Hz; our default precision: {why}\n")
    print(features(options))
    with tempfile.TemporaryDirectory() as name, quietly():
        print(birds(Path(name), options) if options.birdnet else models(Path(name), options, device))


def features(options: argparse.Namespace) -> str:
    """Feature extraction alone, on one thread."""
    from transformers import ASTFeatureExtractor
    from transformers.utils import is_speech_available

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stock, own = ASTFeatureExtractor(), KaldiFbank()
    name = f"stock extractor ({'torchaudio' if is_speech_available() else 'numpy'})"
    sounds = list(sound(options.feature_clips))
    sides: dict[str, Callable[[np.ndarray], Any]] = {
        name: lambda clip: stock(clip, sampling_rate=RATE, return_tensors="pt"),
        "ours": lambda clip: own(torch.from_numpy(clip)),
    }
    costs = rounds_of(
        {side: (lambda run=run: [run(clip) for clip in sounds]) for side, run in sides.items()},
        options.rounds,
        clips=len(sounds),
    )
    torch.set_num_threads(threads)
    return report("features, one thread", costs, against=name, unit=("ms/clip", lambda cost: 1000 * cost.seconds))


def models(folder: Path, options: argparse.Namespace, device: torch.device) -> str:
    """Embedding and predicting, stock and ours."""
    clips = write_clips(folder / "clips", options.clips)
    size = SIZES[options.size] if not options.trial else (32, 2, 2)
    model = write_model(folder / "model", size, stride=options.stride)
    stock = Stock(model, device, options.batch_size)
    settings = {"batch_size": options.batch_size, "device": options.device}
    compare(stock, clips, model, folder / "scores.csv", settings)
    usual = ["float32"] if choose_precision("auto", device)[0] is None else ["float32", "auto"]
    precisions = options.precisions or usual + (["int8"] if device.type == "cpu" else [])

    def own(verb: str, precision: str) -> Callable[[Sequence[Path]], None]:
        output = folder / ("out.npy" if verb == "embed" else "out.csv")
        return lambda files: getattr(tymbal, verb)(model, files, output, precision=precision, **settings)

    what = f"{'trial' if options.trial else options.size}, stride {options.stride}, batches of {options.batch_size}"
    texts = []
    for verb, loop in (("predict", stock.scores), ("embed", stock.embeddings)):
        sides: dict[str, Callable[[Sequence[Path]], Any]] = {"stock, float32": loop}
        sides.update({f"tymbal {verb}, {precision}": own(verb, precision) for precision in precisions})
        for run in sides.values():
            run(clips[: options.batch_size])  # what is made once is made here
        costs = further_clips(sides, clips, options.rounds)
        texts.append(
            report(
                f"{verb}, {what}",
                costs,
                against="stock, float32",
                unit=("hours a minute", lambda cost: SECONDS / 60 / cost.seconds),
            )
        )
    return "\n".join(texts)


def birds(folder: Path, options: argparse.Namespace) -> str:
    """Hours of sound a minute of one core beside BirdNET, at the same window and hop, from a recording at 48 kHz."""
    torch.set_num_threads(1)
    rate, window, count = 48_000, 3, options.clips
    noise = np.random.default_rng(0).normal(0, 0.05, rate * window * count).astype(np.float32)
    recording, short = folder / "recording.wav", folder / "short.wav"
    soundfile.write(recording, noise, rate, subtype="PCM_16")
    soundfile.write(short, noise[: rate * window], rate, subtype="PCM_16")
    peer = [options.birdnet, str(Path(__file__).with_name("_birdnet_embeddings.py")), "--speed", str(recording)]
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        said = subprocess.run(
            peer, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        found.setdefault("BirdNET V2.4", []).append(float(said.stdout))
        for size in ("mini", "tiny"):
            model = folder / size
            if not model.exists():
                write_model(model, SIZES[size], stride=16, frames=100 * window)
            for precision in ("float32", "auto", "int8"):
                settings = {"window": float(window), "hop": float(window), "precision": precision, "device": "cpu"}
                costs = [
                    timed(
                        lambda file=file, settings=settings, model=model: tymbal.predict(
                            model, file, folder / "out.csv", batch_size=options.batch_size, top=1, **settings
                        )
                    )
                    for file in (short, recording)
                ]
                each = (costs[1].processor - costs[0].processor) / (count - 1)
                found.setdefault(f"tymbal predict, {size}, {precision}", []).append(each)
    peers = found["BirdNET V2.4"]
    rows = [
        [
            side,
            f"{1000 * statistics.median(costs):.1f}",
            f"{window / 60 / statistics.median(costs):.2f}",
            f"{statistics.median(theirs / own for theirs, own in zip(peers, costs, strict=True)):.1f}",
        ]
        for side, costs in found.items()
    ]
    return table(["windows of 3 s, one core", "processor ms", "hours a minute", "times as fast"], rows) + "\n"


class Stock:
    """The loop that one writes with transformers.

    Args:
        folder: A model that `save_pretrained` wrote.
        device: Where to compute.
        batch_size: Clips a batch.
    """

    def __init__(self, folder: Path, device: torch.device, batch_size: int) -> None:
        from transformers import ASTFeatureExtractor, ASTForAudioClassification

        self._extract = ASTFeatureExtractor.from_pretrained(folder)
        self._model = ASTForAudioClassification.from_pretrained(folder).eval().to(device)
        self._device, self._batch = device, batch_size

    def scores(self, files: Sequence[Path]) -> np.ndarray:
        """Scores [files, labels]."""
        return self._run(files, lambda x: self._model(x).logits.softmax(1))

    def embeddings(self, files: Sequence[Path]) -> np.ndarray:
        """The mean of the patch tokens, [files, width]."""
        return self._run(files, lambda x: self._model.audio_spectrogram_transformer(x).last_hidden_state[:, 2:].mean(1))

    def _run(self, files: Sequence[Path], compute: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for start in range(0, len(files), self._batch):
                sounds = [soundfile.read(file, dtype="float32")[0] for file in files[start : start + self._batch]]
                x = self._extract(sounds, sampling_rate=RATE, return_tensors="pt")["input_values"]
                found.append(compute(x.to(self._device)).cpu().numpy())
        return np.concatenate(found)


def compare(stock: Stock, clips: Sequence[Path], model: Path, output: Path, settings: dict[str, Any]) -> None:
    """Ends here where the two sides do not compute the same."""
    few = clips[:2]
    tymbal.predict(model, few, output, precision="float32", **settings)
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = np.zeros((len(few), LABELS))
    for row in rows:
        own[few.index(Path(row["file"])), int(row["label"].removeprefix("LABEL_"))] = float(row["score"])
    difference = np.abs(own - stock.scores(few)).max()
    if difference > 1e-3:
        sys.exit(f"The scores of both sides differ by {difference:.1e}: nothing to compare.")


def further_clips(
    sides: dict[str, Callable[[Sequence[Path]], Any]], clips: Sequence[Path], rounds: int
) -> dict[str, list[Cost]]:
    """The cost of a clip more: that of all less that of one, each round."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, run in sides.items():
            one, every = timed(lambda run=run: run(clips[:1])), timed(lambda run=run: run(clips))
            more = len(clips) - 1
            costs[name].append(Cost((every.seconds - one.seconds) / more, (every.processor - one.processor) / more))
            print(f"round {number + 1}, {name}: {every.seconds:.1f} s", file=sys.stderr)
    return costs


def rounds_of(sides: dict[str, Callable[[], Any]], rounds: int, *, clips: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(rounds):
        for name, run in sides.items():
            cost = timed(run)
            costs[name].append(Cost(cost.seconds / clips, cost.processor / clips))
    return costs


def timed(run: Callable[[], Any]) -> Cost:
    used, start = time.process_time(), time.perf_counter()
    run()
    return Cost(time.perf_counter() - start, time.process_time() - used)


def report(title: str, costs: dict[str, list[Cost]], *, against: str, unit: tuple[str, Callable[[Cost], float]]) -> str:
    """A line a side: the median of its figure, and how many times as fast as the peer it is."""
    name, figure = unit
    # As many times as fast: the peer's cost over the side's own.
    clock = {side: [1 / cost.seconds for cost in found] for side, found in costs.items()}
    processor = {side: [1 / max(cost.processor, 1e-9) for cost in found] for side, found in costs.items()}
    rows = [
        [
            side,
            f"{statistics.median(map(figure, found)):.2f}",
            f"{ratios(clock, side, against):.2f}",
            f"{ratios(processor, side, against):.2f}",
        ]
        for side, found in costs.items()
    ]
    return table([title, name, "times as fast", "by processor time"], rows) + "\n"


def sound(count: int) -> list[np.ndarray]:
    """Tones in noise, float32 [samples] each."""
    generator = np.random.default_rng(0)
    time_axis = np.arange(RATE * SECONDS) / RATE
    pitches = generator.uniform(80, 7000, (count, 4))
    return [
        (
            sum(0.05 * np.sin(2 * np.pi * pitch * time_axis) for pitch in some)
            + generator.normal(0, 0.01, time_axis.size)
        ).astype(np.float32)
        for some in pitches
    ]


def write_clips(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    files = []
    for number, clip in enumerate(sound(count)):
        files.append(folder / f"{number:05d}.wav")
        soundfile.write(files[-1], clip, RATE, subtype="PCM_16")
    return files


def write_model(folder: Path, size: tuple[int, int, int], *, stride: int, frames: int = 1024) -> Path:
    """A stock model with random weights, and its feature extractor."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    width, depth, heads = size
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=LABELS,
        max_length=frames,
        frequency_stride=stride,
        time_stride=stride,
    )
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=frames).save_pretrained(folder)
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument(
        "--stride", type=int, default=10, help="of the patches: 10 as AST fine-tunes, 16 as it pretrains"
    )
    parser.add_argument("--clips", type=int, default=24, help="clips of each measurement with a model")
    parser.add_argument("--feature-clips", type=int, default=50, help="clips of each measurement of features")
    parser.add_argument("--batch-size", type=int, default=8, help="clips a batch, on both sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "auto", "int8"), help="of ours")
    parser.add_argument("--birdnet", help="Python of an environment with BirdNET: only compare with that, on one core")
    parser.add_argument("--trial", action="store_true", help="a model that no one needs, and few clips")
    options = parser.parse_args()
    if options.trial:
        options.clips, options.feature_clips, options.batch_size, options.rounds = 4, 2, 2, 1
    if options.clips < 2:
        parser.error("--clips must be 2 or more")
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
