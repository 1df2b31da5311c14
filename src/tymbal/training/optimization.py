"""What changes the weights, how fast and how often: arguments, optimizers, schedules, and steps in given minutes.

What is switched off here is done by us instead: the timetable (`training.callbacks`), saving (`training.checkpoints`),
trackers (`training.trackers`), progress bars, and the choice of the device.

Weight decay pulls weights to zero. For the matrices of linear layers and convolutions that is a prior; the scale of a
norm, a bias, a token or a position embedding has no reason to be small (as in timm and ViT).

Two schedules are ours: SSAST fine-tunes with a learning rate that falls in steps and pretrains with one that falls on a
plateau, both after a warm-up, without which `Trainer` has the plateau. What was observed is a part of the schedule's
state: a resumed run falls when an uninterrupted one would.

A learning rate that is to have fallen when the time is over has to know how many steps there will be. So a run with
`max_minutes` measures its first steps, some hundredths of its time, and then has a number of steps like any other run:
it is recorded in the checkpoints, and a resumed run ends at the same step, however fast its machine is. The first steps
have the rates of a run of `epochs`, next to none; they are a part of the warm-up.

The estimate is of clips, not of steps, since batches may grow by epoch. Evaluations are counted in. The last hundredths
are held back for what varies; should they not be enough, the clock ends the run close to its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tymbal.errors import DeviceError
from tymbal.progress import tell
from tymbal.settings import TrainingSettings
from tymbal.training.batches import BatchPlan

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = [
    "Pace",
    "Plateau",
    "make_optimizer",
    "make_schedule",
    "parameter_groups",
    "schedule_scale",
    "step_scale",
    "training_arguments",
    "warmup_scale",
    "warmup_steps",
]

# Those that are not among these are our own, see `make_schedule`.
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(
    settings: TrainingSettings,
    *,
    plan: BatchPlan,
    device: torch.device,
    dtype: torch.dtype | None,
    run: Path,
    monitor: tuple[str, bool] | None,
    thaws: bool = False,
    eval_start: bool = False,
) -> TrainingArguments:
    """Builds the arguments of `Trainer`; the optimizer is not made from them, see `make_optimizer`.

    Args:
        settings: Ours.
        plan: All steps of the run.
        device: The device to compute on.
        dtype: Arithmetic of the encoder, None for float32.
        run: The run folder.
        monitor: Name of the metric by which the best model is chosen and whether greater is better; None without
            validation.
        thaws: Whether parameters are frozen for some time.
        eval_start: Whether to evaluate before the first step, too.

    Raises:
        DeviceError: Another GPU than the first visible one; `Trainer` takes that one.
    """
    from transformers import TrainingArguments
    from transformers.utils import logging

    if device.type == "cuda" and device.index:
        raise DeviceError(
            f"training takes the first GPU that it sees, not {device}",
            advice=f"Set CUDA_VISIBLE_DEVICES={device.index} and use --device cuda.",
        )
    # Tymbal reports what a person has to know; `Trainer` sets this level too, but only after its first remarks.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    on_cpu = device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(run / "checkpoints"),
        run_name=run.name,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_sizes[0],
        per_device_eval_batch_size=plan.batch_sizes[0],
        gradient_accumulation_steps=plan.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES.get(settings.schedule, "constant"),
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip_norm,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and plan.processes > 1 else None,
        # Objectives train all that they do not freeze, for some time or for good; buffers change alike everywhere.
        ddp_find_unused_parameters=thaws,
        ddp_broadcast_buffers=False,
        torch_compile=settings.compile,
        seed=settings.seed,
        # `EarlyStoppingCallback` wants a strategy; when to evaluate is for the timetable to say.
        eval_strategy="no" if monitor is None else "steps",
        eval_steps=plan.steps,
        eval_on_start=eval_start,
        save_strategy="no",
        logging_strategy="no",
        metric_for_best_model=None if monitor is None else monitor[0],
        greater_is_better=None if monitor is None else monitor[1],
        # It would log 0.0 in place of a loss that is not finite, and wait for the device in every step.
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=device.type == "cuda",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
    # `accelerate launch` may bring a precision of its own in the environment; ours was chosen with a reason.
    arguments.mixed_precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    # With several GPUs and one process, `Trainer` falls into DataParallel, which is slower than one of them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def make_optimizer(
    settings: TrainingSettings, groups: list[dict[str, Any]], *, shards: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        settings: Which one, and its numbers.
        groups: Groups from `parameter_groups`.
        shards: Whether parameters are shared out among processes.
    """
    if settings.optimizer == "sgd":
        fused = not shards  # torch 2.13 has no fused SGD of shards
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.adam_beta1, fused=fused)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    betas = (settings.adam_beta1, settings.adam_beta2)
    return kind(groups, lr=settings.learning_rate, betas=betas, fused=True)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer; frozen parameters are in none.

    Several calls with different learning rates can be added up, for instance for a head that learns faster.

    Args:
        named: Parameters with their names, as `module.named_parameters()` gives them.
        learning_rate: Highest learning rate of these parameters.
        weight_decay: Weight decay of the matrices among them.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        # Tokens and position embeddings are bare parameters with names of their own.
        is_matrix = parameter.ndim >= 2 and name.rpartition(".")[2] == "weight"
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": plain, "lr": learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Plateau(LambdaLR):
    """A warm-up, and then a rate that falls whenever a metric has made no progress for some evaluations.

    Args:
        optimizer: Its learning rates.
        warmup: Steps of the warm-up.
        patience: Evaluations without progress that are put up with.
        factor: Factor of the rate at each fall.
        fall_in_warmup: Whether falls during the warm-up hold; else they are over with it, as in SSAST.

    Attributes:
        scale: Present factor of the rates.
        best: The best value that was observed.
        idle: Evaluations since then, or since the last fall.
    """

    def __init__(
        self, optimizer: Optimizer, *, warmup: int, patience: int, factor: float, fall_in_warmup: bool = True
    ) -> None:
        # All but the optimizer and the function is saved and loaded as the schedule's state.
        self.warmup = warmup
        self.patience = patience
        self.factor = factor
        self.fall_in_warmup = fall_in_warmup
        self.scale = 1.0
        self.best: float | None = None
        self.idle = 0
        super().__init__(optimizer, self._rate)

    def _rate(self, step: int) -> float:
        return self.scale * warmup_scale(step, self.warmup)

    def observe(self, value: float, *, greater: bool, min_progress: float = 0.0) -> None:
        """Records a metric; the rates fall at once if they have to.

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
        if self.last_epoch <= self.warmup and not self.fall_in_warmup:
            return
        self.scale *= self.factor
        rates = [rate * self._rate(self.last_epoch) for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def make_schedule(settings: TrainingSettings, plan: BatchPlan, optimizer: Optimizer, *, warmup: int) -> LambdaLR | None:
    """Makes a schedule of our own; None where `Trainer` has the one that was chosen.

    Where the minutes decide on the number of steps, the rates are those of the steps that the plan has at the time.

    Args:
        settings: Which one, and its numbers.
        plan: All steps of the run.
        optimizer: Whose learning rates it sets.
        warmup: Steps of the warm-up, where the plan has all its steps already.
    """
    if warmup > plan.steps:
        tell(
            f"The warm-up of {warmup:,} steps is longer than the run of {plan.steps:,}: the learning rate comes to "
            f"{settings.learning_rate * plan.steps / warmup:.3g} at most",
            warning=True,
        )

    def rising() -> int:
        return warmup if plan.measured is None else warmup_steps(settings.warmup, plan.steps)

    if settings.schedule == "plateau":
        patience, factor = settings.plateau_patience, settings.plateau_factor
        lasting = settings.fall_in_warmup
        return Plateau(optimizer, warmup=warmup, patience=patience, factor=factor, fall_in_warmup=lasting)
    if settings.schedule == "step":
        falls = step_scale(plan, start=settings.step_start, every=settings.step_every, factor=settings.step_factor)

        def rate(step: int) -> float:
            overridden = 1.0 if settings.fall_in_warmup else falls(min(step, rising()))
            return falls(step) / overridden * warmup_scale(step, rising())

        return LambdaLR(optimizer, rate)
    if plan.measured is not None:
        return LambdaLR(optimizer, lambda step: schedule_scale(settings.schedule, step, rising(), plan.steps))
    return None


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps of a warm-up that is a fraction of all `steps` below 1, and a number of them from 1 on; as in `Trainer`."""
    return int(warmup) if warmup >= 1 else math.ceil(steps * warmup)


def schedule_scale(schedule: str, step: int, warmup: int, steps: int) -> float:
    """What a rate is multiplied by after `step` of `steps` steps; the same numbers as those of `Trainer`.

    Args:
        schedule: `cosine`, `linear` or `constant`.
        step: Steps that are done.
        warmup: Steps of the warm-up.
        steps: All steps of the run.
    """
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    falling = max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, (steps - step) / falling)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / falling))))


def warmup_scale(step: int, warmup: int) -> float:
    """Factor of a learning rate after `step` steps: from 0 to 1 in `warmup` steps."""
    return min(1.0, step / warmup) if warmup else 1.0


def step_scale(plan: BatchPlan, *, start: float, every: float, factor: float) -> Callable[[int], float]:
    """Factor of a learning rate after some steps, if it falls after some epochs and then every so many."""

    def scale(step: int) -> float:
        past = plan.epoch_after(step) - start
        # A rounding error in the epochs must not move a fall by a step.
        return float(factor ** (math.floor(past / every + 1e-9) + 1)) if past >= -1e-9 else 1.0

    return scale


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
