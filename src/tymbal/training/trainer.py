"""Hugging Face `Trainer`, and what it lacks; the loop, precision, accumulation, schedule and DDP are its own.

What is changed, and why (tried with transformers 5.23, accelerate 1.15, torch 2.13):

- It reads batches from a plan of the whole run, which it sees as one epoch (`training.batches`).
- It adds up the sums of an objective on the device instead of gathering its outputs (`objectives.metrics`).
- It stops at a loss that is not finite, and saves no weights that are not.
- It writes checkpoints aside and renames them when they are complete (`training.checkpoints`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from typing_extensions import override

from tymbal.errors import CheckpointError, SettingsError, TrainingError
from tymbal.files import disk_errors
from tymbal.objectives.contract import Trainable, compares_clips
from tymbal.objectives.metrics import RunningSums
from tymbal.settings import TrainingSettings
from tymbal.stopping import survive_in_worker
from tymbal.store.dataset import whole_batch
from tymbal.training.batches import BatchPlan, PlannedBatchSampler, SequentialBatchSampler
from tymbal.training.checkpoints import Checkpoints
from tymbal.training.layers import MovingAverage, WeightAverage
from tymbal.training.optimization import make_optimizer, make_schedule
from tymbal.training.records import ClassDetails
from tymbal.training.sharding import Shards, local

__all__ = ["BatchDataset", "TymbalTrainer", "Watch"]

Watch = Callable[[Mapping[str, float], float], dict[str, float]]
"""Gives further figures for an evaluation, of its figures (`eval_…`) and the epoch."""

_NOT_FINITE = "_not_finite"


class BatchDataset(Protocol):
    """A dataset to train on, which gathers a whole batch at once."""

    def __len__(self) -> int:
        """Number of clips."""

    @property
    def ahead(self) -> int:
        """Batches to announce before they are requested."""

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these indices, each `epoch * len + position`."""

    def announce(self, indices: Sequence[int]) -> None:
        """Receives a batch that will be requested next, so that the disk can be read ahead."""


