"""How fast is a folder of sound prepared, against its arithmetic alone, and does memory grow with the number of files?

    python benchmarks/preparing.py --data ../shared/data/esc10
    python benchmarks/preparing.py                                   # synthetic sound
    python benchmarks/preparing.py --against ../before/src           # the same of another checkout, in turns

Five-second clips at 44.1 kHz, 16-bit WAV, become a store of 16 kHz spectrograms. What bounds it is decoding, resampling
and the filter bank of one core, measured alone on the same files, times the cores. Cores that work at once share memory
and clock: what as many processes of nothing else reach together stands beside it. `tymbal.prepare` does the same and
lists, plans, checks, takes statistics, writes and syncs beside it; its processes start anew each time.

Both sides are timed in turns. The rate of a whole run contains the start of Python's processes, some seconds that do
not depend on the number of clips; the rate of a further clip is that of the difference between the two sizes, and the
one to compare. On a machine that has other work to do, processor time tells more than the clock: it is given for both.
Memory is the highest sum of the resident sizes of all processes, looked at every 20 ms.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch

from _report import machine, table
from tymbal.audio.decode import read
from tymbal.features.kaldi import KaldiFbank

RATE, SECONDS = 44_100, 5
HERE = Path(__file__).resolve().parents[1] / "src"


class Cost(NamedTuple):
    """What a run took, or a clip.

    Attributes:
        seconds: By the clock.
        processor: Processor seconds of all its processes.
        memory: Highest memory in bytes.
    """

    seconds: float
    processor: float
    memory: int = 0


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = options.workers or cores
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for count in options.clips:
            write_clips(folder / str(count), count, options.data)
        origin = "synthetic" if options.data is None else f"from {options.data.name}"
        print(f"Clips of {SECONDS} s at {RATE:,} Hz ({origin}), {workers} processes, {options.rounds} rounds")
        print(f"{machine()}, torch {torch.__version__}\n")
        measure(folder, options, workers)


def measure(folder: Path, options: argparse.Namespace, workers: int) -> None:
    small, large = options.clips
    alone: list[Cost] = []
    together: list[float] = []
    runs: dict[int, list[Cost]] = {small: [], large: []}
    others: dict[int, list[Cost]] = {small: [], large: []}
    arithmetic: dict[str, list[float]] = {"this": [], "other": []}
    for number in range(options.rounds):
        for count in options.clips:
            alone.append(run_alone(folder / str(large), options.alone))
            together.append(run_together(folder / str(large), options.alone, workers))
            runs[count].append(run_prepare(folder / str(count), folder / "store", workers))
            if options.against is not None:
                others[count].append(run_prepare(folder / str(count), folder / "store", workers, options.against))
                for name, code in (("this", HERE), ("other", options.against)):
                    arithmetic[name].append(run_alone_of(code, folder / str(large), options.alone))
            print(f"round {number + 1}, {count:,} clips: {runs[count][-1].seconds:.1f} s", file=sys.stderr)
    print(report(alone, together, runs, workers))
    if options.against is not None:
        print(f"\nThe other checkout, against the same bound:\n{report(alone, together, others, workers)}")
        this, other = (min(arithmetic[name]) for name in ("this", "other"))
        print(f"\nArithmetic alone, least: this {this:.3f} ms a clip, the other {other:.3f}, ratio {other / this:.3f}")


def report(alone: list[Cost], together: list[float], runs: dict[int, list[Cost]], workers: int) -> str:
    small, large = runs
    bound = workers / statistics.median(cost.seconds for cost in alone)
    least = statistics.median(cost.processor for cost in alone)
    seconds = {count: statistics.median(cost.seconds for cost in runs[count]) for count in runs}
    processor = {count: statistics.median(cost.processor for cost in runs[count]) for count in runs}
    memory = {count: max(cost.memory for cost in runs[count]) for count in runs}

    def line(name: str, count: int, seconds: float, processor: float, memory: str = "") -> list[str]:
        rate, each = count / seconds, processor / count
        return [name, f"{rate:,.0f}", f"{rate / bound:.2f}", f"{1000 * each:.2f}", f"{least / each:.2f}", memory]

    rows = [
        line("decode + resample + fbank alone, times cores", workers, workers / bound, workers * least),
        [
            "  … of as many processes at once",
            f"{(rate := statistics.median(together)):,.0f}",
            f"{rate / bound:.2f}",
            "",
            "",
            "",
        ],
        *(
            line(f"prepare {n:,} clips, with its start", n, seconds[n], processor[n], f"{memory[n] / 2**20:,.0f}")
            for n in runs
        ),
        line(
            "prepare a further clip",
            large - small,
            seconds[large] - seconds[small],
            processor[large] - processor[small],
        ),
    ]
    growth = f"Memory of {large:,} clips / of {small:,}: {memory[large] / memory[small]:.2f}"
    headers = ["", "clips/s", "of the bound", "processor ms/clip", "of the bound", "peak MiB"]
    return f"{table(headers, rows)}\n\n{growth}"


def write_clips(folder: Path, count: int, data: Path | None) -> None:
    """Files of equal length; sound from `data` is repeated where there is less of it."""
    folder.mkdir()
    waveforms = list(real_sound(data, min(count, 400)) if data else synthetic_sound(min(count, 100)))
    for i in range(count):
        soundfile.write(folder / f"{i:06d}.wav", waveforms[i % len(waveforms)], RATE, subtype="PCM_16")


def real_sound(data: Path, count: int) -> Iterator[np.ndarray]:
    files = sorted(path for path in data.rglob("*") if path.suffix in (".wav", ".ogg", ".flac"))
    if not files:
        sys.exit(f"{data}: no .wav, .ogg or .flac files there")
    for path in files[:: max(len(files) // count, 1)][:count]:
        waveform, _ = read(path, sample_rate=RATE)
        yield np.resize(waveform, RATE * SECONDS)


def synthetic_sound(count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    time_axis = np.arange(RATE * SECONDS) / RATE
    for _ in range(count):
        tones = sum(np.sin(2 * np.pi * f * time_axis) / (i + 1) for i, f in enumerate(generator.uniform(80, 8000, 8)))
        yield (0.05 * tones + generator.normal(0, 0.01, time_axis.size)).astype(np.float32)


def run_alone(folder: Path, count: int) -> Cost:
    """What a clip costs to decode, resample and filter, in this process."""
    fbank = KaldiFbank()
    files = sorted(folder.iterdir())
    files = [str(path) for path in files[:: max(len(files) // count, 1)][:count]]
    start, used = time.perf_counter(), time.process_time()
    for path in files:
        waveform, _ = read(path, sample_rate=16_000)
        fbank(torch.from_numpy(waveform))
    return Cost((time.perf_counter() - start) / len(files), (time.process_time() - used) / len(files))


def run_alone_of(code: Path, folder: Path, count: int) -> float:
    """Milliseconds of processor time a clip of `run_alone` takes in a process of a checkout's `src` folder."""
    program = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1); "
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from preparing import run_alone; "
        f"folder = Path({str(folder)!r}); run_alone(folder, 20); "
        f"print(1000 * run_alone(folder, {count}).processor)"
    )
    environment = {**os.environ, "PYTHONPATH": str(code.resolve())}
    return float(subprocess.check_output([sys.executable, "-c", program], env=environment, text=True))


