"""Callbacks at fixed moments of a run: when to log, evaluate and save, and when to stop.

All processes decide alike, so that none waits for the others for ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from typing_extensions import override

from tymbal.progress import Progress, duration, tell
from tymbal.stopping import StopRequest
from tymbal.training.batches import BatchPlan
from tymbal.training.figures import read_metrics
from tymbal.training.optimization import Pace, Plateau

__all__ = [
    "Clock",
    "Evaluation",
    "Observer",
    "PlateauWatch",
    "ProgressBar",
    "StopOnSignal",
    "Timetable",
    "is_better",
]


def is_better(value: float, than: float | None, *, greater: bool) -> bool:
    """Whether a monitored metric beats the best so far; what is not a number never does."""
    if math.isnan(value):
        return False
    return than is None or (value > than if greater else value < than)


class Timetable(TrainerCallback):
    """Logs, evaluates and saves when the plan says so.

    `Trainer` counts epochs in a constant number of batches; this asks the plan, which knows better. Where it evaluates
    or saves it also logs, so that no figure is averaged across a resume. A new best model is always saved.

    Args:
        plan: All steps of the run.
        log_every: Steps between logged figures.
        eval_every: Epochs between evaluations.
        eval_steps: Steps between evaluations, instead.
        save_every: Epochs between checkpoints; None saves at the times of evaluation, even without validation clips.
        validates: Whether there are validation clips.
    """

    def __init__(
        self,
        plan: BatchPlan,
        *,
        log_every: int,
        eval_every: float,
        eval_steps: int | None = None,
        save_every: float | None = None,
        validates: bool = True,
    ) -> None:
        self._plan = plan
        self._log_every = log_every
        self._eval_every = eval_every
        self._eval_steps = eval_steps
        self._save_every = save_every
        self._validates = validates

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        state.epoch = self._plan.epoch_after(step)
        last = step >= self._plan.steps
        control.should_training_stop |= last
        evaluation = last or self._plan.is_due(step, self._eval_every)
        if self._eval_steps is not None:
            evaluation = last or step % self._eval_steps == 0
        control.should_evaluate |= evaluation and self._validates
        saving = evaluation if self._save_every is None else self._plan.is_due(step, self._save_every)
        control.should_save |= last or saving
        due = step % self._log_every == 0
        control.should_log |= due or control.should_save or control.should_evaluate

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        value = kwargs["metrics"][f"eval_{args.metric_for_best_model}"]
        if is_better(value, state.best_metric, greater=bool(args.greater_is_better)):
            state.best_global_step = state.global_step
            control.should_save = True


class PlateauWatch(TrainerCallback):
    """Passes the monitored metric of every evaluation to the schedule, and how long its warm-up is.

    The schedule's state goes into the checkpoint of this step, with what it has observed up to here.

    Args:
        min_progress: What counts as progress of the monitored metric.
        warmup: Gives the steps of the warm-up, which are others once the minutes have decided on the number of steps.
    """

    def __init__(self, min_progress: float, warmup: Callable[[], int]) -> None:
        self._min_progress = min_progress
        self._warmup = warmup

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        cast(Plateau, kwargs["lr_scheduler"]).warmup = self._warmup()

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        value = kwargs["metrics"][f"eval_{args.metric_for_best_model}"]
        schedule = cast(Plateau, kwargs["lr_scheduler"])
        schedule.observe(value, greater=bool(args.greater_is_better), min_progress=self._min_progress)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome of an evaluation in the middle of a run.

    Attributes:
        step: Optimizer steps that are done.
        epoch: Passes over the training clips that are done.
        figures: All figures of the run so far by step, as in `metrics.jsonl`.
        best: Whether this is the best model so far.
        module: The objective with its weights at this moment.
    """

    step: int
    epoch: float
    figures: list[dict[str, Any]]
    best: bool
    module: nn.Module


class Observer(TrainerCallback):
    """Calls a caller's function after every evaluation; in the first process only.

    Args:
        call: The function.
        path: The metrics file.
        module: The objective.
    """

    def __init__(self, call: Callable[[Evaluation], None], path: Path, module: nn.Module) -> None:
        self._call = call
        self._path = path
        self._module = module

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._call(
                Evaluation(
                    step=state.global_step,
                    epoch=float(state.epoch or 0.0),
                    figures=read_metrics(self._path),
                    best=state.best_global_step == state.global_step,
                    module=self._module,
                )
            )


