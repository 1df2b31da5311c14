"""Metrics as sums over batches, added up on the device.

A metric such as accuracy is a ratio of two sums. An objective returns the sums of each batch as small tensors; they are
added where they are, and the host asks for them once: when a figure is logged, or at the end of an evaluation. So no
step waits for the host, no output of the model is kept, and the batches may differ in size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["RunningSums"]


class RunningSums:
    """Named sums that live on the device."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Adds the sums of one batch: tensors of any shape, the same for a name every time."""
        for name, value in sums.items():
            if name in self._totals:
                self._totals[name] += value.detach()
            else:
                self._totals[name] = value.detach().to(_wide(value), copy=True)

    def take(self) -> dict[str, Tensor]:
        """The sums since the last call, of all processes, on the CPU; starts again from nothing.

        Waits for the device. With several processes each of them has to call this, also one that added nothing.
        """
        totals = {name: value.cpu() for name, value in self._totals.items()}
        self._totals = {}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return totals
        parts: list[dict[str, Tensor]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, totals)
        everywhere: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.items():
                everywhere[name] = everywhere[name] + value if name in everywhere else value
        return everywhere


def _wide(value: Tensor) -> torch.dtype:
    """A dtype in which a sum over a million batches stays exact to the last digit that is shown."""
    if not value.is_floating_point():
        return torch.int64
    return torch.float32 if value.device.type == "mps" else torch.float64  # MPS has no float64
