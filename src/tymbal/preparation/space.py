"""Whether what is about to be written fits on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from tymbal.errors import StoreError
from tymbal.progress import tell

__all__ = ["check_space"]

_SPARE = 1.05  # for the index, and what else is written beside


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
    needed = round(needed * _SPARE)
    tell(f"{_size(needed)} are needed, {_size(free)} are free")
    if needed <= free:
        return
    if force:
        tell("The disk is too small; going on, as forced", warning=True)
        return
    raise StoreError(
        f"the disk is too small: {_size(needed)} are needed, {_size(free)} are free",
        path=folder,
        advice="Make room, or choose another output folder, or fewer versions; a packed store takes half of what .pt "
        "files do; force goes on nevertheless.",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
