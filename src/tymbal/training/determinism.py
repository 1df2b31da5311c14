"""The same numbers from the same run, also on a GPU, at the price of some speed.

On a CPU a run with as many threads and processes repeats itself bit by bit anyway. On a GPU some sums are added up in
whatever order their parts arrive; PyTorch has slower forms of nearly all of them that keep an order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from tymbal.errors import TrainingError

__all__ = ["reproducible"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def reproducible(wanted: bool) -> Iterator[None]:
    """Within it, what has no deterministic form is an error; what was set before is set again afterwards.

    Args:
        wanted: Whether to do anything at all.

    Raises:
        TrainingError: Something was computed that has no deterministic form on this device.
    """
    if not wanted:
        yield
        return
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
