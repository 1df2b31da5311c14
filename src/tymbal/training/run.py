"""One whole training run: begun or continued, to its best model on the disk.

Every objective and the fine-tuning go through `begin` (`training.beginning`) and `train`, which puts together the plan
of all batches, `Trainer`, the checkpoints and what happens around them, and returns when the weights of the best step
are in the module and saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from tymbal.compute.processes import (
    quiet_except_rank_zero,
    rank,
    reproducible,
)
from tymbal.errors import CheckpointError
from tymbal.files import disk_errors
from tymbal.progress import Progress, say, tell
from tymbal.settings import TrainingSettings
from tymbal.stopping import Interrupted, Stopped, requested
from tymbal.training.callbacks import (
    Evaluation,
    ProgressBar,
    StopOnSignal,
)
from tymbal.training.checkpoints import Checkpoints, best_weights, verify
from tymbal.training.device_errors import explain, settle_device
from tymbal.training.figures import metrics_at_step
from tymbal.training.layers import Stages
from tymbal.training.records import ByClass, ClassDetails
from tymbal.training.run_folder import Resume, RunFolder, RunResult
from tymbal.training.session import (
    Session,
    make_trainer,
    open_session,
    session_callbacks,
)
from tymbal.training.trainer import BatchDataset, TymbalTrainer, Watch

__all__ = ["train"]

_TITLES = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}


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
    eval_start: bool = False,
    classes: Sequence[str] = (),
    weights: NDArray[np.float64] | None = None,
    clip_groups: NDArray[np.int64] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    watch: Watch | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    finalise: Callable[[RunResult], None],
) -> RunResult:
    """Trains a module to the end of its plan, its patience or its minutes, or continues to do so.

    Afterwards the module has the weights of its best step, or of the last one where nothing is validated.

    Args:
        module: The objective, see `objectives.contract.Trainable`.
        train_dataset: Clips to learn from.
        validation_dataset: Clips to validate on; None or empty for none.
        settings: How to train.
        run: The run folder, already begun.
        verb: The verb, for the progress bar.
        resume: As in `begin`.
        groups: Parameter groups for the optimizer, see `training.optimization`. None treats all parameters alike.
        stages: Stages of gradual unfreezing; None trains all from the start.
        eval_start: Whether to evaluate before the first step, too; what is begun with then counts as a model.
        classes: Names of the classes, of which every evaluation is then written down apart; the module is a
            `training.records.ByClass`.
        weights: Chances of the training clips, see `training.batches.BatchPlan`.
        clip_groups: Number of each training clip's group, see there.
        on_evaluation: Called after every evaluation, in the first process only.
        watch: Gives further figures for every evaluation, of its figures and the epoch, in the first process only.
        callbacks: Further callbacks of the training.
        finalise: Saves the module as the model of a result; called in the first process only, for the average of
            weights, if any, and then for the best.

    Returns:
        How the run ended, with the figures of the saved model.

    Raises:
        TrainingError: The loss is not finite, the memory of the device is too small, CUDA failed, or something has no
            deterministic form on it.
        CheckpointError: There is nothing to resume from, or it belongs to other data.
        SettingsError: Settings do not go together.
        Stopped: A signal asked to stop; a checkpoint is written.
        Interrupted: So did Ctrl-C.
    """
    datasets = train_dataset, validation_dataset
    session = open_session(
        module,
        datasets,
        settings,
        folder=RunFolder(run),
        weights=weights,
        groups=clip_groups,
        thaws=stages is not None,
        resume=resume,
    )
    plan, checkpoints = session.plan, session.checkpoints
    with reproducible(settings.deterministic):
        arithmetic = settle_device(module, train_dataset, settings, plan=plan)
        explained = explain(module, train_dataset, settings, plan=plan, arithmetic=arithmetic, checkpoints=checkpoints)
        with disk_errors(run), explained:
            details = ClassDetails(session.folder.classes, cast(ByClass, module), classes) if classes else None
            trainer = make_trainer(
                session,
                arithmetic,
                groups,
                session_callbacks(session, callbacks, details=details, stages=stages, on_evaluation=on_evaluation),
                details=details,
                watch=watch,
                thaws=stages is not None,
                eval_start=eval_start,
            )
            end = _fit(trainer, session, title=_TITLES.get(verb, verb))
            _save_average(trainer, session, end, finalise)
    return _finish(trainer, session, end, finalise)


@dataclass(frozen=True)
class _End:
    """How a session ended: steps that are done, the best of them, and why."""

    steps: int
    best_step: int | None
    why: str


def _fit(trainer: TymbalTrainer, session: Session, *, title: str) -> _End:
    """Trains until the run ends.

    Raises:
        Stopped: A signal ended the session.
    """
    start, patience = session.start, session.settings.patience
    steps, best_step = start.step, start.best_step
    # If patience was used up before and only the model is unsaved, no training is left to do.
    if not patience or start.idle < patience:
        _fit_with_progress(trainer, session, title=title)
        steps, best_step = trainer.state.global_step, trainer.state.best_global_step
    why = "minutes" if session.clock.rang else "steps" if steps >= session.plan.steps else "patience"
    return _End(steps, best_step, why)


def _fit_with_progress(trainer: TymbalTrainer, session: Session, *, title: str) -> None:
    """Trains, with a progress bar, until the run ends or a signal ends the session."""
    name = trainer.args.metric_for_best_model
    names = ("loss", f"eval_{name}")

    def shown(logs: dict[str, Any]) -> dict[str, float]:
        return {key: logs[key] for key in names if key in logs}

    start, plan = session.start, session.plan
    with (
        Progress(plan.steps, title, unit="steps", done=start.step) as progress,
        warnings.catch_warnings(),
        requested() as request,
    ):
        # About the way in which Trainer and accelerate set DDP up, which is not ours to change.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated|Grad strides do not match")
        trainer.add_callback(ProgressBar(progress, plan, shown))
        signals = StopOnSignal(request)
        trainer.add_callback(signals)
        trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    if signals.stopped:
        if rank() == 0:
            by = "" if request.name is None else " by Ctrl-C" if request.name == "SIGINT" else f" by {request.name}"
            say(f"Stopped{by} after step {trainer.state.global_step:,} of {plan.steps:,}. The same command continues.")
        # A launcher that sees the first process end may kill the others: not before the checkpoint has its name.
        trainer.accelerator.wait_for_everyone()
        raise Interrupted if request.name == "SIGINT" else Stopped


def _save_average(trainer: TymbalTrainer, session: Session, end: _End, finalise: Callable[[RunResult], None]) -> None:
    """Saves the average of weights as a model of its own, if anything was averaged; the module has it afterwards."""
    average, folder = session.average, session.folder
    if average is None or not average.count:
        return
    figures = trainer.evaluated(average)
    if rank() == 0:
        finalise(
            RunResult(
                run=folder.path,
                model=folder.average,
                metrics=figures,
                steps=end.steps,
                best_step=end.steps,
                ended=end.why,
            )
        )


def _finish(trainer: TymbalTrainer, session: Session, end: _End, finalise: Callable[[RunResult], None]) -> RunResult:
    """Loads the best weights, saves them as the model and records that the run is finished."""
    folder, checkpoints = session.folder, session.checkpoints
    module = trainer.accelerator.unwrap_model(session.module, keep_fp32_wrapper=False)
    saved = _load_best(module, checkpoints, [end.best_step, end.steps])
    result = RunResult(
        run=folder.path,
        model=folder.model,
        metrics=metrics_at_step(folder.metrics, saved),
        steps=end.steps,
        best_step=saved,
        ended=end.why,
    )
    if rank() == 0:
        finalise(result)
        checkpoints.rotate(best=end.best_step)
        folder.finish(result)
    trainer.accelerator.wait_for_everyone()
    return result


def _load_best(module: nn.Module, checkpoints: Checkpoints, steps: list[int | None]) -> int:
    """Loads the weights of the first of these steps whose checkpoint is whole; gives that step."""
    for step in (step for step in steps if step is not None):
        try:
            verify(checkpoints.path(step))
        except CheckpointError as error:
            tell(f"The checkpoint of step {step} cannot be used: {error.what} ({error.path})", warning=True)
        else:
            weights = best_weights(checkpoints.path(step))
            with disk_errors(weights):
                module.load_state_dict(load_file(weights), strict=True)
            return step
    raise CheckpointError(
        "the last checkpoints of the run are damaged", path=checkpoints.folder, advice="Run the same command again."
    )
