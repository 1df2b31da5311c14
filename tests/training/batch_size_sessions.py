"""Fine-tunings with a batch size for each epoch, killed in the second and in the third; see `killed_sessions.py`.

    python batch_size_sessions.py STORE FOLDER

The shapes of the batches that reach the model go to FOLDER/SCENARIO.txt, one a line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from killed_sessions import Scenario

from tymbal.finetune import finetune
from tymbal.objectives.classification import ClassificationObjective
from tymbal.training.trainer import TymbalTrainer

GROWING = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "patch": "8x8",
    "epochs": 4,
    "batch_sizes": (1, 1, 2, 4),
    "log_every": 5,
    "device": "cpu",
    "precision": "float32",
    "report_to": (),
}
"""With 15 clips: 15 batches of 1, 15 of 1, 8 of 2 and 4 of 4."""

KILLS = {
    "second-epoch": Scenario(TymbalTrainer, "compute_loss", 21, {"checkpoint-15"}),
    "third-epoch": Scenario(TymbalTrainer, "compute_loss", 34, {"checkpoint-15", "checkpoint-30"}),
}


def watch(path: Path) -> None:
    """Writes down the shapes that reach the model in training."""
    original = ClassificationObjective.forward

    def watched(self: ClassificationObjective, spectrogram: Any, **batch: Any) -> dict[str, Any]:
        if self.training:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{len(spectrogram)}\n")
        return original(self, spectrogram, **batch)

    ClassificationObjective.forward = watched


def main() -> None:
    store, folder = sys.argv[1:]
    for name, kill in KILLS.items():
        child = os.fork()
        if child == 0:
            kill.arm()
            watch(Path(folder) / f"{name}.txt")
            finetune(store, Path(folder) / name, **GROWING)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