class Clock(TrainerCallback, ExportableState):
    """Counts the seconds of training, also those before a resume, and ends the run when the minutes are used up.

    Where the minutes decide on the number of steps (`BatchPlan.measured`), it measures the first ones and settles the
    plan.

    Args:
        plan: All steps of the run.
        max_minutes: How long to train, evaluations and saves included; None for ever.
        seconds: Seconds that earlier sessions of this run used.
        pace: Tells from the first steps how many there is time for.

    Attributes:
        rang: Whether it ended the run.
    """

    def __init__(
        self, plan: BatchPlan, max_minutes: float | None = None, seconds: float = 0.0, *, pace: Pace | None = None
    ) -> None:
        self._plan = plan
        self._limit = math.inf if max_minutes is None else 60 * max_minutes
        self._before = seconds
        self._pace = pace
        self._start = time.monotonic()
        self.rang = False

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._before + time.monotonic() - self._start

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start = time.monotonic()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._pace is not None and self._plan.measured == 0:
            self._measure(self._pace, args, state.global_step, pauses=control.should_evaluate or control.should_save)
        # Clocks differ between processes; they agree where they wait for each other anyway.
        if math.isinf(self._limit) or (args.world_size > 1 and not control.should_log):
            return
        self.rang = self.seconds >= self._limit
        if args.world_size > 1:
            flag = torch.tensor(float(self.rang), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.rang = bool(flag.item())
        if self.rang:
            control.should_training_stop = control.should_log = control.should_save = True
            control.should_evaluate = args.metric_for_best_model is not None

    def _measure(self, pace: Pace, args: TrainingArguments, step: int, *, pauses: bool) -> None:
        """Shows a step to the pace, and settles the plan once it can tell; all processes with the same seconds."""
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)  # else the processor runs ahead of the GPU's work
        seconds = self.seconds
        if args.world_size > 1:
            slowest = torch.tensor(seconds, dtype=torch.float32, device=args.device)
            torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX)
            seconds = float(slowest.item())
        steps = pace.take(step, seconds, pauses=pauses)
        if steps is not None:
            self._plan.settle(steps, at=step)
            tell(f"After {step:,} steps in {duration(seconds)}: {steps:,} steps in {duration(self._limit)}")

    @override
    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"seconds": self.seconds}}


class ProgressBar(TrainerCallback):
    """Shows steps, time left and the latest figures.

    Args:
        progress: The bar; the caller enters its context.
        plan: All steps of the run, of which there may be fewer than at first.
        shown: Picks the figures to show from what is logged.
    """

    def __init__(
        self, progress: Progress, plan: BatchPlan, shown: Callable[[dict[str, Any]], dict[str, float]]
    ) -> None:
        self._progress = progress
        self._plan = plan
        self._shown = shown
        self._latest: dict[str, float] = {}

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.total = self._plan.steps
        self._progress.advance(1)

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._latest |= self._shown(kwargs["logs"])
        self._progress.advance(0, note=", ".join(f"{name} {value:.4g}" for name, value in self._latest.items()))


_SECONDS = 1.0


class StopOnSignal(TrainerCallback):
    """Ends the session after the present step, with a checkpoint, once a signal requests it.

    A signal may reach one of several processes, while all of them have to stop at the same step. They agree on that
    about once a second: to agree in every step would have every step wait for the device and the slowest process.

    Args:
        request: Whether a signal came.

    Attributes:
        stopped: Whether a signal ended the session, in whichever process it came.
    """

    def __init__(self, request: StopRequest) -> None:
        self.stopped = False
        self._request = request
        self._last = self._next = 0
        self._since = 0.0

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last, self._next, self._since = state.global_step, state.global_step + 1, time.monotonic()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # If this step ends the run anyway, the rest is quick, and better done now than in another session.
        if control.should_training_stop:
            return
        requested = self._request.name is not None
        self.stopped = requested if args.world_size == 1 else self._agreed(requested, args.device, state.global_step)
        if self.stopped:
            control.should_training_stop = control.should_log = control.should_save = True

    def _agreed(self, requested: bool, device: torch.device, step: int) -> bool:
        if step < self._next:
            return False
        now = time.monotonic()
        own = torch.tensor([float(requested), (now - self._since) / (step - self._last)], device=device)
        torch.distributed.all_reduce(own, op=torch.distributed.ReduceOp.MAX)
        anyone, seconds_a_step = own.tolist()
        # Of the same number in every process, so that all meet again at the same step.
        self._last, self._next, self._since = step, step + max(1, round(_SECONDS / max(seconds_a_step, 1e-3))), now
        return bool(anyone)
