"""What does an epoch of contrastive training wait for its data, by where the views come from?

    python benchmarks/views_training.py --data ../shared/data/esc10
    python benchmarks/views_training.py --clips 2000

Batches of pairs of views [batch, 2, 130, 128], in random order, in one process, nothing else computed:

- `.pt` pairs: torch.load of a file a pair, stacked by a DataLoader, as most scripts do;
- packed pairs: whole batches of Tymbal's store, in its float16, which training makes float32 on its device; and the
  same made float32 here, as the files are;
- fresh views on the CPU, of packed waveforms, and on a GPU where there is one;
- augmenting each file in each epoch: decoding, changing samples, log-mel, pair by pair (Tymbal's exact mode, which is
  some times as fast as audiomentations and librosa: see benchmarks/views.py).

Pages are cached. Files and batches are those of `tymbal prepare`. Ratios are of processor time, which other work on the
machine disturbs little, but for the GPU, whose work only the clock sees.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import tymbal
from _report import machine, ratios, table
from tymbal.audio.decode import read
from tymbal.machine import tune_malloc
from tymbal.progress import quietly
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.store.dataset import StoreDataset, whole_batch
from tymbal.store.packed.packed_store import PairStore, WaveStore
from tymbal.views.draw import clip_key, draw, view_keys
from tymbal.views.make import FreshViewDataset, ViewMaker

RATE, SECONDS = 22_050, 3.0
SAMPLES = round(RATE * SECONDS)
FEATURES = FeatureSettings(filter_bank="librosa", sample_rate=RATE, low_freq=0.0)
PT, PACKED, GPU = ".pt pairs", "packed pairs", "fresh, GPU"


class Rate(NamedTuple):
    """Pairs a second, by the clock and of processor time."""

    clock: float
    processor: float


class PtPairs(Dataset[tuple[Tensor, Tensor]]):
    """One file a pair, as scripts read them."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = torch.load(self.files[index], weights_only=True)
        return pair["view1"], pair["view2"]


class PerFile(Dataset[tuple[Tensor, Tensor]]):
    """Decodes and augments a file whenever it is asked for."""

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.maker = ViewMaker(AugmentationSettings(), FEATURES, SAMPLES, mode="exact")
        self.asked = 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        waveform = torch.zeros(1, SAMPLES)
        found = read(self.files[index], sample_rate=RATE, end=None)[0][:SAMPLES]
        waveform[0, : len(found)] = torch.from_numpy(found)
        self.asked += 1
        keys = view_keys(0, torch.tensor([clip_key(self.files[index])]), torch.tensor([self.asked]))
        draws = draw(self.maker.settings, keys, [0, 0])
        both = torch.zeros(2, dtype=torch.int64)
        views = self.maker.views(waveform, both, draws, self.maker.clean(waveform)[both])
        return views[0], views[1]


def main() -> None:
    options = parse()
    tune_malloc()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print("Preparing ...", file=sys.stderr)
        sides = prepare(folder, options)
        print(
            f"Batches of {options.batch}, {options.rounds} rounds, one process\n{machine()}, torch {torch.__version__}"
        )
        if not torch.cuda.is_available():
            print("Fresh views on a GPU: left out, there is none")
        for side in sides.values():
            side(0)
        rounds: dict[str, list[Rate]] = {side: [] for side in sides}
        for number in range(options.rounds):
            for side, epoch in sides.items():
                rounds[side].append(epoch(number + 1))
        print(report(rounds))


def report(rounds: dict[str, list[Rate]]) -> str:
    clock = {side: [rate.clock for rate in rates] for side, rates in rounds.items()}
    processor = {side: [rate.processor for rate in rates] for side, rates in rounds.items()}
    rows = []
    for side, rates in clock.items():
        compared = clock if side == GPU else processor
        rows.append(
            [
                side,
                f"{statistics.median(rates):,.0f}",
                f"{statistics.median(processor[side]):,.0f}",
                f"{8000 / statistics.median(rates):,.1f}",
                f"{ratios(compared, side, PT):.2f}",
                f"{ratios(compared, side, PACKED):.3f}",
            ]
        )
    head = ["pairs", "a second", "a processor second", "s an epoch of 8,000", f"of {PT}", f"of {PACKED}"]
    return table(head, rows)


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[int], Rate]]:
    """All forms of the data; gives what reads an epoch, by name, as pairs a second."""
    source = options.data or made_sound(folder / "sound", options.clips)
    common: dict[str, Any] = {"split": "none", "workers": 1, "silence_db": -200.0}
    with quietly():
        pairs = tymbal.prepare(source, folder / "pairs", views=1, **common).store
        waves = tymbal.prepare(source, folder / "waves", views=1, write="waveforms", **common).store
        tymbal.convert(folder / "pairs", folder / "files")
    assert isinstance(pairs, PairStore)
    assert isinstance(waves, WaveStore)
    files = sorted((folder / "files").glob("*/*.pt"))
    sound = waves.index["file"].to_pylist()[: options.few]
    sides: dict[str, Callable[[int], Rate]] = {
        PT: lambda seed: singly(PtPairs(files), options.batch, seed),
        PACKED: lambda seed: whole(StoreDataset(pairs, pairs.rows()), options.batch, seed),
        "packed pairs, as float32": lambda seed: whole(
            StoreDataset(pairs, pairs.rows()), options.batch, seed, convert=True
        ),
        "fresh, CPU": lambda seed: whole(fresh(waves, "cpu", options.few), options.batch, seed),
        "each file, CPU": lambda seed: singly(PerFile(sound), options.batch, seed),
    }
    if torch.cuda.is_available():
        sides[GPU] = lambda seed: whole(fresh(waves, "cuda", None), options.batch, seed)
    return sides


def fresh(waves: WaveStore, device: str, count: int | None) -> FreshViewDataset:
    maker = ViewMaker(AugmentationSettings(), FEATURES, SAMPLES, device=device)
    return FreshViewDataset(waves, waves.rows()[:count], maker, seed=0, device=device)


def singly(dataset: Dataset[Any], batch: int, seed: int) -> Rate:
    """An epoch, pair by pair."""
    generator = torch.Generator().manual_seed(seed)
    return timed(DataLoader(dataset, batch_size=batch, shuffle=True, generator=generator), len(dataset))  # type: ignore[arg-type]


def whole(dataset: Any, batch: int, seed: int, *, convert: bool = False) -> Rate:
    """An epoch, by whole batches."""
    order = np.random.default_rng(seed).permutation(len(dataset)) + seed * len(dataset)
    batches = [part.tolist() for part in np.split(order, range(batch, len(order), batch))]
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=whole_batch)
    return timed((found["spectrogram"].float() for found in loader) if convert else loader, len(dataset))


def timed(batches: Iterable[Any], count: int) -> Rate:
    start, busy = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Rate(count / (time.perf_counter() - start), count / (time.process_time() - busy))


def made_sound(folder: Path, count: int) -> Path:
    folder.mkdir()
    axis = np.arange(SAMPLES) / RATE
    for number in range(count):
        random = np.random.default_rng(number)
        sound = 0.3 * np.sin(2 * np.pi * random.uniform(100, 4000) * axis) + random.normal(0, 0.02, SAMPLES)
        soundfile.write(folder / f"{number:05d}.wav", sound, RATE, subtype="PCM_16")
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of sound; without it sound is made")
    parser.add_argument("--clips", type=int, default=512, help="number of clips that are made")
    parser.add_argument("--few", type=int, default=64, help="clips of the slow sides")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; the default is the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
