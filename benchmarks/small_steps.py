"""Where does the time of a small encoder's training step go, and how near is it to its matrix products alone?

    OMP_NUM_THREADS=1 python benchmarks/small_steps.py                   # all objectives, sizes and lengths: 15 minutes
    OMP_NUM_THREADS=1 python benchmarks/small_steps.py --only lejepa finetune --cases mini-1s
    OMP_NUM_THREADS=1 python benchmarks/small_steps.py --whole 4000      # the demo's pretraining, over its bare steps
    python benchmarks/small_steps.py --short                             # that it works, in seconds

Each line is a real run of `tymbal pretrain` or `finetune` on clips of noise, from the loader to the log, in the default
arithmetic. Of one of its steps every matrix product (attention's and convolutions' among them) is written down with its
shapes, strides and type; these products alone, forward and backward, are then computed again, in turns with nothing
else, and are the bound. What a step takes is processor time between steps, logging and callbacks included. Where it
goes is told by `torch.profiler`, by kind of operation (whose own memory makes large ones take longer: steps under it
are up to a tenth slower); what it does not see, Python and the loop around the step, is the rest.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tymbal
from _learning import SETS
from _report import machine, table
from tymbal.demo.walkthrough import EVAL_EVERY
from tymbal.machine import tune_malloc
from tymbal.progress import quietly
from tymbal.settings import FeatureSettings
from tymbal.store.packed.writer import Entry, write_store
from tymbal.training.trainer import TymbalTrainer

NEVER = 1_000_000
STILL = {"eval_every": NEVER, "save_every": NEVER, "report_to": (), "patience": 0, "device": "cpu"}
MINI, TINY = {"width": 128, "depth": 4, "heads": 4}, {"width": 192, "depth": 12, "heads": 3}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "mini-1s": (MINI | {"patch": "128x4"}, 112),
    "mini-5s": (MINI | {"patch": "16x16"}, 512),
    "tiny-1s": (TINY | {"patch": "16x16"}, 112),
    "tiny-5s": (TINY | {"patch": "16x16"}, 512),
}
RUNS: dict[str, dict[str, Any]] = {
    "lejepa": {},
    "contrastive": {"objective": "contrastive"},
    "distill": {"objective": "distill"},
    "joint": {"objective": "joint"},
    "joint, visible": {"objective": "joint", "encode": "visible"},
    "mpc": {"objective": "mpc"},
    "mpg, visible": {"objective": "mpg", "encode": "visible"},
    "reconstruction": {"objective": "reconstruction", "accumulate": 1},
    "finetune": {},
}
KINDS = {
    "products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_scaled_dot",
        "mkldnn_linear",
        "convolution",
    ),
    "softmax, norms, GELU": ("softmax", "layer_norm", "batch_norm", "gelu", "std", "var"),
    "casts and copies": (
        "aten::copy_",
        "aten::_to_copy",
        "aten::cat",
        "aten::clone",
        "aten::contiguous",
        "aten::stack",
    ),
    "optimizer, clipping": ("adam", "foreach", "_norm"),
    "picking (gather, index, sort)": ("index", "gather", "scatter", "sort", "topk", "where", "nonzero"),
}


PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mkldnn_linear",
    "_mkldnn_linear",
    "convolution",
    "convolution_backward",
)


class Written(TorchDispatchMode):
    """Writes down matrix products with what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS or "scaled_dot" in name:
            given = tuple((a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in args)
            self.products.append((func, (given, dict(kwargs or {}))))
        return func(*args, **(kwargs or {}))

    def again(self) -> Callable[[], None]:
        """The same products of random numbers, as one call."""
        calls = []
        for func, (given, kwargs) in self.products:
            arguments = [_like(each) if _is_tensor(each) else each for each in given]
            calls.append((func, arguments, kwargs))

        def run() -> None:
            with torch.no_grad():
                for func, arguments, named in calls:
                    func(*arguments, **named)

        return run


def compiled_step(run: Callable[..., Any], settings: dict[str, Any], folder: Path, *, steps: int) -> float:
    """Milliseconds of processor time of a compiled step of a run, once it is compiled."""
    step = TymbalTrainer.training_step
    began: list[float] = []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        began.append(time.process_time())
        return step(self, *args, **kwargs)

    try:
        TymbalTrainer.training_step = watched  # type: ignore[method-assign]
        run(folder, max_steps=2 * steps + 8, compile=True, **settings)
    finally:
        TymbalTrainer.training_step = step  # type: ignore[method-assign]
    return 1e3 * statistics.median(after - before for before, after in itertools.pairwise(began[-steps - 1 :]))


def _is_tensor(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 3 and isinstance(given[0], torch.Size)


def _like(given: tuple[torch.Size, tuple[int, ...], torch.dtype]) -> Tensor:
    shape, strides, kind = given
    made = torch.empty_strided(shape, strides, dtype=torch.float32 if kind.is_floating_point else kind)
    return made.normal_().to(kind) if kind.is_floating_point else made.zero_()


def measured(run: Callable[..., Any], settings: dict[str, Any], folder: Path, *, steps: int) -> dict[str, float]:
    """Milliseconds of processor time of a step of a run: the whole `step`, its products `alone`, and each kind.

    Args:
        run: Trains into a folder.
        settings: Of the run.
        folder: The run folder.
        steps: To measure, after as many to warm up.
    """
    step, count = TymbalTrainer.training_step, 0
    began: list[float] = []
    written = Written()
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        began.append(time.process_time())
        if count == 2 * steps + 1:
            with written:
                return step(self, *args, **kwargs)
        if count == 2 * steps + 2:
            profile.start()
        if count == 3 * steps + 2:
            profile.stop()
        return step(self, *args, **kwargs)

    try:
        TymbalTrainer.training_step = watched  # type: ignore[method-assign]
        run(folder, max_steps=3 * steps + 2, **settings)
    finally:
        TymbalTrainer.training_step = step  # type: ignore[method-assign]
    each = [1e3 * (after - before) for before, after in itertools.pairwise(began[steps : 2 * steps + 1])]
    again = written.again()
    alone = []
    for _ in range(steps):
        start = time.process_time()
        again()
        alone.append(1e3 * (time.process_time() - start))
    figures = {"step": statistics.median(each), "alone": statistics.median(alone)}
    kinds: dict[str, float] = defaultdict(float)
    total = 0.0
    for event in profile.key_averages():
        spent = event.self_cpu_time_total / 1e3 / steps
        kind = next((k for k, names in KINDS.items() if any(n in event.key for n in names)), "elementwise and else")
        if event.key.startswith(("aten::", "autograd::", "Optimizer", "_", "mkldnn")):
            kinds[kind] += spent
            total += spent
    figures |= kinds
    figures["Python and the loop"] = max(0.0, figures["step"] - total)
    return figures


def whole_run(folder: Path, steps: int) -> None:
    """Says what the demo's pretraining takes in all, from Python's start to its end, over its bare steps.

    Args:
        folder: For what it writes.
        steps: Of it.
    """
    wingbeats = SETS["wingbeats"]
    tymbal.prepare(wingbeats.manifest(folder, folder, clips=0), folder / "store", workers=1, **wingbeats.prepare)
    script = Path(__file__).with_name("_whole_run.py")
    said = subprocess.run(
        [sys.executable, str(script), str(folder), str(steps), str(EVAL_EVERY)], check=True, stdout=subprocess.PIPE
    )
    print("the demo's pretraining, " + said.stdout.decode().splitlines()[-1])


def store_of(folder: Path, frames: int, *, clips: int = 128) -> Path:
    """A store of noise that changes in time, with two labels and a split."""
    if not folder.exists():
        generator = np.random.default_rng(0)
        entries = []
        for number in range(clips):
            course = generator.normal(0, 1, (frames // 4 + 1, 128)).repeat(4, axis=0)[:frames]
            clip = (course + generator.normal(-8, 1, (frames, 128))).astype(np.float32)
            split = "validation" if number % 8 == 0 else "train"
            facts = {"id": f"{number}", "file": f"{number}", "start": 0.0, "end": frames / 100, "frames": frames}
            named = Entry(**facts, labels=(f"{number % 2}",), split=split)
            entries.append((clip, named))
        write_store(folder, entries, features=FeatureSettings(), frames=frames)
    return folder


def main() -> None:
    options = parse()
    tune_malloc()
    torch.set_num_threads(1)
    steps = 2 if options.short else options.steps
    print(f"{machine()}, torch {torch.__version__}, one thread, batches of 32\n")
    rows = []
    with tempfile.TemporaryDirectory() as name, quietly():
        folder = Path(name)
        if options.whole:
            whole_run(folder, options.whole)
            return
        for case in options.cases:
            shape, frames = CASES[case]
            store = store_of(folder / f"store-{frames}", frames)
            for title in options.only:
                settings = {**RUNS[title], **shape, **STILL, "batch_size": 32}
                if title == "distill":
                    settings["teacher"] = teacher(folder / f"teacher-{frames}.npy")

                verb = tymbal.finetune if title == "finetune" else tymbal.pretrain
                figures = measured(partial(verb, store), settings, folder / f"{case}-{title}", steps=steps)
                share = figures["alone"] / figures["step"]
                kinds = [figures.get(kind, 0.0) for kind in (*KINDS, "elementwise and else", "Python and the loop")]
                rows.append([f"{case} {title}", f"{figures['step']:.1f}", f"{figures['alone']:.1f}", f"{share:.2f}"])
                rows[-1] += [f"{each:.1f}" for each in kinds]
                if options.compile:
                    compiled = compiled_step(partial(verb, store), settings, folder / f"c-{case}-{title}", steps=steps)
                    rows[-1] += [f"{compiled:.1f}", f"{figures['alone'] / compiled:.2f}"]
                print(f"{rows[-1][0]}: {share:.2f}", file=sys.stderr)
    head = ["processor ms of a step", "whole", "its products alone", "share", *KINDS, "elementwise", "the rest"]
    head += ["compiled", "share"] if options.compile else []
    print(table(head, rows))


def teacher(place: Path) -> Path:
    """A table of vectors of a teacher, and its rows."""
    if not place.exists():
        files = [str(number) for number in range(128)]
        np.save(place, np.random.default_rng(1).normal(0, 1, (len(files), 96)).astype(np.float32))
        rows = place.with_suffix(".rows.csv")
        rows.write_text("file,start,end\n" + "".join(f"{file},0,{100}\n" for file in files), encoding="utf-8")
    return place


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(RUNS), default=list(RUNS))
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="also time the steps when compiled (minutes each)")
    parser.add_argument("--whole", type=int, metavar="STEPS", help="the demo's pretraining in so many steps instead")
    parser.add_argument("--short", action="store_true", help="two steps of the smallest")
    options = parser.parse_args()
    if options.short:
        options.cases = ["mini-1s"]
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
