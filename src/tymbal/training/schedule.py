"""Schedules of the learning rate that `Trainer` lacks: falling in steps, and falling on a plateau, after a warm-up.

SSAST pretrains with the second and fine-tunes with the first. `Trainer` has a plateau, but without a warm-up. What was
observed is a part of the schedule's state: a resumed run falls when an uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tymbal.progress import tell
from tymbal.settings import TrainingSettings
from tymbal.training.batches import BatchPlan

__all__ = ["Plateau", "make_schedule", "step_scale", "warmup_scale"]


class Plateau(LambdaLR):
    """A warm-up, and then a rate that falls whenever a metric has made no progress for some evaluations.

    Args:
        optimizer: Its learning rates.
        warmup: Steps of the warm-up.
        patience: Evaluations without progress that are put up with.
        factor: What the rate is multiplied by.

    Attributes:
        scale: What the rates are multiplied by now.
        best: The best value that was observed.
        idle: Evaluations since then, or since the last fall.
    """

    def __init__(self, optimizer: Optimizer, *, warmup: int, patience: int, factor: float) -> None:
        # All but the optimizer and the function is saved and loaded as the schedule's state.
        self.warmup = warmup
        self.patience = patience
        self.factor = factor
        self.scale = 1.0
        self.best: float | None = None
        self.idle = 0
        super().__init__(optimizer, self._rate)

    def _rate(self, step: int) -> float:
        return self.scale * warmup_scale(step, self.warmup)

    def observe(self, value: float, *, greater: bool, min_progress: float = 0.0) -> None:
        """Takes note of a metric; the rates fall at once if they have to.

        Args:
            value: The metric. What is not a number is no progress.
            greater: Whether greater is better.
            min_progress: What counts as progress.
        """
        gain = math.inf if self.best is None else (value - self.best) * (1 if greater else -1)
        if not math.isnan(value) and gain > min_progress:
            self.best, self.idle = value, 0
            return
        self.idle += 1
        if self.idle <= self.patience:
            return
        self.idle = 0
        self.scale *= self.factor
        rates = [rate * self._rate(self.last_epoch) for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def make_schedule(settings: TrainingSettings, plan: BatchPlan, optimizer: Optimizer, *, warmup: int) -> LambdaLR | None:
    """Makes a schedule of our own; None where `Trainer` has the one that is wanted.

    Args:
        settings: Which one, and its numbers.
        plan: All steps of the run.
        optimizer: Whose learning rates it sets.
        warmup: Steps of the warm-up.
    """
    if warmup > plan.steps:
        tell(
            f"The warm-up of {warmup:,} steps is longer than the run of {plan.steps:,}: the learning rate comes to "
            f"{settings.learning_rate * plan.steps / warmup:.3g} at most",
            warning=True,
        )
    if settings.schedule == "plateau":
        patience, factor = settings.plateau_patience, settings.plateau_factor
        return Plateau(optimizer, warmup=warmup, patience=patience, factor=factor)
    if settings.schedule == "step":
        falls = step_scale(plan, start=settings.step_start, every=settings.step_every, factor=settings.step_factor)
        return LambdaLR(optimizer, lambda step: falls(step) * warmup_scale(step, warmup))
    return None


def warmup_scale(step: int, warmup: int) -> float:
    """What a rate is multiplied by after `step` steps: from 0 to 1 in `warmup` steps."""
    return min(1.0, step / warmup) if warmup else 1.0


def step_scale(plan: BatchPlan, *, start: float, every: float, factor: float) -> Callable[[int], float]:
    """What a rate is multiplied by after a number of steps, where it falls after some epochs and then every so many."""

    def scale(step: int) -> float:
        past = plan.epoch_after(step) - start
        # A rounding error in the epochs must not move a fall by a step.
        return float(factor ** (math.floor(past / every + 1e-9) + 1)) if past >= -1e-9 else 1.0

    return scale
