"""The average of the weights of several epochs, which often does better than any of them.

SSAST's recipe for AudioSet averages the weights after epochs 6 to 25. They need not all be kept for it: a running mean
is, and it lies in every checkpoint, so that a resumed run averages what an uninterrupted one would have.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.settings import TrainingSettings

__all__ = ["WeightAverage"]

_FILE = "average.safetensors"
_COUNT = "averaged"


class WeightAverage(TrainerCallback):
    """Averages the weights after the evaluations of some epochs.

    Args:
        module: Whose weights.
        settings: Which epochs.

    Attributes:
        count: How many were averaged so far.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings) -> None:
        if settings.average_from is None:
            raise ValueError("average_from is not set")
        self._module = module
        self._first = settings.average_from
        self._last = math.inf if settings.average_to is None else settings.average_to
        self._period = settings.eval_every if settings.eval_steps is None else None
        self._mean: dict[str, Tensor] = {}
        self.count = 0

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch = float(state.epoch or 0.0)
        if self._period is not None:  # an epoch mostly ends within a step
            epoch = math.floor(epoch / self._period + 1e-9) * self._period
        if self._first - 1e-9 <= epoch <= self._last + 1e-9:
            self.add()

    @torch.no_grad()
    def add(self) -> None:
        """Takes the weights as they are now into the mean."""
        self.count += 1
        for name, value in self._module.state_dict().items():
            if name not in self._mean or not value.is_floating_point():
                self._mean[name] = value.detach().clone()
            else:
                self._mean[name].lerp_(value, 1 / self.count)

    def apply(self) -> None:
        """Gives the module the mean of its weights."""
        self._module.load_state_dict(self._mean)

    def save(self, checkpoint: Path) -> None:
        """Writes the mean into a checkpoint that is being written."""
        if self.count:
            count = torch.tensor(self.count)
            save_file(
                {_COUNT: count, **{name: value.contiguous() for name, value in self._mean.items()}}, checkpoint / _FILE
            )

    def load(self, checkpoint: Path) -> None:
        """Takes up the mean of a checkpoint, if it has one."""
        if (checkpoint / _FILE).is_file():
            self._mean = load_file(checkpoint / _FILE)
            self.count = int(self._mean.pop(_COUNT))
            devices = {name: value.device for name, value in self._module.state_dict().items()}
            self._mean = {name: value.to(devices[name]) for name, value in self._mean.items()}
