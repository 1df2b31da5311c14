"""The weights beside the encoder that an objective trains, as they go on from run to run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tymbal.errors import ModelError

__all__ = ["load_heads"]


def load_heads(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, advice: str) -> None:
    """Copies weights by name into those of an objective; names that it lacks are left out.

    Args:
        own: Its weights, changed in place.
        state: Where from.
        advice: Why they may not fit.

    Raises:
        ModelError: Where one is missing or has another shape; nothing is copied then.
    """
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            found = "is missing" if name not in state else f"has shape {tuple(state[name].shape)}"
            raise ModelError(f"{name} of the objective's heads {found}, wanted is {tuple(value.shape)}", advice=advice)
    for name, value in own.items():
        value.copy_(state[name])
