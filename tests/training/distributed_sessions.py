"""What each of two processes under `torchrun` does: a whole run, then one in which the second process is killed.

torchrun --nproc-per-node 2 distributed_sessions.py STORE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from killed_sessions import Scenario

from training_setup import TINY
from tymbal.pretrain import pretrain
from tymbal.training.processes import rank
from tymbal.training.trainer import TymbalTrainer

HALVES = {**TINY, "batch_size": TINY["batch_size"] // 2}


def main() -> None:
    store, folder = sys.argv[1:]
    pretrain(store, Path(folder) / "whole", **HALVES)
    if rank() == 1:
        Scenario(TymbalTrainer, "compute_loss", 9, set()).arm()
    pretrain(store, Path(folder) / "killed", **HALVES)


if __name__ == "__main__":
    main()
