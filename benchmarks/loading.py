"""How fast do spectrograms come from the disk into batches, against a memory copy and against `.pt` files?

    python benchmarks/loading.py
    python benchmarks/loading.py --frames 112 --rows 20000      # one-second clips
    python benchmarks/loading.py --remote --rows 2000           # from an S3 server of this machine (moto)
    python benchmarks/loading.py --frames 112 --verification    # what comparing rows with their checksums costs

All sides give the same random spectrograms in random order and batches of 64. They are timed in turns, in one process,
so that what disturbs one disturbs all; the ratio is the median over the rounds.

- plain memory copy: `numpy.take` from one array in RAM into a buffer, the least that any loader has to do. A batch that
  is in use must not be overwritten, so it takes two buffers in turn; the figures for one buffer, which stays in the
  processor's cache, and for fresh memory each time stand beside it;
- packed store: `tymbal`'s store and training sampler under a plain `torch.utils.data.DataLoader`, in this process;
- the store alone: `Store.gather`, batch by batch, without torch's DataLoader;
- a tensor in memory that holds everything, indexed by a DataLoader; and Hugging Face `datasets`, where it is installed;
- `.pt` files, one a spectrogram, `torch.load(weights_only=True)` under a DataLoader with 0 and 2 workers.

A store whose rows fit into a sixteenth of the memory keeps them after their second reading; `--no-memory` measures it
without.

Then the same from a cold page cache: the files' own pages are dropped before each run (`posix_fadvise(DONTNEED)`, where
the system has it). Plain mapping copies rows from a memory-mapped file, as numpy alone would.

`--remote`: the same store on an S3 server of this machine, with an empty cache, and with a full one; beside it one
object a spectrogram, fetched by as many threads. The server is written in Python and bounds what is fetched: the number
of requests is what travels to another one.

`--verification` asks what it costs that a process compares each row with its CRC-32 when it first reads it: a first
pass with and without, in processor time, beside a training step (forward, backward, optimizer) of the smallest encoder
that Tymbal names, which is where such costs weigh most.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from _report import machine, ratios, table
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.ssast import SSASTObjective
from tymbal.settings import SIZES, FeatureSettings, parse_patch
from tymbal.store import parallel_copy
from tymbal.store.dataset import StoreDataset, whole_batch
from tymbal.store.packed.packed_store import Store, open_store
from tymbal.store.packed.writer import Entry, write_store
from tymbal.training.batches import BatchPlan, PlannedBatchSampler

COPY = "plain memory copy"
STORE = "packed store"


class PtFiles(Dataset[torch.Tensor]):
    """One file a spectrogram."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.paths = [str(folder / f"{row:06d}.pt") for row in range(rows)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.load(self.paths[index], weights_only=True)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.no_memory:
        parallel_copy._MOST_KEPT = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_files(folder, options)
        print(
            f"{options.rows:,} spectrograms of {options.frames} x {options.mels} float16, random order, batches of "
            f"{options.batch}, {options.rounds} rounds\n{machine()}, torch {torch.__version__}\n"
        )
        if options.remote:
            print(remote(folder, options))
            return
        if options.verification:
            print(verification(folder, options))
            return
        print(warm(folder, options), "\n", flush=True)
        if hasattr(os, "posix_fadvise"):
            print(cold(folder, options))


