"""A small stand-in for an objective, with which a run takes a tenth of a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tymbal.settings import TrainingSettings
from tymbal.training.beginning import begin
from tymbal.training.run import train
from tymbal.training.run_folder import RunResult

WIDTH = 6


class Rows:
    """A dataset of random rows that notes what was asked for."""

    ahead = 1

    def __init__(self, length: int, seed: int = 0) -> None:
        self.rows = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))
        self.asked: list[list[int]] = []
        self.announced: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        self.asked.append(list(indices))
        row = torch.tensor(indices) % len(self)
        return {"x": self.rows[row], "row": row}

    def announce(self, indices: Sequence[int]) -> None:
        self.announced.append(list(indices))


class Copying(nn.Module):
    """Learns to copy its input through dropout, which draws from the global generator."""

    monitor = ("mse", False)

    def __init__(self, *, dropout: float = 0.2, explode_at: int | None = None, scores: Sequence[float] = ()) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, WIDTH))
        self.explode_at = explode_at
        self.scores = list(scores)
        self.shapes: list[int] = []

    def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
        errors = (self.layers(x) - x).square().mean(1)
        if self.training:
            self.shapes.append(len(x))
            if len(self.shapes) == self.explode_at:
                errors = errors / 0
        return {"loss": errors.mean(), "sums": {"mse": errors.sum(), "count": torch.tensor(len(x))}}

    def metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        mse = float(sums["mse"] / sums["count"])
        return {"mse": self.scores.pop(0) if self.scores and not self.training else mse}


def settings(**changes: Any) -> TrainingSettings:
    defaults = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "log_every": 2, "device": "cpu"}
    return TrainingSettings(**{**defaults, "precision": "float32", "report_to": (), **changes})


def session(run: Path, module: Copying | None = None, *, data: Rows | None = None, **changes: Any) -> RunResult:
    """Begins or continues a run as a verb does."""
    chosen = settings(**changes)
    finished = begin("pretrain", run, {"store": "rows"}, chosen, resume="auto")
    if finished is not None:
        return finished
    module = module or Copying()

    def finalise(result: RunResult) -> None:
        result.model.mkdir(exist_ok=True)
        (result.model / "config.json").write_text("{}")
        torch.save(module.state_dict(), result.model / "weights.pt")

    return train(
        module, data or Rows(20), Rows(6, seed=1), settings=chosen, run=run, verb="pretrain", finalise=finalise
    )


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def interrupt(run: Path, call: int, **changes: Any) -> None:
    """A session that ends with an error in the forward pass of a step."""

    class Interrupted(Copying):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            if len(self.shapes) == call:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        session(run, Interrupted(), **changes)
