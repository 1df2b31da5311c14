"""What does going on from a checkpoint keep, and what does it gain? Arabic commands, then 320 clips of ESC-10.

    OMP_NUM_THREADS=1 python benchmarks/going_on.py --data ../shared/data --output going-on --seeds 1 2 3
    python benchmarks/going_on.py --data ../shared/data --short

An encoder is pretrained on Arabic commands for `--minutes`, and goes on with folds 1 to 4 of ESC-10, without labels, by
`tymbal pretrain --from`:

- `continue`: without another flag, as the recipe has it;
- `none`: with `--recipe none`, which trains as from random weights;
- `adapters`: with `--lora 8` (extra `peft`), where that is installed.

Before and after, `tymbal probe` reads both sets: Arabic of six unheard speakers from 800 labels, and ESC-10's fold 5
from 320. The model that is kept was chosen without labels. Figures are appended to `figures.jsonl` in the output
folder; the same command continues.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")

import tymbal
from _learning import DATA, SETS, Figures, keep_arguments, machine, processor_seconds, spread

ARMS: dict[str, dict[str, Any]] = {
    "continue": {},
    "none": {"recipe": "none"},
    "adapters": {"lora": 8, "learning_rate": 1e-3, "layer_decay": 1.0},
}
ASKED = ("arabic", "esc10")
READERS = ("ridge", "logistic")


def stores(arguments: argparse.Namespace) -> dict[str, Path]:
    """Stores of both sets, prepared where they are not there yet."""
    folder: Path = arguments.output
    patterns = {name: value for name, value in DATA["esc10"].prepare.items() if name.endswith("pattern")}
    manifests = {
        "arabic": SETS["arabic"].manifest(arguments.data, folder, arguments.clips),
        "esc10": tymbal.scan(arguments.data / "esc10", **patterns).manifest,
    }
    found = {}
    for name, manifest in manifests.items():
        found[name] = folder / f"store-{name}"
        clips = manifest.clips[:: 8 if arguments.short and name == "esc10" else 1]
        if not (found[name] / "store.json").exists():
            tymbal.Manifest(clips, manifest.root).write(folder / f"{name}.csv")
            tymbal.prepare(folder / f"{name}.csv", found[name], split="keep", **SETS[name].prepare)
    return found


def read(model: Path, sets: dict[str, Path], *, seed: int) -> dict[str, float]:
    """Accuracy of both sets by each reader: rows and the model's own parts of the time, middle and last layer."""
    figures = {}
    for name, store in sets.items():
        result = tymbal.probe(
            model, store, pooling=("grid",), layer="both", readers=READERS, random=False, seed=seed, device="cpu"
        )
        for row in result.rows:
            if row.features == "model" and row.layer == "both":
                figures[f"{name} {row.reader}"] = row.figures["accuracy"]
    return figures


def run(arguments: argparse.Namespace, figures: Figures) -> None:
    """Computes what is missing, seed by seed."""
    sets = stores(arguments)
    small = {"width": 32, "depth": 2, "heads": 2, "batch_size": 8, "max_steps": 3} if arguments.short else {}
    common = {"device": "cpu", "report_to": (), "snapshots": 0}
    for seed in arguments.seeds:
        start = arguments.output / f"start-{seed}"
        if arguments.start is not None:
            start = arguments.start
        elif not (start / "result.json").exists():
            budget = {} if arguments.short else {"max_minutes": arguments.minutes}
            tymbal.pretrain(sets["arabic"], start, seed=seed, **common, **budget, **small)
        if not figures.have(data="both", seed=seed, cell="start"):
            figures.add(data="both", seed=seed, cell="start", **read(start, sets, seed=seed))
        for arm in arguments.arms:
            if figures.have(data="both", seed=seed, cell=arm):
                continue
            if "lora" in ARMS[arm] and importlib.util.find_spec("peft") is None:
                print(f"skipped: {arm}, since peft is not installed", file=sys.stderr)
                continue
            output = arguments.output / f"{arm}-{seed}"
            shutil.rmtree(output, ignore_errors=True)
            began = processor_seconds()
            few = {"batch_size": 8, "max_steps": 3} if arguments.short else {}
            result = tymbal.pretrain(sets["esc10"], output, from_=str(start), seed=seed, **common, **few, **ARMS[arm])
            spent = {"seconds": processor_seconds() - began, "steps": result.steps, "best_step": result.best_step}
            figures.add(data="both", seed=seed, cell=arm, **spent, **read(output, sets, seed=seed))


def table(figures: Figures) -> Iterator[str]:
    """Means and standard deviations over seeds in percent, and changes from the start in points."""
    columns = [f"{name} {reader}" for name in ASKED for reader in READERS]
    titles = [f"{SETS[name].title}, {reader}" for name in ASKED for reader in READERS]
    yield "| | " + " | ".join(titles) + " | steps | processor s |"
    yield "|---|" + "---:|" * (len(columns) + 2)
    begun = {row["seed"]: row for row in figures.have(cell="start")}
    for cell in dict.fromkeys(row["cell"] for row in figures.rows):
        rows = figures.have(cell=cell)
        cells = []
        for column in columns:
            change = spread([row[column] - begun[row["seed"]][column] for row in rows]).split(" ± ")[0]
            shown = "" if cell == "start" else f" ({float(change):+.1f})"
            cells.append(spread([row[column] for row in rows]) + shown)
        steps = f"{rows[0]['steps']}" if "steps" in rows[0] else ""
        seconds = f"{sum(row['seconds'] for row in rows) / len(rows):.0f}" if "seconds" in rows[0] else ""
        yield f"| {cell} | " + " | ".join(cells) + f" | {steps} | {seconds} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with arabic_commands/ and esc10/")
    parser.add_argument("--output", type=Path, default=Path("going-on"), help="folder for stores, runs and figures")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes of the pretraining on Arabic commands")
    parser.add_argument("--start", type=Path, help="a run on Arabic commands to start from, instead")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--clips", type=int, help="about so many Arabic clips, evenly taken")
    parser.add_argument("--table", action="store_true", help="only show what is there")
    parser.add_argument("--short", action="store_true", help="under a minute: proves the machinery, teaches nothing")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.clips = 600
    return arguments


def main() -> None:
    arguments = parse()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keep_arguments(arguments, free=("arms", "table"))
    figures = Figures(arguments.output / "figures.jsonl")
    if not arguments.table:
        run(arguments, figures)
    print("\n".join(table(figures)))
    print(f"\n{date.today().isoformat()}, {machine()}, {processor_seconds() / 60:.0f} processor minutes this time\n")
    print(f"    python {shlex.join(sys.argv)}")


if __name__ == "__main__":
    main()
