"""Other people's command lines and classes, on Tymbal's own machinery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tymbal.compat.precomputed import PrecomputedDataset

__all__ = ["PrecomputedDataset"]


def __getattr__(name: str) -> Any:
    # The command line lies in this package too, and must not wait for torch.
    if name != "PrecomputedDataset":
        raise AttributeError(f"module 'tymbal.compat' has no attribute {name!r}")
    from tymbal.compat.precomputed import PrecomputedDataset

    return PrecomputedDataset
