"""How many steps fit into the minutes of a run, by how long its first steps take.

A learning rate that is to have fallen when the time is over has to know how many steps there will be. So a run with
`max_minutes` measures its first steps, some hundredths of its time, and then has a number of steps like any other run:
it is recorded in the checkpoints, and a resumed run ends at the same step, however fast its machine is. The first steps
have the rates of a run of `epochs`, next to none; they are a part of the warm-up.

The estimate is of clips, not of steps, since batches may grow by epoch. Evaluations are counted in. The last hundredths
are held back for what varies; should they not be enough, the clock ends the run close to its end.
"""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from tymbal.training.batches import BatchPlan

__all__ = ["Pace"]

_SETTLING = 2
"""Steps after the first one that are not measured where there is time: caches fill, kernels are chosen."""
_MEASURED_STEPS, _MEASURED_SHARE = 8, 0.02
"""Fewest steps and least share of the time that are measured."""
_LATEST = 0.05
"""Share of the time whose measuring has to do, also if that is a single step."""
_RESERVE = 0.03
"""Share of the time that is not planned."""
_FORWARD = 1 / 3
"""Cost of evaluating a clip, where no evaluation was measured yet, as a part of that of learning from it."""


class _Step(NamedTuple):
    """One measured step: its clips, of all processes, its seconds, and whether an evaluation or a save is in them."""

    clips: int
    seconds: float
    paused: bool


class Pace:
    """Measures the first steps of a session and then says how many steps the run has time for.

    All processes have to be told the same seconds, to come to the same number.

    Args:
        plan: All steps of the run, which end with its epochs so far.
        seconds: How long the run may take.
        evaluated: Clips of one evaluation; 0 where there is nothing to evaluate on.
        every: Training clips from one evaluation to the next.
    """

    def __init__(self, plan: BatchPlan, seconds: float, *, evaluated: int = 0, every: float = 1.0) -> None:
        self._plan = plan
        self._limit = seconds
        self._evaluated = evaluated
        self._every = every
        self._last: tuple[int, float, bool] | None = None
        self._steps: list[_Step] = []

    def take(self, step: int, seconds: float, *, pauses: bool = False) -> int | None:
        """Takes note of a step.

        Args:
            step: Number of steps that are done.
            seconds: Seconds of training so far, also of earlier sessions.
            pauses: Whether an evaluation or a checkpoint comes before the next step.

        Returns:
            The number of steps of the run, at least one more than are done and at most those of its epochs; None while
            it cannot be told.
        """
        if self._last is not None:
            before, since, paused = self._last
            clips = self._plan.clips_before(step) - self._plan.clips_before(before)
            self._steps.append(_Step(clips, seconds - since, paused))
        self._last = step, seconds, pauses
        measured = self._steps[_SETTLING:]
        spent = sum(each.seconds for each in measured)
        enough = len(measured) >= _MEASURED_STEPS and spent >= _MEASURED_SHARE * self._limit
        late = sum(each.seconds for each in self._steps) >= _LATEST * self._limit
        if seconds >= self._limit or not self._steps or not (enough or late):
            return None
        return self._fitting(step, seconds, measured or self._steps)

    def _fitting(self, step: int, seconds: float, measured: list[_Step]) -> int:
        """Steps that fit, with the pace of those that were measured."""
        learning = [each for each in measured if not each.paused] or measured
        clip = sum(each.seconds for each in learning) / sum(each.clips for each in learning)
        pauses = [each.seconds - each.clips * clip for each in measured if each.paused]
        evaluation = max(0.0, fmean(pauses)) if pauses else _FORWARD * clip * self._evaluated
        left = (1 - _RESERVE) * self._limit - seconds - evaluation  # the last one comes at the end in any case
        clips = max(0.0, left) / max(clip + evaluation / self._every, 1e-9)
        fitting = self._plan.steps_within(self._plan.clips_before(step) + clips)
        return min(max(fitting, step + 1), self._plan.steps)