def write_files(folder: Path, options: argparse.Namespace) -> None:
    generator = np.random.default_rng(0)
    (folder / "pt").mkdir()

    def spectrograms() -> Iterator[tuple[np.ndarray, Entry]]:
        for row in range(options.rows):
            values = generator.normal(-6, 4, (options.frames, options.mels)).astype(np.float16)
            torch.save(torch.from_numpy(values), folder / "pt" / f"{row:06d}.pt")
            yield values, Entry(id=str(row), file=f"{row}.wav", start=0.0, end=10.0, frames=options.frames)

    features = FeatureSettings(mel_bins=options.mels)
    rows_per_shard = max(64 * 2**20 // (options.frames * options.mels * 2), 1)
    write_store(
        folder / "store", spectrograms(), features=features, frames=options.frames, rows_per_shard=rows_per_shard
    )


def warm(folder: Path, options: argparse.Namespace) -> str:
    store = Store.open(folder / "store")
    ram = np.concatenate([np.load(store.path / shard.file) for shard in store.description.shards])
    shape = (options.batch, options.frames, options.mels)
    buffers = [np.zeros(shape, np.float16) for _ in range(2)]

    def copy(into: int) -> Callable[[int], None]:
        def run(seed: int) -> None:
            for i, rows in enumerate(orders(options, seed)):
                np.take(ram, rows, axis=0, out=buffers[i % into][: len(rows)], mode="clip")

        return run

    def fresh(seed: int) -> None:
        for rows in orders(options, seed):
            ram[rows]

    fast: dict[str, Callable[[int], None]] = {
        COPY: copy(2),
        "  … into one buffer": copy(1),
        "  … into fresh memory": fresh,
        STORE: lambda seed: through_loader(store, options, seed),
        "packed store, without DataLoader": lambda seed: gathered(store, options, seed),
        "tensor in memory": lambda seed: through_tensor(torch.from_numpy(ram), options, seed),
    }
    table_of_rows = hugging_face(folder, ram)
    if table_of_rows is not None:
        fast["Hugging Face datasets"] = lambda seed: through_datasets(table_of_rows, options, seed)
    workers = (0,) if options.processor_time else (0, 2)
    files = {f".pt files, {n} workers": lambda seed, n=n: through_files(folder, options, seed, n) for n in workers}
    measured = in_turns({**fast, **files}, options, repeat=dict.fromkeys(fast, options.repeat))
    best = max(files, key=lambda name: statistics.median(measured[name]))
    rows = [
        [
            name,
            f"{statistics.median(rates):,.0f}",
            f"{ratios(measured, name, COPY):.2f}",
            f"{ratios(measured, name, best):.1f}",
        ]
        for name, rates in measured.items()
    ]
    return table(["page cache warm", "rows/s", "of the copy", "times .pt"], rows)


def cold(folder: Path, options: argparse.Namespace) -> str:
    def mapped(seed: int) -> None:
        store = Store.open(folder / "store")
        maps = [np.load(store.path / shard.file, mmap_mode="r") for shard in store.description.shards]
        ends = np.cumsum([shard.rows for shard in store.description.shards])
        out = np.empty((options.batch, options.frames, options.mels), np.float16)
        for rows in orders(options, seed):
            for i, row in enumerate(rows):
                shard = int(np.searchsorted(ends, row, side="right"))
                out[i] = maps[shard][row - ends[shard]]

    sides: dict[str, Callable[[int], None]] = {
        "plain mapping": mapped,
        STORE: lambda seed: through_loader(Store.open(folder / "store"), options, seed),
        ".pt files, 0 workers": lambda seed: through_files(folder, options, seed, 0),
        ".pt files, 2 workers": lambda seed: through_files(folder, options, seed, 2),
    }
    measured = in_turns(sides, options, repeat={}, before=lambda: drop_pages(folder))
    rows = [
        [name, f"{statistics.median(rates):,.0f}", f"{ratios(measured, name, 'plain mapping'):.1f}"]
        for name, rates in measured.items()
    ]
    return table(["page cache cold", "rows/s", "times mapping"], rows)


def verification(folder: Path, options: argparse.Namespace) -> str:
    def first_pass(seed: int, *, verified: bool) -> None:
        store = Store.open(folder / "store")
        if not verified:
            store.checksums = None
        through_loader(store, options, seed)

    sides: dict[str, Callable[[int], None]] = {
        "first pass, verified": lambda seed: first_pass(seed, verified=True),
        "the same, not verified": lambda seed: first_pass(seed, verified=False),
    }
    measured = in_turns(sides, options, repeat={}, processor_time=True)
    passes = {name: 1000 * options.batch / statistics.median(rates) for name, rates in measured.items()}
    verified, bare = passes.values()
    step = 1000 * step_seconds(folder, options)
    rows = [
        *([name, f"{ms:.2f}", f"{100 * ms / step:.2f}"] for name, ms in passes.items()),
        ["verification alone", f"{verified - bare:.2f}", f"{100 * (verified - bare) / step:.2f}"],
        [f"a step of {options.size}, patches of {options.patch}", f"{step:.1f}", "100"],
    ]
    return table(["a batch", "ms of one core", "% of a step"], rows)


def step_seconds(folder: Path, options: argparse.Namespace) -> float:
    """Processor seconds of a step of joint pretraining."""
    store = Store.open(folder / "store")
    width, depth, heads = SIZES[options.size]
    patch = parse_patch(options.patch)
    shape = {"mels": options.mels, "frames": options.frames, "patch": patch, "stride": patch}
    encoder = SpectrogramEncoder(EncoderConfig(width=width, depth=depth, heads=heads, **shape))
    module = SSASTObjective(encoder, normalisation=Normalisation(mean=-6.0, std=4.0, padding=-16.0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    batches = DataLoader(StoreDataset(store, store.rows()), batch_size=options.batch, collate_fn=whole_batch)
    seconds = []
    for _, batch in zip(range(options.rounds + 1), batches, strict=False):
        start = time.process_time()
        module(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def in_turns(
    sides: dict[str, Callable[[int], None]],
    options: argparse.Namespace,
    *,
    repeat: dict[str, int],
    before: Callable[[], None] = lambda: None,
    processor_time: bool = False,
) -> dict[str, list[float]]:
    """Rows a second of each side by round; a first round is not counted."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, side in sides.items():
            epochs = repeat.get(name, 1)
            before()
            now = time.process_time if options.processor_time or processor_time else time.perf_counter
            start = now()
            for epoch in range(epochs):
                side(1000 * number + epoch)
            measured[name].append(epochs * options.rows / (now() - start))
    return {name: rates[1:] for name, rates in measured.items()}


def through_loader(store: Store, options: argparse.Namespace, seed: int) -> None:
    dataset = StoreDataset(store, store.rows())
    plan = BatchPlan(length=len(dataset), batch_sizes=(options.batch,), seed=seed)
    sampler = PlannedBatchSampler(plan, announce=dataset.announce, ahead=dataset.ahead)
    for _batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=whole_batch):
        pass


def gathered(store: Store, options: argparse.Namespace, seed: int) -> None:
    for rows in orders(options, seed):
        store.gather(np.array(rows))


def through_tensor(tensor: torch.Tensor, options: argparse.Namespace, seed: int) -> None:
    """All rows in one tensor: batches by one index, without a copy a row."""

    class Rows(Dataset[torch.Tensor]):
        def __getitem__(self, index: int) -> torch.Tensor:
            return tensor[index]

        def __getitems__(self, indices: list[int]) -> torch.Tensor:
            return tensor[indices]

    for _batch in DataLoader(Rows(), batch_sampler=orders(options, seed), collate_fn=whole_batch):
        pass


def hugging_face(folder: Path, values: np.ndarray) -> Any:
    """The rows as a table of Hugging Face `datasets` on the disk; None where it is not installed."""
    try:
        import datasets
    except ImportError:
        print("Hugging Face datasets: left out, not installed")
        return None
    shape = datasets.Array2D(values.shape[1:], "float16")
    features = datasets.Features({"spectrogram": shape})
    made = datasets.Dataset.from_generator(
        lambda: ({"spectrogram": row} for row in values), features=features, cache_dir=str(folder / "datasets")
    )
    return made.with_format("torch")


def through_datasets(rows: Any, options: argparse.Namespace, seed: int) -> None:
    for batch in orders(options, seed):
        rows[batch]["spectrogram"]


def remote(folder: Path, options: argparse.Namespace) -> str:
    """The store on an S3 server, cold and warm, beside one object a spectrogram."""
    from concurrent.futures import ThreadPoolExecutor

    import obstore
    from moto.server import ThreadedMotoServer
    from obstore.store import from_url

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    os.environ |= given | {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "TYMBAL_CACHE": str(folder / "cache")}
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bench", method="PUT")).close()
    client = from_url("s3://bench", client_options={"allow_http": True})
    for path in [*(folder / "store").rglob("*.*"), *(folder / "pt").iterdir()]:
        obstore.put(client, path.relative_to(folder).as_posix(), path)

    def objects(seed: int) -> None:
        with ThreadPoolExecutor(16) as threads:
            for rows in orders(options, seed):
                names = [f"pt/{row:06d}.pt" for row in rows]
                found = threads.map(lambda name: bytes(obstore.get(client, name).bytes()), names)
                torch.stack([torch.load(io.BytesIO(data), weights_only=True) for data in found])

    def through(seed: int, *, empty: bool) -> None:
        if empty:
            shutil.rmtree(folder / "cache", ignore_errors=True)
        through_loader(open_store("s3://bench/store"), options, seed)

    sides: dict[str, Callable[[int], None]] = {
        "an object a spectrogram, 16 threads": objects,
        "store elsewhere, empty cache": lambda seed: through(seed, empty=True),
        "store elsewhere, from the cache": lambda seed: through(seed, empty=False),
        "store here, opened anew": lambda seed: through_loader(Store.open(folder / "store"), options, seed),
    }
    measured = in_turns(sides, options, repeat={})
    first = next(iter(sides))
    rows = [
        [name, f"{statistics.median(rates):,.0f}", f"{ratios(measured, name, first):.1f}"]
        for name, rates in measured.items()
    ]
    server.stop()
    return table(["S3 server of this machine", "rows/s", "times objects"], rows)


def through_files(folder: Path, options: argparse.Namespace, seed: int, workers: int) -> None:
    batches = orders(options, seed)
    for _batch in DataLoader(PtFiles(folder / "pt", options.rows), batch_sampler=batches, num_workers=workers):
        pass


def orders(options: argparse.Namespace, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(options.rows)
    return [order[i : i + options.batch].tolist() for i in range(0, options.rows, options.batch)]


def drop_pages(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix in (".npy", ".pt"):
            handle = os.open(path, os.O_RDONLY)
            os.fdatasync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--mels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=5, help="epochs a round of the fast sides")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; more only wait for each other on a busy machine"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="count the seconds of this process, on a busy machine: no workers"
    )
    parser.add_argument("--remote", action="store_true", help="from an S3 server instead (moto and obstore)")
    parser.add_argument("--no-memory", action="store_true", help="keep no rows in memory")
    parser.add_argument("--verification", action="store_true", help="only what comparing with checksums costs")
    parser.add_argument("--size", default="mini", choices=SIZES, help="of the encoder that takes a step")
    parser.add_argument("--patch", default="16x16", help="of its patches, mel bins x frames")
    parser.add_argument("--folder", type=Path, help="where to write the temporary files (twice their size is needed)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
