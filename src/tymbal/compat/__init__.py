"""Other people's command lines and classes, on Tymbal's own machinery."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tymbal.compat.datasets import PrecomputedDataset, PreGeneratedSpectrogramDataset

__all__ = ["PreGeneratedSpectrogramDataset", "PrecomputedDataset"]

_ORIGIN = {
    "PreGeneratedSpectrogramDataset": "tymbal.compat.datasets",
    "PrecomputedDataset": "tymbal.compat.datasets",
}


def __getattr__(name: str) -> Any:
    # The command line lies in this package too, and must not wait for torch.
    if name not in _ORIGIN:
        raise AttributeError(f"module 'tymbal.compat' has no attribute {name!r}")
    return getattr(importlib.import_module(_ORIGIN[name]), name)
