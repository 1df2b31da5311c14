"""One training run, whole: begun or continued, to its best model on the disk.

Every objective and the fine-tuning go through `begin` and `train`. They put together the plan of all batches,
`Trainer`, the checkpoints and what happens around them; `train` returns when the weights of the best step are in the
module and saved.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from tymbal import config
from tymbal.compute.device import choose_device
from tymbal.compute.processes import (
    init_process_group,
    on_rank_zero,
    processes,
    quiet_except_rank_zero,
    rank,
    reproducible,
)
from tymbal.errors import CheckpointError, SettingsError
from tymbal.progress import Progress, say, tell
from tymbal.settings import TrainingSettings
from tymbal.stopping import Stopped, requested
from tymbal.training.batches import BatchPlan
from tymbal.training.callbacks import (
    Clock,
    Evaluation,
    MetricsFile,
    Observer,
    PlateauWatch,
    ProgressBar,
    StopOnSignal,
    Timetable,
)
from tymbal.training.checkpoints import Checkpoints, resolve_checkpoint, verify
from tymbal.training.device_errors import Arithmetic, explain, settle_device
from tymbal.training.layers import Stages, Unfreezing, WeightAverage
from tymbal.training.optimization import parameter_groups, training_arguments
from tymbal.training.records import ByClass, ClassDetails
from tymbal.training.run_folder import Resume, RunFolder, RunResult
from tymbal.training.trackers import check_trackers, trackers
from tymbal.training.trainer import BatchDataset, Objective, TymbalTrainer

__all__ = ["begin", "train"]

_TITLES = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class _Start:
    """Where a session takes a run up.

    Attributes:
        checkpoint: The checkpoint that it continues from; None at the beginning.
        step: Steps that are done.
        best_step: The best of them, if any was evaluated.
        seconds: Seconds of training that are done.
        idle: Evaluations without progress up to here.
    """

    checkpoint: Path | None = None
    step: int = 0
    best_step: int | None = None
    seconds: float = 0.0
    idle: int = 0


@quiet_except_rank_zero()
def begin(
    verb: str, output: str | os.PathLike[str], arguments: Mapping[str, Any], settings: TrainingSettings, resume: Resume
) -> RunResult | None:
    """Begins a run in its folder or takes it up again, before anything is computed.

    Args:
        verb: The verb, as on the command line.
        output: The run folder.
        arguments: The verb's arguments by parameter name, for `run.yaml`.
        settings: The verb's resolved settings.
        resume: `auto` continues a run that is there, True insists on one, False refuses; or the checkpoint to
            continue from.

    Returns:
        The result, where the run is finished already; else None, and `train` is to be called.

    Raises:
        SettingsError: The folder holds a run with other settings, of another verb, or any run at all; or a tracker is
            missing.
        CheckpointError: There is no run to resume.
    """
    init_process_group(choose_device(settings.device)[0])
    folder = RunFolder(Path(output))
    _resume_checkpoint(resume, folder.path)  # a mistake is said now, not when sound is prepared
    result = on_rank_zero(lambda: folder.begin(verb, arguments, settings, resume=resume))
    if result is not None:
        tell(f"{folder.path} is finished already, after {result.steps:,} steps. Its model: {result.model}")
    else:
        on_rank_zero(lambda: check_trackers(settings.report_to))
    return result


@quiet_except_rank_zero()
def train(
    module: nn.Module,
    train_dataset: BatchDataset,
    validation_dataset: BatchDataset | None,
    *,
    settings: TrainingSettings,
    run: Path,
    verb: str,
    resume: Resume = "auto",
    groups: list[dict[str, Any]] | None = None,
    stages: Stages | None = None,
    classes: Sequence[str] = (),
    weights: NDArray[np.float64] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    watch: Callable[[Mapping[str, float], float], dict[str, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    finalise: Callable[[RunResult], None],
) -> RunResult:
    """Trains a module to the end of its plan, its patience or its minutes, or continues to do so.

    Afterwards the module has the weights of its best step, or of the last one where nothing is validated.

    Args:
        module: The objective, see `training.trainer.Objective`.
        train_dataset: Clips to learn from.
        validation_dataset: Clips to validate on; None or empty for none.
        settings: How to train.
        run: The run folder, already begun.
        verb: The verb, for the progress bar.
        resume: As in `begin`.
        groups: Parameter groups for the optimizer, see `training.optimizer`. None treats all parameters alike.
        stages: What is thawed when, with gradual unfreezing; None trains all from the start.
        classes: Names of the classes, of which every evaluation is then written down apart; the module is a
            `training.details.ByClass`.
        weights: Chances of the training clips, see `training.batches.BatchPlan`.
        on_evaluation: Told about every evaluation, in the first process only.
        watch: Adds figures to those of every evaluation, told these and the epoch, in the first process only.
        callbacks: What else happens in the course of the training.
        finalise: Saves the module as the model of a result; called in the first process only, for the average of
            weights, where one is wanted, and then for the best.

    Returns:
        How the run ended, with the figures of the saved model.

    Raises:
        TrainingError: The loss is not finite, the memory of the device is too small, CUDA failed, or something has no
            deterministic form there.
        CheckpointError: There is nothing to resume from, or it belongs to other data.
        SettingsError: Settings do not go together.
        Stopped: A signal asked to stop; a checkpoint is written.
    """
    folder = RunFolder(run)
    plan = _plan(settings, len(train_dataset), weights)
    has_validation = validation_dataset is not None and len(validation_dataset) > 0
    _check_goals(settings, has_validation=has_validation)
    init_process_group(choose_device(settings.device)[0])
    checkpoints = Checkpoints(folder.checkpoints, keep=settings.keep_checkpoints)
    start = on_rank_zero(lambda: _find_start(checkpoints, plan, resume))
    clock = Clock(settings.max_minutes, start.seconds)
    average = None if settings.average_from is None else WeightAverage(module, settings)
    with reproducible(settings.deterministic):
        arithmetic = settle_device(module, train_dataset, settings, plan=plan)
    with (
        reproducible(settings.deterministic),
        explain(module, train_dataset, settings, plan=plan, arithmetic=arithmetic, checkpoints=checkpoints),
    ):
        trainer = _trainer(
            module,
            (train_dataset, validation_dataset if has_validation else None),
            settings,
            arithmetic=arithmetic,
            folder=folder,
            plan=plan,
            checkpoints=checkpoints,
            start=start,
            clock=clock,
            average=average,
            on_evaluation=on_evaluation,
            stages=stages,
            classes=classes,
            watch=watch,
            more=callbacks,
            groups=groups
            or parameter_groups(
                module.named_parameters(), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
            ),
        )
        if settings.patience and start.idle >= settings.patience:
            # It was killed when patience was used up and the model not yet saved: there is nothing more to train.
            steps, best_step = start.step, start.best_step
        else:
            _fit(trainer, start, title=_TITLES.get(verb, verb))
            steps, best_step = trainer.state.global_step, trainer.state.best_global_step
        ended = "minutes" if clock.rang else "steps" if steps >= plan.steps else "patience"
        if average is not None and average.count:
            figures = trainer.evaluated(average)
            averaged = RunResult(
                run=run, model=folder.average, metrics=figures, steps=steps, best_step=steps, ended=ended
            )
            if rank() == 0:
                finalise(averaged)
    saved = _load_best(
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False), checkpoints, [best_step, steps]
    )
    result = RunResult(
        run=run,
        model=folder.model,
        metrics=MetricsFile.at_step(folder.metrics, saved),
        steps=steps,
        best_step=saved,
        ended=ended,
    )
    if rank() == 0:
        finalise(result)
        checkpoints.rotate(best=best_step)
        folder.finish(result)
    trainer.accelerator.wait_for_everyone()
    return result


def _plan(settings: TrainingSettings, clips: int, weights: NDArray[np.float64] | None) -> BatchPlan:
    return BatchPlan(
        length=clips,
        batch_sizes=settings.batch_sizes or (settings.batch_size,),
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        accumulate=settings.accumulate,
        processes=processes(),
        seed=settings.seed,
        weights=weights,
    )


def _check_goals(settings: TrainingSettings, *, has_validation: bool) -> None:
    wanted = {"patience": settings.patience, "average_from": settings.average_from is not None}
    wanted["schedule plateau"] = settings.schedule == "plateau"
    for name in [name for name, is_wanted in wanted.items() if is_wanted and not has_validation]:
        without = "set patience to 0" if name == "patience" else f"do without {name}"
        raise SettingsError(
            f"{name} needs validation clips, and there are none",
            advice=f"Give more clips, or a store with a validation split; or {without}.",
        )


def _resume_checkpoint(resume: Resume, run: Path) -> Path | None:
    """The checkpoint that is named to resume from; None for the newest of the run, or for none at all."""
    return None if isinstance(resume, bool) or resume == "auto" else resolve_checkpoint(Path(resume), run)


def _find_start(checkpoints: Checkpoints, plan: BatchPlan, resume: Resume) -> _Start:
    """Where to take the run up; the first process decides."""
    checkpoints.clean()
    found: tuple[Path, dict[str, Any]] | None
    path = _resume_checkpoint(resume, checkpoints.folder.parent)
    if path is None:
        found = checkpoints.newest() if resume else None
    else:
        found = path, verify(path)
        later = [step for step in checkpoints.steps() if step > found[1]["step"]]
        if later:
            raise CheckpointError(
                f"the run has later checkpoints, up to step {later[-1]}",
                path=checkpoints.folder,
                advice="Delete them to go back, or begin a new run with --from and this checkpoint's run.",
            )
    if found is None:
        if resume not in ("auto", False):
            raise CheckpointError("there is no complete checkpoint to resume from", path=checkpoints.folder)
        if checkpoints.steps():
            tell("No checkpoint is complete: training starts from the beginning", warning=True)
        return _Start()
    path, manifest = found
    changes = config.diff(manifest["plan"], plan.fingerprint())
    if changes:
        raise CheckpointError(
            "the run was begun with other data or another number of processes:\n    " + "\n    ".join(changes),
            path=path,
            advice="Continue it with the same store, as many processes, and the same batch size; or begin a new run.",
        )
    tell(f"Continuing from step {manifest['step']:,} of {plan.steps:,}")
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    kept = {name: entry["attributes"] for name, entry in state["stateful_callbacks"].items()}
    return _Start(
        checkpoint=path,
        step=manifest["step"],
        best_step=state["best_global_step"],
        seconds=kept.get("Clock", {}).get("seconds", 0.0),
        idle=kept.get("EarlyStoppingCallback", {}).get("early_stopping_patience_counter", 0),
    )


def _trainer(
    module: nn.Module,
    datasets: tuple[BatchDataset, BatchDataset | None],
    settings: TrainingSettings,
    *,
    arithmetic: Arithmetic,
    folder: RunFolder,
    plan: BatchPlan,
    checkpoints: Checkpoints,
    start: _Start,
    clock: Clock,
    average: WeightAverage | None,
    on_evaluation: Callable[[Evaluation], None] | None,
    stages: Stages | None,
    classes: Sequence[str],
    watch: Callable[[Mapping[str, float], float], dict[str, float]] | None,
    more: Sequence[TrainerCallback],
    groups: list[dict[str, Any]],
) -> TymbalTrainer:
    device, dtype = arithmetic
    train_dataset, validation_dataset = datasets
    monitor = None if validation_dataset is None else cast(Objective, module).monitor
    arguments = training_arguments(
        settings, plan=plan, device=device, dtype=dtype, run=folder.path, monitor=monitor, thaws=stages is not None
    )
    timetable = Timetable(
        plan,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        eval_steps=settings.eval_steps,
        save_every=settings.save_every,
        validates=validation_dataset is not None,
    )
    callbacks: list[TrainerCallback] = [timetable, clock, MetricsFile(folder.metrics, folder.log, clock, plan), *more]
    if settings.patience:
        patience = EarlyStoppingCallback(settings.patience, settings.min_progress)
        patience.early_stopping_patience_counter = start.idle
        callbacks.append(patience)
    details = None
    if classes:
        details = ClassDetails(folder.classes, cast(ByClass, module), classes)
        callbacks.append(details)
    if stages is not None:
        callbacks.append(Unfreezing(stages, plan))
    if settings.schedule == "plateau":
        callbacks.append(PlateauWatch(settings.min_progress))
    if average is not None:
        callbacks.append(average)
    if on_evaluation is not None:
        callbacks.append(Observer(on_evaluation, folder.metrics, module))
    if rank() == 0:
        callbacks += trackers(settings, folder, purge=start.step + 1 if start.checkpoint else None)
    trainer = TymbalTrainer(
        module,
        arguments,
        plan=plan,
        settings=settings,
        train_dataset=train_dataset,
        validation_dataset=validation_dataset,
        groups=groups,
        checkpoints=checkpoints,
        average=average,
        details=details,
        watch=watch,
        skip=start.step * plan.accumulate,
        callbacks=callbacks,
    )
    if average is not None and start.checkpoint is not None:
        average.load(start.checkpoint)  # now that the module is on its device
    # `Trainer` seeds all processes alike, which then would drop out the same places of different clips.
    set_seed(settings.seed + rank())
    return trainer


def _fit(trainer: TymbalTrainer, start: _Start, *, title: str) -> None:
    """Trains, with a progress bar, until the run ends or a signal ends the session."""
    name = trainer.args.metric_for_best_model
    wanted = ("loss", f"eval_{name}")

    def shown(logs: dict[str, Any]) -> dict[str, float]:
        return {key: logs[key] for key in wanted if key in logs}

    steps = trainer.args.max_steps
    with (
        Progress(steps, title, unit="steps", done=start.step) as progress,
        warnings.catch_warnings(),
        requested() as request,
    ):
        # About the way in which Trainer and accelerate set DDP up, which is not ours to change.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated|Grad strides do not match")
        trainer.add_callback(ProgressBar(progress, shown))
        signals = StopOnSignal(request)
        trainer.add_callback(signals)
        trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    if signals.stopped:
        if rank() == 0:
            by = f" by {request.name}" if request.name else ""
            say(f"Stopped{by} after step {trainer.state.global_step:,} of {steps:,}. The same command continues.")
        # A launcher that sees the first process end may kill the others: not before the checkpoint has its name.
        trainer.accelerator.wait_for_everyone()
        raise Stopped


def _load_best(module: nn.Module, checkpoints: Checkpoints, steps: list[int | None]) -> int:
    """Loads the weights of the first of these steps whose checkpoint is whole; gives that step."""
    for step in filter(None, steps):
        try:
            verify(checkpoints.path(step))
        except CheckpointError as error:
            tell(f"The checkpoint of step {step} cannot be used: {error.what} ({error.path})", warning=True)
        else:
            module.load_state_dict(load_file(checkpoints.path(step) / "model.safetensors"), strict=True)
            return step
    raise CheckpointError(
        "the last checkpoints of the run are damaged", path=checkpoints.folder, advice="Run the same command again."
    )
