"""Several processes that train together, as `torchrun` or `accelerate launch` start them.

The first process decides, speaks and writes, the others follow: so they cannot come to different conclusions about a
run folder that the first one is changing at that moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from tymbal.errors import TymbalError
from tymbal.progress import quietly

if TYPE_CHECKING:
    import torch

__all__ = ["first_speaks", "join", "on_first", "processes", "rank"]

T = TypeVar("T")


def rank() -> int:
    """Number of this process; 0 where it runs alone."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Number of processes; 1 where this one runs alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Within it, or a function that it decorates, all processes but the first are quiet."""
    with quietly() if rank() else contextlib.nullcontext():
        yield


def join(device: torch.device) -> None:
    """Makes this process one of the group, if there is one. `Trainer` then uses the same group."""
    import torch

    if processes() > 1 and not torch.distributed.is_initialized():
        from accelerate import PartialState  # type: ignore[import-untyped]

        cpu = device.type == "cpu"
        PartialState(cpu=cpu, backend="gloo" if cpu else None)


def on_first(decide: Callable[[], T]) -> T:
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
