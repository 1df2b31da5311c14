"""Trouble with the device of a training, in plain words: too little memory, or CUDA failing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from tymbal.compute.device import (
    CUDA_OR_CPU,
    choose_device,
    choose_precision,
    is_cuda_failure,
    is_out_of_memory,
    one_line,
)
from tymbal.compute.memory import Gpu, Need, fitting_batch, free, held_by, measure, step_on
from tymbal.compute.processes import rank
from tymbal.errors import TrainingError
from tymbal.progress import tell
from tymbal.settings import TrainingSettings
from tymbal.training.batches import BatchPlan
from tymbal.training.checkpoints import Checkpoints
from tymbal.training.trainer import BatchDataset

__all__ = ["Arithmetic", "explain", "settle_device", "too_large"]

Arithmetic = tuple[torch.device, torch.dtype | None]
"""Where to compute, and the dtype of the encoder's arithmetic, None for float32."""

_GIB = 2**30


def settle_device(
    module: nn.Module, dataset: BatchDataset, settings: TrainingSettings, *, plan: BatchPlan
) -> Arithmetic:
    """Chooses device and precision and says why.

    For `cuda-or-cpu` it also tries a step on the GPU: where the memory is too small, the CPU is taken.

    Args:
        module: The module that is trained.
        dataset: Clips to learn from.
        settings: How to train.
        plan: All steps of the run.
    """
    device, why = choose_device(settings.device)
    or_cpu = settings.device == CUDA_OR_CPU
    if or_cpu and device.type == "cuda" and plan.processes == 1:
        dtype, _ = choose_precision(settings.precision, device)
        batch_size = plan.batch_size_of(0)
        if not _fits(module, dataset, (device, dtype), batch_size=batch_size):
            why = f"the memory of {Gpu(device).describe()} is too small for batches of {batch_size} clips"
            device = torch.device("cpu")
    dtype, why_dtype = choose_precision(settings.precision, device)
    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    warning = or_cpu and device.type == "cpu" and rank() == 0
    tell(f"Device: {device} ({why}). Precision: {precision} ({why_dtype}).", warning=warning)
    return device, dtype


@contextlib.contextmanager
def explain(
    module: nn.Module,
    dataset: BatchDataset,
    settings: TrainingSettings,
    *,
    plan: BatchPlan,
    arithmetic: Arithmetic,
    checkpoints: Checkpoints,
) -> Iterator[None]:
    """Turns what PyTorch raises within it about the device into errors that say what happened and what to do.

    Args:
        module: The module that is trained.
        dataset: Clips to learn from.
        settings: How to train.
        plan: All steps of the run.
        arithmetic: Device and precision.
        checkpoints: The checkpoints of the run.

    Raises:
        TrainingError: The memory of the device is too small for a batch, or CUDA failed.
    """
    try:
        yield
    except RuntimeError as error:
        saved = checkpoints.steps()
        if is_out_of_memory(error):
            free(error)
            raise _out_of_memory(module, dataset, settings, plan, arithmetic, begun=bool(saved)) from None
        if is_cuda_failure(error):
            raise _failed(error, run=checkpoints.folder.parent, saved=saved) from error
        raise


def too_large(
    need: Need | None, capacity: float, settings: TrainingSettings, *, batch_size: int, device: str, begun: bool
) -> TrainingError:
    """The error for a batch that does not fit, with a batch that does.

    Args:
        need: Memory of a step; None if not even one clip fits.
        capacity: Bytes that this process can have.
        settings: How it was to be trained.
        batch_size: Clips of the batch that did not fit.
        device: The device, for a person.
        begun: Whether the run has checkpoints, which belong to its batches.
    """
    savers = [] if settings.gradient_checkpointing else ["--gradient-checkpointing"]
    savers += ["--precision bf16"] if settings.precision == "float32" else []
    fit = None if need is None else fitting_batch(need, capacity, batch_size=batch_size, accumulate=settings.accumulate)
    if need is None or fit is None:
        return TrainingError(
            f"the memory of {device} is too small for even one clip",
            advice=f"What helps: {', '.join([*savers, 'a smaller --size', 'shorter clips', 'a larger GPU'])}.",
        )
    size, accumulate = fit
    if settings.batch_sizes:
        advice = f"Of --batch-sizes none may be above {size}."
    else:
        nearly = "The" if size * accumulate == batch_size * settings.accumulate else "Nearly the"
        advice = f"{nearly} same training in less memory: --batch-size {size} --accumulate {accumulate}."
    if begun:
        advice += " It is another run then, in a folder of its own."
    if savers:
        advice += f" {' and '.join(savers)} save{'s' if len(savers) == 1 else ''} memory, too."
    return TrainingError(
        f"the memory of {device} is too small for batches of {batch_size} clips: they take about "
        f"{need.of(batch_size) / _GIB:.1f} GiB, and there are {capacity / _GIB:.1f} GiB",
        advice=advice,
    )


def _fits(module: nn.Module, dataset: BatchDataset, arithmetic: Arithmetic, *, batch_size: int) -> bool:
    """Whether a step fits into the memory of the GPU; the module is on the CPU afterwards."""
    device, dtype = arithmetic
    gpu = Gpu(device)
    step = step_on(device, dtype, module, dataset.__getitems__)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            module.to(device)
            return held_by(module) + gpu.peak(lambda: step(batch_size)) <= gpu.capacity()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            free(error)
            return False
        finally:
            module.to("cpu")
            torch.cuda.empty_cache()


def _out_of_memory(
    module: nn.Module,
    dataset: BatchDataset,
    settings: TrainingSettings,
    plan: BatchPlan,
    arithmetic: Arithmetic,
    *,
    begun: bool,
) -> TrainingError:
    device, dtype = arithmetic
    batch_size = max(plan.batch_sizes)
    if device.type != "cuda" or (settings.shard and plan.processes > 1):  # shards cannot be tried by one process
        half = max(1, batch_size // 2)
        return TrainingError(
            f"the memory of {device} is too small for batches of {batch_size} clips",
            advice=f"Try half of it: --batch-size {half} --accumulate {2 * settings.accumulate}.",
        )
    gpu = Gpu(device)
    bytes_held = held_by(module, processes=plan.processes)
    need = measure(gpu, step_on(device, dtype, module, dataset.__getitems__), batch_size, held=bytes_held)
    name = f"{device} ({gpu.describe()})"
    return too_large(need, gpu.capacity(), settings, batch_size=batch_size, device=name, begun=begun)


def _failed(error: RuntimeError, *, run: Path, saved: list[int]) -> TrainingError:
    goes_on = f"continues after step {saved[-1]:,}" if saved else "begins anew"
    return TrainingError(
        f"CUDA failed: {one_line(str(error))}",
        path=run,
        advice=f"The same command {goes_on}. Where it fails again, 'nvidia-smi' and the system's log (Xid) say how the "
        f"GPU is.",
    )
