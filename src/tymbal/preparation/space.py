"""Whether what is about to be written fits on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from tymbal.errors import StoreError
from tymbal.progress import tell

__all__ = ["check_space"]

_SPARE = 64 * 2**20


def check_space(folder: Path, needed: int, *, force: bool) -> None:
    """Says how much space is needed and how much there is.

    Args:
        folder: Where it is written; it need not exist.
        needed: Bytes that are still to be written.
        force: Go on although they do not fit.

    Raises:
        StoreError: They do not fit.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    tell(f"{_size(needed)} are needed, {_size(free)} are free")
    if needed + _SPARE <= free:
        return
    if force:
        tell("The disk is too small; going on, as forced", warning=True)
        return
    raise StoreError(
        f"the disk is too small: {_size(needed)} are needed, {_size(free)} are free",
        path=folder,
        advice="Make room, choose another output folder, fewer versions, or write a store instead of .pt files (half "
        "the size); force goes on nevertheless.",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
