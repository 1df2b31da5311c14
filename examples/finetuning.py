"""The recipe of finetuning.yaml in Python.

python finetuning.py LABELLED PRETRAINED OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tymbal

RECIPE: dict[str, Any] = {
    "epochs": 50,
    "learning_rate": 5e-5,
    "schedule": "cosine",
    "warmup": 3,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "batch_size": 1,
    "accumulate": 4,
    "clip_norm": 1.0,
    "train": "3",
    "best_by": "accuracy",
    "keep_checkpoints": 2,
    "seed": 42,
}


def main(labelled: str, pretrained: str, output: str) -> None:
    store, classifier = Path(output) / "store", Path(output) / "classifier"
    tymbal.prepare(labelled, store, window=1.0)
    print(tymbal.finetune(store, classifier, from_=pretrained, **RECIPE).summary())


if __name__ == "__main__":
    main(*sys.argv[1:])
