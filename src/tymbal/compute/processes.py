"""Several processes that train together, and the same numbers from the same run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from tymbal.errors import TrainingError, TymbalError
from tymbal.progress import quietly

if TYPE_CHECKING:
    import torch

__all__ = ["init_process_group", "on_rank_zero", "processes", "quiet_except_rank_zero", "rank", "reproducible"]

T = TypeVar("T")


def rank() -> int:
    """Number of this process; 0 where it runs alone."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Number of processes; 1 where this one runs alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def quiet_except_rank_zero() -> Iterator[None]:
    """Silences all processes but the first; a context manager or decorator."""
    with quietly() if rank() else contextlib.nullcontext():
        yield


def init_process_group(device: torch.device) -> None:
    """Joins the process group if the run has several processes. `Trainer` then uses the same group."""
    import torch

    if processes() > 1 and not torch.distributed.is_initialized():
        from accelerate import PartialState  # type: ignore[import-untyped]

        cpu = device.type == "cpu"
        PartialState(cpu=cpu, backend="gloo" if cpu else None)


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


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Makes operations without a deterministic form errors within the context; restores the previous state afterwards.

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
