"""Trouble with the device of a training, in plain words: too little memory, or CUDA failing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from tymbal.errors import TrainingError
from tymbal.progress import tell
from tymbal.settings import TrainingSettings
from tymbal.training.cuda import is_cuda_failure, is_out_of_memory, one_line
from tymbal.training.device import CUDA_OR_CPU, choose_device, choose_precision
from tymbal.training.memory import Gpu, Need, fitting_batch, free, measure, missing_state, step_on
from tymbal.training.processes import processes
from tymbal.training.trainer import BatchDataset, TymbalTrainer

__all__ = ["in_plain_words", "settle_device", "too_large"]

_GIB = 2**30


def settle_device(
    module: nn.Module, dataset: BatchDataset, settings: TrainingSettings, *, batch_size: int
) -> tuple[torch.device, torch.dtype | None]:
    """Chooses device and precision and says why.

    For `cuda-or-cpu` it also tries a step on the GPU: where the memory is too small, the CPU is taken.

    Args:
        module: The objective; it is where it was afterwards.
        dataset: Clips to learn from.
        settings: How to train.
        batch_size: Clips of the first batch.

    Returns:
        The device, and the dtype of the encoder's arithmetic, None for float32.
    """
    device, why = choose_device(settings.device)
    dtype, why_dtype = choose_precision(settings.precision, device)
    or_cpu = settings.device == CUDA_OR_CPU
    if or_cpu and device.type == "cuda" and processes() == 1:
        lack = _lack_of_memory(module, dataset, settings, batch_size=batch_size, device=device, dtype=dtype)
        if lack is not None:
            device, why = torch.device("cpu"), lack
            dtype, why_dtype = choose_precision(settings.precision, device)
    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    tell(f"Device: {device} ({why}). Precision: {precision} ({why_dtype}).", warning=or_cpu and device.type == "cpu")
    return device, dtype


@contextlib.contextmanager
def in_plain_words(trainer: TymbalTrainer, module: nn.Module, settings: TrainingSettings) -> Iterator[None]:
    """Turns what PyTorch raises within it about the device into errors that say what happened and what to do.

    Raises:
        TrainingError: The memory of the device is too small for a batch, or CUDA failed.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            free(error)
            raise _out_of_memory(trainer, module, settings) from None
        if is_cuda_failure(error):
            raise _failed(trainer, error) from error
        raise


def too_large(
    need: Need | None, capacity: float, settings: TrainingSettings, *, batch_size: int, device: str, has_checkpoints: bool
) -> TrainingError:
    """The error for a batch that does not fit, with a batch that does.

    Args:
        need: What a step takes; None where not even one clip fits.
        capacity: Bytes that this process can have.
        settings: How it was to be trained.
        batch_size: Clips of the batch that did not fit.
        device: The device, for a person.
        has_checkpoints: Whether the run has begun, with batches that are its own for good.
    """
    savers = [] if settings.gradient_checkpointing else ["--gradient-checkpointing"]
    savers += ["--precision bf16"] if settings.precision == "float32" else []
    fit = None if need is None else fitting_batch(need, capacity, batch_size=batch_size, accumulate=settings.accumulate)
    if need is None or fit is None:
        return TrainingError(
            f"the memory of {device} is too small for even one clip",
            advice=f"What makes it fit: {', '.join([*savers, 'a smaller --size', 'shorter clips', 'another GPU'])}.",
        )
    size, accumulate = fit
    takes = f"{need.of(batch_size) / _GIB:.3g} GiB, and there are {capacity / _GIB:.3g}"
    if settings.batch_sizes:
        advice = f"Of --batch-sizes none may be above {size}."
    else:
        same = "The same training" if size * accumulate == batch_size * settings.accumulate else "Nearly the same training"
        advice = f"{same} in less memory: --batch-size {size} --accumulate {accumulate}."
    if has_checkpoints:
        advice += " That is another run: give it a folder of its own."
    if savers:
        advice += f" {' and '.join(savers)} save{'s' if len(savers) == 1 else ''} memory, too."
    return TrainingError(
        f"the memory of {device} is too small for batches of {batch_size} clips: they take {takes}", advice=advice
    )


def _lack_of_memory(
    module: nn.Module,
    dataset: BatchDataset,
    settings: TrainingSettings,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> str | None:
    """What a step on the GPU lacks, or None where there is enough memory for it."""
    gpu = Gpu(device)
    step = step_on(device, dtype, module, dataset)
    state = missing_state(module.parameters())
    with torch.random.fork_rng(devices=[device]):
        try:
            module.to(device)
            peak = gpu.peak(lambda: step(batch_size))
            if peak + state <= gpu.capacity():
                return None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            free(error)
        finally:
            module.to("cpu")
            torch.cuda.empty_cache()
    return f"the memory of {gpu.describe()} is too small for batches of {batch_size} clips"


def _out_of_memory(trainer: TymbalTrainer, module: nn.Module, settings: TrainingSettings) -> TrainingError:
    device = trainer.args.device
    batch_size = trainer.batch_size
    if device.type != "cuda":
        half = max(1, batch_size // 2)
        return TrainingError(
            f"the memory of {device} is too small for batches of {batch_size} clips",
            advice=f"Try half of it: --batch-size {half} --accumulate {2 * settings.accumulate}.",
        )
    module.zero_grad(set_to_none=True)
    gpu = Gpu(device)
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else None
    need = measure(gpu, step_on(device, dtype, module, trainer.clips), batch_size)
    if need is not None and not (trainer.optimizer and trainer.optimizer.state):
        need = Need(fixed=need.fixed + missing_state(module.parameters()), per_clip=need.per_clip)
    return too_large(
        need,
        gpu.capacity(),
        settings,
        batch_size=batch_size,
        device=f"{device} ({gpu.describe()})",
        has_checkpoints=trainer.last_checkpoint is not None,
    )


def _failed(trainer: TymbalTrainer, error: RuntimeError) -> TrainingError:
    last = trainer.last_checkpoint
    goes_on = "begins anew" if last is None else f"continues from step {last:,}"
    return TrainingError(
        f"CUDA failed at step {trainer.state.global_step:,}: {one_line(str(error))}",
        path=trainer.args.output_dir,
        advice=f"The same command {goes_on}. Where it fails again, 'nvidia-smi' and the system's log (Xid) say how the "
        f"GPU is.",
    )
