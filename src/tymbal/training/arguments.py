"""Our settings as `TrainingArguments`: the same names where Hugging Face has the same thing.

What is switched off here is done by us instead: the timetable (`training.callbacks`), saving (`training.checkpoints`),
trackers (`training.trackers`), progress bars, and the choice of the device.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from tymbal.errors import DeviceError
from tymbal.settings import TrainingSettings
from tymbal.training.batches import BatchPlan

__all__ = ["training_arguments"]

# Those that are not among these are our own (`training.schedule`).
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
) -> TrainingArguments:
    """Builds the arguments of `Trainer`.

    Args:
        settings: Ours.
        plan: All steps of the run.
        device: Where to compute.
        dtype: Arithmetic of the encoder, None for float32.
        run: The run folder.
        monitor: Name of the metric that tells the best model and whether greater is better; None without validation.
        thaws: Whether parameters are frozen for some time.

    Raises:
        DeviceError: Another GPU than the first visible one; `Trainer` takes that one.
    """
    if device.type == "cuda" and device.index:
        raise DeviceError(
            f"training takes the first GPU that it sees, not {device}",
            advice=f"Set CUDA_VISIBLE_DEVICES={device.index} and use --device cuda.",
        )
    # What a person has to know is said by us; `Trainer` sets this level too, but only after its first remarks.
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
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.clip_norm,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and plan.processes > 1 else None,
        # Objectives train all that they do not freeze, for some time or for good, and have no buffers that change.
        ddp_find_unused_parameters=thaws,
        ddp_broadcast_buffers=False,
        torch_compile=settings.compile,
        seed=settings.seed,
        # `EarlyStoppingCallback` wants a strategy; when to evaluate is for the timetable to say.
        eval_strategy="no" if monitor is None else "steps",
        eval_steps=plan.steps,
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
