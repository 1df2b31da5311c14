"""One session of a run: its resume point, and `Trainer` with its callbacks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from tymbal import config
from tymbal.compute.device import choose_device
from tymbal.compute.processes import init_process_group, on_rank_zero, processes, rank
from tymbal.errors import CheckpointError, SettingsError
from tymbal.files import read_json, replace_file, replace_folder
from tymbal.objectives.contract import Trainable
from tymbal.progress import tell
from tymbal.settings import TrainingSettings
from tymbal.training.batches import BatchPlan
from tymbal.training.callbacks import Clock, Evaluation, Observer, PlateauWatch, Timetable
from tymbal.training.checkpoints import Checkpoints, named_checkpoint, verify
from tymbal.training.device_errors import Arithmetic
from tymbal.training.layers import MovingAverage, Stages, Unfreezing, WeightAverage
from tymbal.training.optimization import Pace, parameter_groups, training_arguments, warmup_steps
from tymbal.training.records import ClassDetails, MetricsFile
from tymbal.training.run_folder import Resume, RunFolder
from tymbal.training.sharding import GatherEachStep, Shards
from tymbal.training.trackers import trackers
from tymbal.training.trainer import BatchDataset, TymbalTrainer, Watch

__all__ = [
    "ResumePoint",
    "Session",
    "find_resume_point",
    "make_trainer",
    "open_session",
    "session_callbacks",
]

_STATE = "trainer_state.json"


@dataclass(frozen=True)
class ResumePoint:
    """The step and state at which a session continues a run; all zero at the beginning.

    Attributes:
        checkpoint: The checkpoint that it continues from; None at the beginning.
        step: Steps that are done.
        best_step: The best of them, if any was evaluated.
        seconds: Seconds of training that are done.
        idle: Evaluations without progress up to here.
        measured: As in the plan of the run, where the minutes decide on its steps; None where they do not.
        steps: All steps of the run, where the minutes have decided.
        plan: The fingerprint of its plan; None at the beginning.
    """

    checkpoint: Path | None = None
    step: int = 0
    best_step: int | None = None
    seconds: float = 0.0
    idle: int = 0
    measured: int | None = None
    steps: int | None = None
    plan: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """The module, data and plan of one session of a run, and its resume point.

    Attributes:
        module: The objective.
        train_dataset: Clips to learn from.
        validation_dataset: Clips to validate on, at least one; or None.
        settings: How to train.
        folder: The run folder.
        plan: All steps of the run.
        checkpoints: The checkpoints of the run.
        start: The point at which the session begins.
        clock: Counts the seconds of training.
        average: The average of weights; None without `average_from`.
        ema: The moving average of weights; None without `ema`.
        shards: The shards of the module; None without `shard`.
    """

    module: nn.Module
    train_dataset: BatchDataset
    validation_dataset: BatchDataset | None
    settings: TrainingSettings
    folder: RunFolder
    plan: BatchPlan
    checkpoints: Checkpoints
    start: ResumePoint
    clock: Clock
    average: WeightAverage | None
    ema: MovingAverage | None
    shards: Shards | None


def open_session(
    module: nn.Module,
    datasets: tuple[BatchDataset, BatchDataset | None],
    settings: TrainingSettings,
    *,
    folder: RunFolder,
    weights: NDArray[np.float64] | None,
    groups: NDArray[np.int64] | None,
    thaws: bool,
    resume: Resume,
) -> Session:
    """Finds out where the run stands; all processes start from the same place.

    Args:
        module: The objective.
        datasets: Clips to learn from, and clips to validate on; None or empty for none.
        settings: How to train.
        folder: The run folder.
        weights: Chances of the training clips; None where each comes once an epoch.
        groups: Number of each training clip's group, to make batches of one group each; None mixes them.
        thaws: Whether parameters are frozen for some time.
        resume: As in `training.beginning.begin`.

    Raises:
        TrainingError: There are no clips to learn from.
        SettingsError: A setting needs validation clips, and there are none.
        CheckpointError: There is nothing to resume from, or it belongs to other data.
    """
    train_dataset, validation_dataset = datasets
    plan = BatchPlan(
        length=len(train_dataset),
        batch_sizes=settings.batch_sizes or (settings.batch_size,),
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        accumulate=settings.accumulate,
        processes=processes(),
        seed=settings.seed,
        weights=weights,
        groups=groups,
    )
    if validation_dataset is not None and not len(validation_dataset):
        validation_dataset = None
    _check_goals(settings, has_validation=validation_dataset is not None)
    init_process_group(choose_device(settings.device)[0])
    checkpoints = Checkpoints(folder.checkpoints, keep=settings.keep_checkpoints)
    start = on_rank_zero(lambda: find_resume_point(checkpoints, plan, resume))
    plan = plan if start.plan is None else plan.as_begun(start.plan)
    clock = _clock(settings, plan, start, evaluated=0 if validation_dataset is None else len(validation_dataset))
    return Session(
        module=module,
        train_dataset=train_dataset,
        validation_dataset=validation_dataset,
        settings=settings,
        folder=folder,
        plan=plan,
        checkpoints=checkpoints,
        start=start,
        clock=clock,
        average=None if settings.average_from is None else WeightAverage(module, settings),
        ema=MovingAverage(module, settings.ema) if settings.ema else None,
        shards=Shards.of(module, settings, thaws=thaws),
    )


def _clock(settings: TrainingSettings, plan: BatchPlan, start: ResumePoint, *, evaluated: int) -> Clock:
    """The clock of a session; where the minutes decide on the steps, the plan has what they decided, or will have it.

    A run that was begun without this, or by an earlier version, is cut off by its minutes.
    """
    by_minutes = settings.max_minutes is not None and settings.max_steps is None
    if start.measured and start.steps:
        plan.settle(start.steps, at=start.measured)
    elif by_minutes and (start.checkpoint is None or start.measured == 0):
        plan.measured = 0
    pace = None
    if plan.measured == 0 and settings.max_minutes is not None:
        every = settings.eval_every * plan.length
        if settings.eval_steps is not None:
            every = plan.clips_before(settings.eval_steps)
        pace = Pace(plan, 60 * settings.max_minutes, evaluated=evaluated, every=every)
    return Clock(plan, settings.max_minutes, start.seconds, pace=pace)


def _check_goals(settings: TrainingSettings, *, has_validation: bool) -> None:
    """Refuses settings that depend on evaluations if there are no validation clips."""
    by_evaluation = {
        "patience": settings.patience,
        "average_from": settings.average_from is not None,
        "schedule plateau": settings.schedule == "plateau",
    }
    for name in [name for name, is_set in by_evaluation.items() if is_set and not has_validation]:
        without = "set patience to 0" if name == "patience" else f"do without {name}"
        raise SettingsError(
            f"{name} needs validation clips, and there are none",
            advice=f"Give more clips, or a store with a validation split; or {without}.",
        )


def find_resume_point(checkpoints: Checkpoints, plan: BatchPlan, resume: Resume) -> ResumePoint:
    """Finds the step to resume from. For the first process only.

    Args:
        checkpoints: The checkpoints of the run.
        plan: All steps of the run, which must be those of the checkpoint.
        resume: `auto` takes the newest complete checkpoint if there is one, True insists on one, False takes none; or
            a checkpoint by its path.

    Raises:
        CheckpointError: There is nothing to resume from, it is not the newest, or it belongs to another plan.
    """
    checkpoints.clean()
    path = named_checkpoint(resume, checkpoints.folder.parent)
    start = (checkpoints.newest() if resume else None) if path is None else (path, _verified(path, checkpoints))
    if start is None:
        if resume not in ("auto", False):
            raise CheckpointError("there is no complete checkpoint to resume from", path=checkpoints.folder)
        if checkpoints.steps():
            tell("No checkpoint is complete: training starts from the beginning", warning=True)
        return ResumePoint()
    path, manifest = start
    plan = plan.as_begun(manifest["plan"])
    recorded, own = dict(manifest["plan"]), plan.fingerprint()
    others = recorded["processes"]
    if [size * others for size in recorded["batch_sizes"]] == [size * plan.processes for size in plan.batch_sizes]:
        for name in ("batch_sizes", "processes", "begun"):  # the same clips a step, shared out otherwise
            recorded.pop(name, None)
            own.pop(name, None)
    measured = recorded.pop("measured", None)
    if measured:
        own["steps"] = recorded["steps"]
    changes = config.diff(recorded, own)
    if changes:
        raise CheckpointError(
            "the run was begun with other data or another number of processes:\n    " + "\n    ".join(changes),
            path=path,
            advice="Continue it with the same store and the same batch size, and with as many processes or another "
            "number that divides the clips of a step; or begin a new run.",
        )
    if others != plan.processes:
        tell(
            f"{_processes(plan.processes)} instead of {others}: each takes {', '.join(map(str, plan.batch_sizes))} "
            "clips a step, so that a step is of the same clips. Sums are added up in another order, and dropout is "
            "drawn anew"
        )
    tell(f"Continuing from step {manifest['step']:,} of {recorded['steps']:,}")
    state = read_json(path / _STATE)
    if path.resolve().parent != checkpoints.folder.resolve():
        _take_along(path, checkpoints, best=state["best_global_step"])
    callbacks = {name: entry["attributes"] for name, entry in state["stateful_callbacks"].items()}
    return ResumePoint(
        checkpoint=path,
        step=manifest["step"],
        best_step=state["best_global_step"],
        seconds=callbacks.get("Clock", {}).get("seconds", 0.0),
        idle=callbacks.get("EarlyStoppingCallback", {}).get("early_stopping_patience_counter", 0),
        measured=measured,
        steps=recorded["steps"] if measured else None,
        plan=dict(manifest["plan"]),
    )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _take_along(path: Path, checkpoints: Checkpoints, *, best: int | None) -> None:
    """Copies what a new run needs of the run whose checkpoint it goes on from: its best checkpoint, and its figures."""
    other, run = path.resolve().parent, checkpoints.folder.parent
    for name in ("metrics.jsonl", "classes.csv"):
        if (other.parent / name).is_file() and not (run / name).exists():
            with replace_file(run / name) as aside:
                shutil.copyfile(other.parent / name, aside)
    if best is None or checkpoints.path(best).exists():
        return
    source = path if path.name == checkpoints.path(best).name else other / checkpoints.path(best).name
    try:
        verify(source)
    except CheckpointError:
        tell(f"The best checkpoint so far, of step {best:,}, is not beside {path}: it cannot be kept", warning=True)
        return
    with replace_folder(checkpoints.path(best)) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)


def _verified(path: Path, checkpoints: Checkpoints) -> dict[str, Any]:
    """The manifest of a checkpoint that is whole and the newest."""
    manifest = verify(path)
    later = [step for step in checkpoints.steps() if step > manifest["step"]]
    if later:
        raise CheckpointError(
            f"the run has later checkpoints, up to step {later[-1]}",
            path=checkpoints.folder,
            advice="Delete them to go back, or begin a new run with --from and this checkpoint's run.",
        )
    return manifest


def session_callbacks(
    session: Session,
    more: Sequence[TrainerCallback],
    *,
    details: ClassDetails | None,
    stages: Stages | None,
    on_evaluation: Callable[[Evaluation], None] | None,
) -> list[TrainerCallback]:
    """The callbacks of a training, in the order in which they run.

    Args:
        session: The session.
        more: Further callbacks.
        details: Writes down the figures of each class.
        stages: Stages of unfreezing.
        on_evaluation: Called after every evaluation.
    """
    settings, folder, plan = session.settings, session.folder, session.plan
    start, clock = session.start, session.clock
    timetable = Timetable(
        plan,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        eval_steps=settings.eval_steps,
        save_every=settings.save_every,
        validates=session.validation_dataset is not None,
    )
    metrics = MetricsFile(folder.metrics, folder.log, plan, lambda: clock.seconds)
    callbacks: list[TrainerCallback] = [timetable, clock, metrics, *more]
    if settings.patience:
        patience = EarlyStoppingCallback(settings.patience, settings.min_progress)
        patience.early_stopping_patience_counter = start.idle
        callbacks.append(patience)
    if details is not None:
        callbacks.append(details)
    if stages is not None:
        callbacks.append(Unfreezing(stages, plan))
    if settings.schedule == "plateau":
        callbacks.append(PlateauWatch(settings.min_progress, lambda: warmup_steps(settings.warmup, plan.steps)))
    if session.average is not None:
        callbacks.append(session.average)
    if session.ema is not None:
        callbacks += [] if session.shards is None else [GatherEachStep(session.shards)]
        callbacks.append(session.ema)
    if on_evaluation is not None:
        callbacks.append(Observer(on_evaluation, folder.metrics, session.module))
    if rank() == 0:
        callbacks += trackers(settings, folder, purge=start.step + 1 if start.checkpoint else None)
    return callbacks


def make_trainer(
    session: Session,
    arithmetic: Arithmetic,
    groups: list[dict[str, Any]] | None,
    callbacks: list[TrainerCallback],
    *,
    details: ClassDetails | None,
    watch: Watch | None,
    thaws: bool,
    eval_start: bool,
) -> TymbalTrainer:
    """`Trainer` for a session, seeded and with the module on its device.

    Args:
        session: The session.
        arithmetic: Device and precision.
        groups: Parameter groups for the optimizer; None treats all parameters alike.
        callbacks: Its callbacks, see `session_callbacks`.
        details: One of these, which also takes the sums of evaluations.
        watch: Gives further figures for every evaluation.
        thaws: Whether parameters are frozen for some time.
        eval_start: Whether to evaluate before the first step, too; that model counts as one of the others.
    """
    module, settings, plan, start = session.module, session.settings, session.plan, session.start
    device, dtype = arithmetic
    validates = session.validation_dataset is not None
    monitor = cast(Trainable, module).monitor if validates else None
    rates = {"learning_rate": settings.learning_rate, "weight_decay": settings.weight_decay}
    trainer = TymbalTrainer(
        module,
        training_arguments(
            settings,
            plan=plan,
            device=device,
            dtype=dtype,
            run=session.folder.path,
            monitor=monitor,
            thaws=thaws,
            eval_start=eval_start and validates and start.checkpoint is None,
        ),
        plan=plan,
        settings=settings,
        train_dataset=session.train_dataset,
        validation_dataset=session.validation_dataset,
        groups=groups or parameter_groups(module.named_parameters(), **rates),
        checkpoints=session.checkpoints,
        shards=session.shards,
        average=session.average,
        ema=session.ema,
        details=details,
        watch=watch,
        skip=start.step * plan.accumulate,
        callbacks=callbacks,
    )
    if start.checkpoint is not None:  # now that the module is on its device
        for average in (session.average, session.ema):
            if average is not None:
                average.load(start.checkpoint)
    # `Trainer` seeds all processes alike, which then would drop out the same places of different clips.
    set_seed(settings.seed + rank())
    return trainer