class TymbalTrainer(Trainer):
    """`Trainer` for objectives over stores.

    Args:
        module: The objective.
        arguments: Arguments of `Trainer`.
        plan: All steps of the run.
        train_dataset: Clips to learn from.
        validation_dataset: Clips to validate on, or None.
        settings: How to train.
        groups: Parameter groups for the optimizer.
        checkpoints: The folder of the run's checkpoints.
        shards: The shards of the module that are trained in its place; None without.
        average: The average of weights that goes into checkpoints, if any.
        ema: The moving average of weights that is evaluated in their place, if any.
        details: Takes the sums of evaluations, for figures of each class; None for none.
        watch: Gives further figures for an evaluation; in the first process only.
        skip: Batches that a resumed run has behind it.
        callbacks: Further callbacks.
    """

    # `Trainer` shall divide the loss by the number of accumulated batches with any signature of the objective.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        module: nn.Module,
        arguments: TrainingArguments,
        *,
        plan: BatchPlan,
        settings: TrainingSettings,
        train_dataset: BatchDataset,
        validation_dataset: BatchDataset | None,
        groups: list[dict[str, Any]],
        checkpoints: Checkpoints,
        shards: Shards | None = None,
        average: WeightAverage | None = None,
        ema: MovingAverage | None = None,
        details: ClassDetails | None = None,
        watch: Watch | None = None,
        skip: int = 0,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            module if shards is None else shards.module,
            arguments,
            train_dataset=cast(Dataset[Any], train_dataset),
            eval_dataset=cast(Dataset[Any] | None, validation_dataset),
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # Else it counts the labels of every batch over all processes, waiting for the device.
        self.model_accepts_loss_kwargs = False
        self._module = module
        self._plan = plan
        self._settings = settings
        self._groups = groups if shards is None else shards.groups(groups)
        self._shards = shards
        self._checkpoints = checkpoints
        self._average = average
        self._ema = ema
        self._details = details
        self._watch = watch
        self._skip = skip
        self._is_saving = False
        self._window = RunningSums()

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        dataset = cast(BatchDataset, self.train_dataset)
        rank = self.args.process_index
        return self._loader(
            dataset,
            PlannedBatchSampler(
                self._plan, rank=rank, announce=dataset.announce, announce_from=self._skip, ahead=dataset.ahead
            ),
        )

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        dataset = cast(BatchDataset, self.eval_dataset if eval_dataset is None else eval_dataset)
        # A loss that compares clips is that of a whole batch: each process evaluates as many as all of them train on,
        # in an order as random as that of the training.
        compares = compares_clips(self._module)
        together = self.args.world_size if compares else 1
        sampler = SequentialBatchSampler(
            len(dataset),
            self.args.per_device_eval_batch_size * together,
            rank=self.args.process_index,
            processes=self.args.world_size,
            announce=dataset.announce,
            ahead=dataset.ahead,
            shuffled=self._settings.seed if compares else None,
        )
        return self._loader(dataset, sampler)

    def _loader(self, dataset: BatchDataset, sampler: Sampler[list[int]]) -> DataLoader[Any]:
        if self.args.dataloader_num_workers and dataset.ahead > 1:
            raise SettingsError(
                "workers cannot read a store elsewhere: threads do already, some batches ahead",
                advice="Leave out workers, or set it to 0.",
            )
        return DataLoader(
            cast(Dataset[Any], dataset),
            batch_sampler=sampler,
            collate_fn=whole_batch,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=survive_in_worker,
            # Views made on the device are in its memory already.
            pin_memory=self.args.dataloader_pin_memory and not getattr(dataset, "on_device", False),
            # Its own, so that an evaluation draws nothing from the generator of the training.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    @override
    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        pinned = self.args.dataloader_pin_memory
        return {name: value.to(self.args.device, non_blocking=pinned) for name, value in inputs.items()}

    @override
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self._settings, self._groups, shards=self._shards is not None)
            if self._shards is not None:
                self._shards.read_whole_states(self.optimizer)
        return self.optimizer

    @override
    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = make_schedule(
                self._settings,
                self._plan,
                optimizer or self.create_optimizer(),
                warmup=self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = self.lr_scheduler is not None
        return super().create_scheduler(num_training_steps, optimizer)

    @override
    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if len(inputs["row"]) == 0:
            raise TrainingError(
                "not one clip of a batch can be read any more",
                advice="Is the disk still there? The same command continues. If only a few files are damaged, larger "
                "batches get past them.",
            )
        if self._shards is not None:  # as `Trainer` does with what it trains
            self._module.train()
        outputs = model(**inputs)
        loss: Tensor = outputs["loss"]
        self._window.add({**outputs["sums"], _NOT_FINITE: ~loss.detach().isfinite()})
        return (loss, outputs) if return_outputs else loss

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:
            return  # A summary of this session, which means nothing for a run of several.
        # `Timetable` sees to it that every evaluation and every checkpoint comes after a look at the loss.
        if "loss" in logs:
            sums = self._window.take()
            if sums.pop(_NOT_FINITE).item():
                raise self._not_finite("the loss is not a finite number", logs["learning_rate"])
            logs = {**cast(Trainable, self._module).metrics(sums), **logs}
        super().log(logs, start_time)

    @override
    def evaluation_loop(
        self, dataloader: DataLoader[Any], description: str, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> EvalLoopOutput:
        if self._shards is None:
            return self._evaluated(dataloader, description, metric_key_prefix)
        with self._shards.at_hand():
            return self._evaluated(dataloader, description, metric_key_prefix)

    def _evaluated(self, dataloader: DataLoader[Any], description: str, prefix: str) -> EvalLoopOutput:
        self._module.eval()
        running = RunningSums()
        with torch.no_grad():
            for batch in dataloader:
                if len(batch["row"]) > 0:  # it is 0 where all its clips have become unreadable
                    running.add(self._module(**self._prepare_inputs(batch))["sums"])
        totals = running.take()
        if not totals:
            raise TrainingError("not one validation clip can be read any more", advice="Is the disk still there?")
        if self._details is not None:
            self._details.take(totals)
        figures = cast(Trainable, self._module).metrics(totals)
        metrics = {name if name.startswith("alarm_") else f"{prefix}_{name}": value for name, value in figures.items()}
        if self._watch is not None and description == "Evaluation" and self.args.process_index == 0:
            metrics |= self._watch(metrics, float(self.state.epoch or 0.0))
        return EvalLoopOutput(
            predictions=np.empty(0),
            label_ids=None,
            metrics=metrics,
            num_samples=len(cast(BatchDataset, dataloader.dataset)),
        )

    @override
    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        if self._shards is not None:
            self._shards.gather()
        if self.state.global_step:
            with nullcontext() if self._ema is None else self._ema.in_place():
                return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        # Before the first step `Trainer` evaluates without remembering or saving what may be the best model.
        self.state.epoch = 0.0
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        self._determine_best_metric(metrics=metrics, trial=trial)
        self._save_checkpoint(self._module, trial)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.control.should_save = self.control.should_evaluate = False
        return metrics

    def evaluated(self, average: WeightAverage) -> dict[str, float]:
        """Figures of the averaged weights on the validation clips; the module has them afterwards."""
        average.apply()
        return dict(self.evaluation_loop(self.get_eval_dataloader(), "average").metrics or {})

    @override
    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoints.aside) if self._is_saving else str(super()._get_output_dir(trial))

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self._shards is not None:
            self._shards.gather()
        if not self._is_finite():
            raise self._not_finite("weights or optimizer are not finite numbers", self._get_learning_rate())
        if self.args.should_save:
            shutil.rmtree(self._checkpoints.aside, ignore_errors=True)
            self._checkpoints.aside.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            with disk_errors(self._checkpoints.path(self.state.global_step)):
                super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
        # Until every process has written the state of its random numbers.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = self._checkpoints.aside / self._checkpoints.path(self.state.global_step).name
            with disk_errors(self._checkpoints.path(self.state.global_step)):
                if self._average is not None:
                    self._average.save(written)
                if self._ema is not None:
                    self._ema.save(written)
                if self._details is not None:
                    self._details.save(written, self.state.global_step)
            self._checkpoints.commit(self.state.global_step, {"plan": self._plan.fingerprint()})
            self._checkpoints.rotate(best=self.state.best_global_step)

    # What shards change: `Trainer` neither wraps them nor knows how to write them.

    @override
    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if self._shards is not None:
            for each in (self._shards.whole, self._shards.module):
                self.accelerator.prepare_model(each, device_placement=False, evaluation_mode=True)
                vars(each)["_is_accelerate_prepared"] = True  # so that it is not put into DDP
        return super()._wrap_model(model, training, dataloader)

    @override
    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @override
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict if self._shards is None else self._module.state_dict())

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        own = self.optimizer
        if self._shards is not None:
            state = self._shards.whole_state(self.create_optimizer())
            self.optimizer = cast(torch.optim.Optimizer, SimpleNamespace(state_dict=lambda: state))
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            self.optimizer = own

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._shards is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, self._module)
        self._shards.scatter()

    def _is_finite(self) -> bool:
        states = [value for state in self.create_optimizer().state.values() for value in state.values()]
        tensors = [*self._module.state_dict().values(), *(value for value in states if isinstance(value, Tensor))]
        flags = [local(value).isfinite().all().to(self.args.device) for value in tensors if value.is_floating_point()]
        finite = torch.stack(flags).all()
        if self._shards is None:
            return bool(finite.item())
        return bool(self.accelerator.gather(finite[None]).all().item())  # each process has seen its shards

    def _not_finite(self, what: str, learning_rate: float) -> TrainingError:
        done = [step for step in self._checkpoints.steps() if step <= self.state.global_step]
        resume_hint = f" The last good checkpoint is that of step {done[-1]}." if done else ""
        return TrainingError(
            f"{what} at step {self.state.global_step} (learning rate {learning_rate:.3g})",
            path=self._checkpoints.folder.parent,
            advice=(
                f"Begin a new run with a lower --learning-rate (try {self.args.learning_rate / 3:.2g}), a longer "
                f"--warmup, or --precision float32; 'tymbal scan' finds sound files with values that are not "
                f"finite.{resume_hint}"
            ),
        )

    @override
    def _issue_warnings_after_load(self, load_result: Any) -> None:
        differing = [*load_result.missing_keys, *load_result.unexpected_keys]
        if differing:
            raise CheckpointError(
                f"the checkpoint's weights are not those of this model: {', '.join(differing[:5])}",
                path=self._checkpoints.folder,
                advice="It was written by another version of Tymbal: begin a new run.",
            )
