"""Stores of `.pt` files of which some are gone after the store was opened."""

from __future__ import annotations

from pathlib import Path

from tones import tone_store
from tymbal import convert
from tymbal.store.pt.pt_folder import open_pt
from tymbal.store.pt.pt_store import PtStore


def pt_store(folder: Path, *, clips: int = 8, validation: int = 3) -> PtStore:
    """Labelled tones, see `tone_store`, each in a file of its own."""
    tone_store(folder / "packed", clips=clips, validation=validation)
    convert(folder / "packed", folder / "pt", to="pt")
    return open_pt(folder / "pt" / "train.json", validation=folder / "pt" / "validation.json", padding=None)


def delete(store: PtStore, *rows: int) -> None:
    """Deletes the files of some rows."""
    for row in rows:
        Path(store.paths[row]).unlink()
