"""What does a classifier lose when it learns one more word without its old sound? Arabic commands, one word left out.

    OMP_NUM_THREADS=1 python benchmarks/merging.py --data ../shared/data --start going-on/start-1 --output merging

A classifier of 19 words is fine-tuned on the encoder of `--start` with `--train head`; `tymbal merge` then teaches it
the twentieth from the 40 labelled clips of that word alone, for several `--recalls`. Asked are the six unheard
speakers: how many of the 19 words are named, before and after, how many clips the new word takes, and how many of its
own it finds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import date
from pathlib import Path

import numpy as np
import torch

import tymbal
from _learning import SETS, machine, processor_seconds
from tymbal.models.folder import load_model
from tymbal.store.dataset import normalised_batches


def prepared(clips: list[tymbal.Clip], root: Path, store: Path) -> Path:
    if not (store / "store.json").exists():
        store.parent.mkdir(parents=True, exist_ok=True)
        tymbal.Manifest(tuple(clips), root).write(store.with_suffix(".csv"))
        tymbal.prepare(store.with_suffix(".csv"), store, split="keep", **SETS["arabic"].prepare)
    return store


def named(model: Path, store: tymbal.Store) -> np.ndarray:
    """The likeliest label of each validation clip, [clips]."""
    loaded, rows = load_model(model), store.rows("validation")
    batches = normalised_batches(
        store, rows, normalisation=loaded.description.normalisation, batch_size=64, device=torch.device("cpu")
    )
    with torch.inference_mode():
        found = [loaded.module(batch.x, frames=batch.frames).argmax(1).numpy() for batch in batches]
    return np.array(loaded.description.labels)[np.concatenate(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with arabic_commands/")
    parser.add_argument("--start", type=Path, required=True, help="a run that was pretrained on Arabic commands")
    parser.add_argument("--output", type=Path, default=Path("merging"), help="folder for stores, runs and models")
    parser.add_argument("--words", nargs="+", default=["cancel"])
    parser.add_argument("--recalls", nargs="+", type=float, default=[1.0, 0.9, 0.8])
    arguments = parser.parse_args()
    manifest = SETS["arabic"].manifest(arguments.data, arguments.output)
    labelled = [clip for clip in manifest if clip.labels]
    print("| word | recall | 19 words before, % | after, % | taken by the new word, % | new word found, % |")
    print("|---|---:|---:|---:|---:|---:|")
    for word in arguments.words:
        folder = arguments.output / word
        old = prepared([clip for clip in labelled if word not in clip.labels], manifest.root, folder / "old")
        new = prepared([c for c in labelled if word in c.labels and c.split == "train"], manifest.root, folder / "new")
        asked = tymbal.Store.open(
            prepared([c for c in labelled if c.split == "validation"], manifest.root, folder / "asked")
        )
        if not (folder / "classifier" / "result.json").exists():
            start = {"from_": str(arguments.start), "train": "head", "seed": 1, "report_to": (), "device": "cpu"}
            tymbal.finetune(old, folder / "classifier", **start)
        truth = np.array([asked.labels[place] for place in asked.label_matrix(asked.rows("validation")).argmax(1)])
        own = truth == word
        before = named(folder / "classifier", asked)[~own] == truth[~own]
        for recall in arguments.recalls:
            merged = folder / f"merged-{recall:g}"
            if not merged.exists():
                tymbal.merge(folder / "classifier", new, merged, recall=recall, device="cpu")
            said = named(merged, asked)
            figures = [
                before.mean(),
                (said == truth)[~own].mean(),
                (said == word)[~own].mean(),
                (said == word)[own].mean(),
            ]
            print(f"| {word} | {recall:g} | " + " | ".join(f"{100 * each:.1f}" for each in figures) + " |", flush=True)
    print(f"\n{date.today().isoformat()}, {machine()}, {processor_seconds() / 60:.0f} processor minutes this time\n")
    print(f"    python {shlex.join(sys.argv)}")


if __name__ == "__main__":
    main()
