"""What each of two processes under `torchrun` does: two whole runs, then one in which the second process is killed.

torchrun --nproc-per-node 2 distributed_sessions.py STORE LABELLED FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from killed_sessions import Scenario

from training_setup import TINY
from tymbal.compute.processes import on_rank_zero, processes, rank
from tymbal.finetune import finetune
from tymbal.pretrain import pretrain
from tymbal.training.trainer import TymbalTrainer

HALVES = {**TINY, "batch_size": TINY["batch_size"] // 2}

QUARTERS = {**TINY, "batch_size": TINY["batch_size"] // 4}

THAWING = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "patch": "8x8",
    "batch_size": 6,
    "epochs": 3,
    "accumulate": 2,
    "unfreeze_every": 1,
    "learning_rate": 3e-3,
    "device": "cpu",
    "precision": "float32",
}
"""A fine-tuning in which parameters are unused at first, at which DDP stops unless it is told."""


OTHERS = ("mpc", "mpg", "reconstruction")
"""Objectives that have no test over two processes of their own; `joint` is TINY's."""


SHARDED = {
    **{name: {"objective": name, "epochs": 1} for name in (*OTHERS, "lejepa")},
    "contrastive": {"objective": "contrastive"},
    "averaged": {"epochs": 2, "ema": 0.9, "precision": "bf16", "gradient_checkpointing": True, "accumulate": 2},
    "whole": {},
}
"""Runs that are repeated in shards."""


def in_shards(store: str, labelled: str, folder: Path) -> None:
    """The same runs in shards, one that goes on with what was begun without, and a fine-tuning with and without."""
    for name, settings in SHARDED.items():
        if not (folder / name).exists():
            pretrain(store, folder / name, **{**HALVES, **settings})
        pretrain(store, folder / "shards" / name, **{**HALVES, **settings, "shard": True})
    on_rank_zero(lambda: cut(folder / "whole", folder / "shards" / "resumed"))
    pretrain(store, folder / "shards" / "resumed", **{**HALVES, "shard": True})
    steady = {name: value for name, value in THAWING.items() if name != "unfreeze_every"} | {"batch_size": 3}
    finetune(labelled, folder / "classifier", **steady, optimizer="sgd")
    finetune(labelled, folder / "shards" / "classifier", **steady, optimizer="sgd", shard=True)
    for first, then in ((False, True), (True, False)):
        place = folder / "shards" / f"classifier-{first}"
        source = folder / ("shards" if first else ".") / "classifier"
        on_rank_zero(lambda source=source, place=place: cut(source, place))
        finetune(labelled, place, **steady, optimizer="sgd", shard=then)


def cut(run: Path, place: Path) -> Path:
    """A copy of a run as it was after the first of its checkpoints."""
    shutil.copytree(run, place)
    (place / "result.json").unlink()
    for later in sorted((place / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[1:]:
        shutil.rmtree(later)
    return place


def main() -> None:
    store, labelled, folder, *then = sys.argv[1:]
    if then:
        if then == ["killed"] and rank() == 1:
            Scenario(TymbalTrainer, "compute_loss", 9, set()).arm()
        pretrain(store, Path(folder) / "killed", **{**HALVES, "shard": True})
        return
    if processes() == 4:
        for objective in ("joint", "contrastive", "lejepa", *OTHERS):
            pretrain(store, Path(folder) / objective, **{**QUARTERS, "objective": objective, "epochs": 1})
        pretrain(store, Path(folder) / "halves", **HALVES)
        return
    for objective in OTHERS:
        pretrain(store, Path(folder) / objective, **{**HALVES, "objective": objective, "epochs": 1})
    finetune(labelled, Path(folder) / "thawing", **{**THAWING, "batch_size": 3})
    pretrain(store, Path(folder) / "whole", **HALVES)
    pretrain(store, Path(folder) / "contrastive", **{**HALVES, "objective": "contrastive"})
    in_shards(store, labelled, Path(folder))
    if rank() == 1:
        Scenario(TymbalTrainer, "compute_loss", 9, set()).arm()
    pretrain(store, Path(folder) / "killed", **HALVES)


if __name__ == "__main__":
    main()
