"""How much memory a training step takes on a GPU, and which batch would have fitted.

A step takes a fixed amount (weights, gradients, optimizer) and so much a clip (activations). What is not known is
measured: the peak of one step with few clips, and of one with twice as many.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from tymbal.compute.device import is_out_of_memory

__all__ = ["Gpu", "Memory", "Need", "fitting_batch", "free", "held_by", "measure", "step_on"]

_USABLE = 0.92
_GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes that a step takes on a GPU.

    Attributes:
        fixed: Whatever the batch.
        per_clip: For each clip.
    """

    fixed: float
    per_clip: float

    def of(self, clips: int) -> float:
        """Bytes for a batch."""
        return self.fixed + self.per_clip * clips


class Memory(Protocol):
    """The memory of a device."""

    def capacity(self) -> int:
        """Bytes that this process can have: what it holds and what is free."""

    def peak(self, work: Callable[[], None]) -> int:
        """Most bytes that were in use at a time during some work, beyond those before it."""


@dataclass(frozen=True)
class Gpu:
    """The memory of a CUDA device.

    Attributes:
        device: The device.
    """

    device: torch.device

    def capacity(self) -> int:
        """Bytes that this process can have: what it holds and what is free."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

    def peak(self, work: Callable[[], None]) -> int:
        """Most bytes that were in use at a time during some work, beyond those before it."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before

    def describe(self) -> str:
        """Its name and size, and what others hold of it."""
        total = torch.cuda.mem_get_info(self.device)[1]
        others = total - self.capacity()
        name = f"{torch.cuda.get_device_name(self.device)}, {total / _GIB:.1f} GiB"
        return f"{name}, of which {others / _GIB:.1f} GiB are in use by others" if others > _GIB else name


def measure(memory: Memory, step: Callable[[int], None], batch_size: int, *, held: int) -> Need | None:
    """Measures what a step takes, with batches smaller than one that is too large.

    Args:
        memory: The memory of the device.
        step: Computes a step for a number of clips, and leaves nothing behind.
        batch_size: The clips that are too many.
        held: Bytes that are in use throughout, see `held_by`.

    Returns:
        None, where not even one clip fits.
    """
    clips = max(1, batch_size // 8)
    while clips:
        few = None
        try:
            few = memory.peak(partial(step, clips))
            many = memory.peak(partial(step, 2 * clips))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            free(error)
            if clips == 1:
                return None if few is None else Need(fixed=held, per_clip=few)
            clips //= 2
        else:
            per_clip = max(0.0, (many - few) / clips)
            return Need(fixed=held + few - clips * per_clip, per_clip=per_clip)
    return None


def fitting_batch(need: Need, capacity: float, *, batch_size: int, accumulate: int) -> tuple[int, int] | None:
    """The largest batch that fits, and how many to add up for a step of as many clips as before.

    Some of the memory is left to fragmentation. A batch of which a whole number make up the step is taken, unless a
    much larger one would fit: then the step grows by less than one batch.

    Args:
        need: Memory of a step.
        capacity: Bytes of memory that the device has.
        batch_size: Clips of a batch that does not fit.
        accumulate: Batches that were added up.

    Returns:
        Clips a batch and batches a step; None where no clip fits.
    """
    room = _USABLE * capacity - need.fixed
    if room <= 0:
        return None
    most = batch_size - 1 if need.per_clip * (batch_size - 1) <= room else int(room / need.per_clip)
    if most < 1:
        return None
    clips = batch_size * accumulate
    batch = next(size for size in range(most, 0, -1) if clips % size == 0)
    if 2 * batch < most:
        batches = -(-clips // most)
        batch = -(-clips // batches)
    return batch, -(-clips // batch)


def step_on(
    device: torch.device,
    dtype: torch.dtype | None,
    module: nn.Module,
    batch_of: Callable[[Sequence[int]], Mapping[str, Tensor]],
) -> Callable[[int], None]:
    """A step without its last part, the optimizer's, for `measure`: forward and backward.

    Args:
        device: Where to compute; the module is moved to it, and its gradients are dropped.
        dtype: Arithmetic of the encoder, None for float32.
        module: The objective.
        batch_of: Gives the batch of some indices, as a dataset's `__getitems__` does.
    """
    module.zero_grad(set_to_none=True)

    def step(clips: int) -> None:
        module.to(device)
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        batch = {name: value.to(device) for name, value in batch_of(range(clips)).items()}
        try:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = module(**batch)["loss"]
            loss.backward()
        finally:
            module.zero_grad(set_to_none=True)
            for buffer, value in buffers:  # statistics that follow the batches
                buffer.copy_(value)

    return step


def held_by(module: nn.Module, *, processes: int = 1) -> int:
    """Bytes in use throughout a training: weights, the two moments of AdamW, and the buffers in which DDP adds up."""
    weights = sum(value.numel() * value.element_size() for value in [*module.parameters(), *module.buffers()])
    trained = sum(value.numel() * value.element_size() for value in module.parameters() if value.requires_grad)
    return weights + (3 if processes > 1 else 2) * trained


def free(error: BaseException) -> None:
    """Releases the tensors that the frames of an error still hold."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
