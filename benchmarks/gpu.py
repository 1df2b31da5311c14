"""What does a GPU make of it? One command, ten minutes at most, one table and a file of JSON.

    python benchmarks/gpu.py --json gpu.json       # on CUDA: base encoder, 1,024 frames
    python benchmarks/gpu.py --short --device cpu  # that it works, in a minute

Measured are, in this order, so that what matters most is there when the time is up (`--minutes`):

- products of large matrices in bf16, the rate that everything else is a share of (MFU, the model FLOPs utilisation: the
  operations of a step's products and attention, counted by torch, a second, of that rate);
- a step (forward, backward, clipping, AdamW) of each objective, of all tokens and, where it has the form, of visible
  ones, in bf16; compiled; and of the reference's algorithm of SSAST in float32, whose two passes are its step;
- whether losses are those of the CPU: float32 to 1e-5, bf16 to 1e-3;
- what a batch costs to load beside its step; views drawn from spectrograms, fresh views of waveforms, the filter bank;
- `tymbal predict` and `tymbal embed` on recordings of ten seconds; and `torchrun` with one process, whose weights must
  be those of a run without.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tymbal
from _report import machine, table
from _ssast_reference import ReferenceSSAST, adam, joint_step
from inference import further_clips, write_clips, write_model
from tymbal.compute.device import choose_device
from tymbal.features.kaldi import KaldiFbank
from tymbal.machine import tune_malloc
from tymbal.models.description import normalisation_of
from tymbal.models.warm_start import first_encoder
from tymbal.objectives import registry
from tymbal.progress import quietly
from tymbal.settings import SIZES, FeatureSettings
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.store.dataset import StoreDataset
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store
from tymbal.training.optimization import parameter_groups
from tymbal.views.draw import clip_key
from tymbal.views.make import ViewMaker, fresh_pairs

MELS, RATE = 128, 16_000
VISIBLE = ("joint", "mpc", "mpg")


class Line(NamedTuple):
    """A figure: what it is of, its value, its unit, and what it is compared with or bounded by."""

    name: str
    value: float
    unit: str
    note: str = ""


class Bench:
    """What all parts share.

    Args:
        options: The command's.
        device: Where to compute.
        folder: Where stores and models may lie.

    Attributes:
        lines: All figures so far.
        products: Operations a second that products in bf16 reach.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device, folder: Path) -> None:
        self.options, self.device, self.folder = options, device, folder
        self.lines: list[Line] = []
        self.products = math.nan
        self.store = self._store()

    def _store(self) -> Store:
        random = np.random.default_rng(0)
        frames = self.options.frames
        entries = (Entry(id=str(i), file=f"{i}.wav", start=0.0, end=10.3, frames=frames) for i in range(self.clips))
        values = ((random.normal(-6, 4, (frames, MELS)), entry) for entry in entries)
        return write_store(self.folder / "store", values, features=FeatureSettings(mel_bins=MELS), frames=frames)

    @property
    def clips(self) -> int:
        """Clips in the store."""
        return int(max(64, 4 * self.options.batch))

    def say(self, *lines: Line) -> None:
        """Keeps figures, and shows them."""
        self.lines += lines
        for line in lines:
            print(f"{line.name}: {line.value:,.4g} {line.unit}  {line.note}", file=sys.stderr, flush=True)

    def seconds(self, run: Callable[[], object], *, warm: int = 2) -> float:
        """Median seconds of a call, on an idle device before and after."""
        for _ in range(warm):
            run()
        self.wait()
        found = []
        for _ in range(self.options.rounds):
            start = time.perf_counter()
            run()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def objective(self, name: str, **given: Any) -> nn.Module:
        """An objective as a run builds it, on the CPU, with the same weights each time."""
        settings = registry.resolve({"objective": name, "size": self.options.size, "patch": "16x16", **given})
        spec = registry.spec(name)
        torch.manual_seed(0)
        encoder, _ = first_encoder(
            settings, mels=MELS, frames=self.options.frames, keep_stride=spec.patches_may_overlap
        )
        built: Any = spec.build(encoder, self.store, normalisation_of(settings, self.store, None), settings)
        return built  # type: ignore[no-any-return]

    def batch(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """A batch of the store, as the trainer hands it on, with the vector of a teacher."""
        batch = StoreDataset(self.store, self.store.rows()).__getitems__(list(range(count)))
        return {name: value.to(device) for name, value in batch.items()} | {
            "target": torch.ones(count, 1, 1, device=device)
        }


def autocast(device: torch.device, *, bf16: bool) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def step_of(bench: Bench, module: nn.Module, *, compiled: bool = False) -> Callable[[], object]:
    """A step of training, as a run takes it, in bf16."""
    module = module.to(bench.device).train()
    groups = parameter_groups(module.named_parameters(), learning_rate=1e-4, weight_decay=1e-2)
    optimizer = torch.optim.AdamW(groups, fused=True)
    called = torch.compile(module) if compiled else module
    batch = bench.batch(bench.options.batch, bench.device)

    def step() -> None:
        with autocast(bench.device, bf16=True):
            loss = called(**batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        batch["epoch"] += 1

    return step


def products(bench: Bench) -> None:
    size = 512 if bench.options.short else 8192
    one, other = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bench.products = 2 * size**3 / bench.seconds(lambda: one @ other)
    bench.say(Line(f"products of {size} x {size} in bf16", bench.products / 1e12, "TFLOP/s", "the bound"))


def steps(bench: Bench) -> None:
    """Steps of all objectives."""
    clips = bench.options.batch
    by_name: dict[str, float] = {}
    names = registry.names() if not bench.options.short else ("joint", "lejepa", "contrastive", "distill")
    kinds = [(name, encode) for name in names for encode in (("all", "visible") if name in VISIBLE else ("",))]
    for name, encode in kinds:
        step = step_of(bench, bench.objective(name, **({"encode": encode} if encode else {})))
        with FlopCounterMode(display=False) as counter:
            step()
        seconds = bench.seconds(step)
        share = counter.get_total_flops() / seconds / bench.products
        label = f"step of {name}{f', {encode} tokens' if encode else ''}"
        by_name[label] = seconds
        bench.say(Line(label, 1000 * seconds, "ms", f"{clips / seconds:,.0f} clips/s, {100 * share:.0f} % MFU"))
    ratio = by_name["step of joint, all tokens"] / by_name["step of joint, visible tokens"]
    bench.say(Line("visible tokens against all", ratio, "times as fast"))


def reference(bench: Bench) -> None:
    """The reference's two passes in float32, on fewer clips, where loops over the batch are its cost."""
    width, depth, heads = SIZES[bench.options.size]
    count = min(bench.options.batch, 16)
    torch.manual_seed(0)
    shape = {"width": width, "depth": depth, "heads": heads, "mels": MELS, "frames": bench.options.frames}
    model = ReferenceSSAST(**shape).to(bench.device)
    batch = torch.randn(count, bench.options.frames, MELS, device=bench.device)
    patches = MELS // 16 * (bench.options.frames // 16)
    step = partial(joint_step, model, adam(model, 1e-4), batch, round(0.78 * patches))
    theirs = bench.seconds(step, warm=1) / count
    ours = next(line.value for line in bench.lines if line.name == "step of joint, all tokens")
    ratio = theirs / (ours / 1000 / bench.options.batch)
    bench.say(Line("reference, float32, two passes", 1000 * theirs, "ms a clip", f"joint in bf16 is {ratio:.1f} x"))


def compiled(bench: Bench) -> None:
    for encode in ("all", "visible"):
        seconds = bench.seconds(step_of(bench, bench.objective("joint", encode=encode), compiled=True))
        plain = next(line.value for line in bench.lines if line.name == f"step of joint, {encode} tokens") / 1000
        note = f"{plain / seconds:.2f} times as fast as without"
        bench.say(Line(f"step of joint, {encode} tokens, --compile", 1000 * seconds, "ms", note))


def parity(bench: Bench) -> None:
    """Losses on this device beside those of the CPU in float32, with the same weights and masks."""
    for name in ("joint", "lejepa"):
        losses: dict[str, float] = {}
        for place, bf16 in ((torch.device("cpu"), False), (bench.device, False), (bench.device, True)):
            module = bench.objective(name).to(place).eval()
            with torch.no_grad(), autocast(place, bf16=bf16):
                losses[f"{place.type} {bf16}"] = float(module(**bench.batch(4, place))["loss"])
        wanted = losses["cpu False"]
        for bf16, goal in ((False, 1e-5), (True, 1e-3)):
            away = abs(losses[f"{bench.device.type} {bf16}"] / wanted - 1)
            note = f"goal {goal:g}: {'met' if away <= goal else 'missed'}"
            bench.say(Line(f"loss of {name} beside the CPU's, {'bf16' if bf16 else 'float32'}", away, "relative", note))


def loading(bench: Bench) -> None:
    dataset = StoreDataset(bench.store, bench.store.rows())
    order = np.random.default_rng(0).permutation(len(dataset))[: bench.options.batch].tolist()

    def load() -> None:
        batch = dataset.__getitems__(order)["spectrogram"]
        (batch.pin_memory() if bench.device.type == "cuda" else batch).to(bench.device, non_blocking=True)

    seconds = bench.seconds(load)
    for encode in ("all", "visible"):
        step = next(line.value for line in bench.lines if line.name == f"step of joint, {encode} tokens") / 1000
        bound = "the loader bounds" if seconds > step else "the step bounds"
        note = f"{100 * seconds / step:.1f} % of a step: {bound}"
        bench.say(Line(f"batch loaded, beside joint of {encode} tokens", 1000 * seconds, "ms", note))


def views(bench: Bench) -> None:
    """Views of a batch: drawn from spectrograms, and made fresh of waveforms."""
    count = bench.options.batch
    module: Any = bench.objective("lejepa").to(bench.device)
    batch = bench.batch(count, bench.device)
    clips = batch["spectrogram"].float()
    keys = torch.arange(2 * count, device=bench.device)
    with torch.no_grad():
        seconds = bench.seconds(lambda: module.draw_views(clips, batch["frames"], keys))
    bench.say(Line("two views of a clip from its spectrogram", 1e6 * seconds / count, "us a clip"))
    samples = round(RATE * min(3.0, bench.options.frames / 100))
    features = FeatureSettings(mel_bins=MELS, sample_rate=RATE, filter_bank="librosa", low_freq=0.0)
    maker = ViewMaker(AugmentationSettings(), features, samples, device=bench.device)
    waveforms = torch.randn(count, samples, device=bench.device) * 0.1
    names = torch.tensor([clip_key(str(number)) for number in range(count)])
    seconds = bench.seconds(lambda: fresh_pairs(maker, waveforms, names, torch.zeros(count, dtype=torch.int64), seed=0))
    bench.say(Line(f"a fresh pair of {samples / RATE:g} s of sound", 1e6 * seconds / count, "us a clip"))
    bank = KaldiFbank(FeatureSettings(mel_bins=MELS))
    sound = torch.randn(count, 10 * RATE, device=bench.device) * 0.1
    seconds = bench.seconds(lambda: bank(sound))
    note = f"{count * 10 / 3600 / (seconds / 60):,.0f} hours a minute"
    bench.say(Line("filter bank of 10 s", 1e6 * seconds / count, "us a clip", note))


def inference(bench: Bench) -> None:
    """`predict` and `embed`, from files to tables."""
    short = bench.options.short
    clips = write_clips(bench.folder / "clips", 4 if short else 512)
    model = write_model(bench.folder / "model", (32, 2, 2) if short else SIZES[bench.options.size], stride=10)
    settings = {"batch_size": 2 if short else 64, "device": bench.device.type}
    sides = {
        verb: partial(getattr(tymbal, verb), model, output=bench.folder / f"out{suffix}", **settings)
        for verb, suffix in (("predict", ".csv"), ("embed", ".npy"))
    }
    for run in sides.values():
        run(clips[:2])
    for verb, costs in further_clips(sides, clips, 1 if short else 2).items():
        hours = 10 / 60 / min(cost.seconds for cost in costs)
        bench.say(Line(f"tymbal {verb}, recordings of 10 s", hours, "hours a minute"))


def one_process(bench: Bench) -> None:
    """A run by `torchrun` with one process, and one without: the same weights, at what cost?"""
    common = [
        "pretrain",
        str(bench.store.path),
        "--objective",
        "joint",
        "--size",
        bench.options.size,
        "--max-steps",
        "4",
    ]
    common += ["--batch-size", "8", "--device", bench.device.type, "--quiet", "--warmup", "0.5"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--standalone"]
    losses = {}
    for name, start in (("plain", []), ("torchrun", launcher)):
        command = [sys.executable, *start, "-m", "tymbal", *common, "-o", str(bench.folder / name)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        lines = (bench.folder / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [found["loss"] for line in lines if "loss" in (found := json.loads(line))][-1]
    away = abs(losses["torchrun"] / losses["plain"] - 1)
    bench.say(Line("loss by torchrun with one process beside that without", away, "relative"))


PARTS = (products, steps, reference, compiled, parity, loading, views, inference, one_process)


def main() -> None:
    options = parse()
    device, _ = choose_device(options.device)
    if device.type == "cpu" and not options.short:
        sys.exit("There is no GPU. --short --device cpu tries the script on the CPU; its figures mean nothing.")
    tune_malloc()
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    headline = f"{gpu}{machine()}, torch {torch.__version__}"
    print(f"{headline}\n{options.size} encoder, batches of {options.batch} clips of {options.frames} x {MELS}\n")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, quietly():
        bench = Bench(options, device, Path(name))
        for part in PARTS:
            if part is compiled and options.no_compile:
                continue
            if time.monotonic() - start > 60 * options.minutes:
                bench.say(Line(f"{part.__name__}: left out, the time is up", math.nan, ""))
                continue
            part(bench)
    rows = [[line.name, f"{line.value:,.4g}", line.unit, line.note] for line in bench.lines]
    print(table(["", "figure", "unit", ""], rows))
    if options.json:
        facts = {"machine": headline, **{name: str(value) for name, value in vars(options).items()}}
        figures = [
            line._asdict() | {"value": line.value if math.isfinite(line.value) else None} for line in bench.lines
        ]
        options.json.write_text(json.dumps({"facts": facts, "figures": figures}, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=8, help="after which no further part begins")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--short", action="store_true", help="a tiny encoder and few clips, to see that it works")
    options = parser.parse_args()
    if options.short:
        options.size, options.frames, options.batch, options.rounds = "tiny", 128, 4, 1
    return options


if __name__ == "__main__":
    main()