def run_together(folder: Path, count: int, workers: int) -> float:
    """Clips a second of as many processes as there are workers, each with `run_alone` to do."""
    context = multiprocessing.get_context("spawn")
    barrier, costs = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=_one_of_several, args=(folder, count, barrier, costs)) for _ in range(workers)]
    for process in processes:
        process.start()
    seconds = [costs.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(1 / each for each in seconds)


def _one_of_several(folder: Path, count: int, barrier: Any, costs: Any) -> None:
    torch.set_num_threads(1)
    run_alone(folder, min(count, 20))  # what is needed is imported and cached
    barrier.wait()
    costs.put(run_alone(folder, count).seconds)


def run_prepare(source: Path, store: Path, workers: int, code: Path | None = None) -> Cost:
    """What one preparation costs, by this checkout or the `src` folder of another."""
    environment = os.environ if code is None else {**os.environ, "PYTHONPATH": str(code.resolve())}
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, "-m", "tymbal", "prepare", str(source), "-o", str(store), "--workers", str(workers)]
    start, used = time.perf_counter(), children_time()
    process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL, env=environment)
    peak = Peak(process.pid)
    if process.wait() != 0:
        sys.exit("tymbal prepare failed; its own message is above.")
    return Cost(time.perf_counter() - start, children_time() - used, peak.stop())


def children_time() -> float:
    """Processor seconds of all processes that were started here and have ended, and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


class Peak:
    """Watches the memory of a process and all below it; 0 where the system has no /proc.

    Args:
        root: Id of the process.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._highest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        """Ends the watch and gives the highest sum of resident bytes."""
        self._stop.set()
        self._thread.join()
        return self._highest

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._highest = max(self._highest, sum(resident(process) for process in family(self._root)))


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    processes = [root]
    for process in processes:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                processes += [int(child) for child in children.read_text().split()]
            except OSError:  # it has just ended
                continue
    return processes


def resident(process: int) -> int:
    """Resident bytes of a process; 0 if it has just ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of real sound, for instance ESC-10")
    parser.add_argument("--clips", type=int, nargs=2, default=[1000, 4000], metavar=("FEW", "MANY"))
    parser.add_argument("--alone", type=int, default=300, help="clips of each measurement on one core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="src folder of another checkout")
    parser.add_argument("--workers", type=int, help="processes; one a core by default")
    parser.add_argument("--folder", type=Path, help="where to write the temporary files (0.45 MB a clip)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
