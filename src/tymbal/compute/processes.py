"""Several processes that train together, and the same numbers from the same run.

The first process decides, speaks and writes, the others follow: so they cannot come to different conclusions about a
run folder that the first one is changing at that moment.

On a CPU a run with as many threads and processes repeats itself bit by bit anyway. On a GPU some sums are added up in
whatever order their parts arrive; PyTorch has slower forms of nearly all of them that keep an order.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from tymbal.errors import TrainingError, TymbalError
from tymbal.progress import quietly

if TYPE_CHECKING:
    import torch

__all__ = [
    "gather_batch",
    "init_process_group",
    "on_rank_zero",
    "processes",
    "quiet_except_rank_zero",
    "rank",
    "reproducible",
]

T = TypeVar("T")


def rank() -> int:
    """Number of this process; 0 where it runs alone."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Number of processes; 1 where this one runs alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def quiet_except_rank_zero() -> Iterator[None]:
    """Within it, or a function that it decorates, all processes but the first are quiet."""
    with quietly() if rank() else contextlib.nullcontext():
        yield


def init_process_group(device: torch.device) -> None:
    """Makes this process one of the group, if there is one. `Trainer` then uses the same group.

    The group is left at the end of the process: threads of gloo that outlive the interpreter would abort it.
    """
    import torch

    if processes() > 1 and not torch.distributed.is_initialized():
        from accelerate import PartialState  # type: ignore[import-untyped]

        cpu = device.type == "cpu"
        PartialState(cpu=cpu, backend="gloo" if cpu else None)
        atexit.register(_leave_process_group)


def _leave_process_group() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_rank_zero(decide: Callable[[], T]) -> T:
    """Calls a function in the first process and gives its result, or its error, to all of them."""
    if processes() == 1:
        return decide()
    import torch

    outcome: list[T | TymbalError | None] = [None]
    if rank() == 0:
        try:
            outcome = [decide()]
        except TymbalError as error:
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], TymbalError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]


def gather_batch(values: torch.Tensor, *, dim: int = 0) -> torch.Tensor:
    """The parts of a batch of all processes, one behind the other; gradients flow to all of them.

    Every process must call it with the same shape but for `dim`, along which the parts may differ in length. The
    gradient of a loss that every process computes of the whole comes out `processes` times as large here as in one
    process, which the mean over processes (DDP) takes back.

    Args:
        values: The part of this process; without several processes it is returned as it is.
        dim: The dimension of the batch.
    """
    if processes() == 1:
        return values
    import torch
    import torch.distributed as dist

    sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(processes())]
    dist.all_gather(sizes, torch.tensor([values.shape[dim]], device=values.device))
    counts = [int(size) for size in sizes]
    moved = values.movedim(dim, 0).contiguous()
    padded = torch.cat([moved, moved.new_zeros(max(counts) - len(moved), *moved.shape[1:])])
    parts = _gathering().apply(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).movedim(0, dim)


@functools.cache
def _gathering() -> Any:
    """The function that gathers tensors of one shape, [processes, ...]; made when torch is wanted, which is heavy."""
    import torch
    import torch.distributed as dist

    class Gathering(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, values: torch.Tensor) -> torch.Tensor:
            parts = [torch.empty_like(values) for _ in range(processes())]
            dist.all_gather(parts, values)
            return torch.stack(parts)

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            """What all processes want of the part of this one."""
            total = gradient.clone(memory_format=torch.contiguous_format)  # others may see what came in
            dist.all_reduce(total)
            return total[rank()]

    return Gathering


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Within it, what has no deterministic form is an error; what was set before is set again afterwards.

    Args:
        deterministic: Whether to do anything at all.

    Raises:
        TrainingError: Something was computed that has no deterministic form on this device.
    """
    if not deterministic:
        yield
        return
    import torch

    enabled, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    # cuBLAS reads it when it is first used, so it stays; with it, matrix products keep their order on every stream.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise TrainingError(
            f"not everything has a deterministic form on this device: {str(error).strip().splitlines()[0]}",
            advice="Train without --deterministic: with the same seed, runs then differ in their last digits.",
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warned)
        torch.backends.cudnn.benchmark = benchmark
