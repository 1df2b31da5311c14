"""What each of two processes under `torchrun` does: two whole runs, then one in which the second process is killed.

torchrun --nproc-per-node 2 distributed_sessions.py STORE LABELLED FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from killed_sessions import Scenario

from training_setup import TINY
from tymbal.compute.processes import processes, rank
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


def main() -> None:
    store, labelled, folder = sys.argv[1:]
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
    if rank() == 1:
        Scenario(TymbalTrainer, "compute_loss", 9, set()).arm()
    pretrain(store, Path(folder) / "killed", **HALVES)


if __name__ == "__main__":
    main()
