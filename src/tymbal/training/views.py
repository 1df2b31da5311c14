"""The pairs of views that contrastive pretraining is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy.typing as npt
import torch
from torch import Tensor

from tymbal.audio.failures import write_failures
from tymbal.compute.device import choose_device
from tymbal.compute.processes import processes
from tymbal.errors import StoreError
from tymbal.progress import tell
from tymbal.settings import PretrainSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import StoreDataset
from tymbal.store.packed.format import DESCRIPTION, Description
from tymbal.store.packed.packed_store import WaveStore, holds_pairs, holds_waves
from tymbal.store.pairs.pair_files import GENERATED, read_metadata
from tymbal.store.pairs.pair_store import PairFileStore, find_pairs, open_pairs
from tymbal.store.pt.pt_list import holds_pt
from tymbal.training.source import FAILURES
from tymbal.training.trainer import BatchDataset
from tymbal.views.augmentation_config import read_augmentation
from tymbal.views.make import FreshViewDataset, ViewMaker

__all__ = ["clip_numbers", "open_views", "padded_clips", "view_dataset"]


def open_views(source: str | os.PathLike[str], run: Path, settings: PretrainSettings) -> SpectrogramSource:
    """Opens pairs of views of either form, or waveforms; what was left out is named in the run's failures.csv.

    Args:
        source: A store of pairs, a folder of `.pt` files with metadata, a store of waveforms; or sound, whose views
            are taken from the usual place if they are there, else made of waveforms that are prepared into the run.
        run: The run folder.
        settings: Which of them is wanted.

    Raises:
        StoreError: It holds something else.
    """
    if settings.views != "fresh":
        source = _generated_of(source) or source
    generated, waves = find_pairs(source), holds_waves(source)
    other = not generated and (waves or _is_sound(source))
    if generated and settings.views != "fresh":
        pairs = open_pairs(source)
        if isinstance(pairs, PairFileStore) and pairs.failures:
            write_failures(run / FAILURES, pairs.failures)
        return pairs
    if not other or settings.views == "generated":
        what = "has generated views, not waveforms to make fresh ones of" if generated else "holds no pairs of views"
        fresh = " --write waveforms" if generated else ""
        raise StoreError(
            f"{what}, which the contrastive objective learns from",
            path=source,
            advice=f"Make them from sound: tymbal prepare SOUND -o STORE --views 5{fresh}",
        )
    return WaveStore.open(source if waves else _prepared(source, run, settings))


def view_dataset(store: SpectrogramSource, rows: npt.ArrayLike, settings: PretrainSettings) -> BatchDataset:
    """Pairs of some rows: read, or made of waveforms on the device that trains."""
    if not isinstance(store, WaveStore):
        return StoreDataset(store, rows)
    device = choose_device(settings.device)[0]
    features = store.features
    if features is None:
        raise StoreError("does not say how spectrograms are computed", path=store.path, advice="Prepare it again.")
    maker = ViewMaker(read_augmentation(settings.augmentations), features, store.samples, device=device)
    return FreshViewDataset(store, rows, maker, seed=settings.seed, device=device)


def _generated_of(source: str | os.PathLike[str]) -> Path | None:
    """Pairs in the usual place, if they were made of this sound."""
    place = Path(GENERATED)
    if not _is_sound(source) or find_pairs(source) or not find_pairs(place):
        return None
    if holds_pairs(place):
        origin = Description.read(place).provenance.get("source")
    else:
        origin = read_metadata(place)[1].get("tymbal", {}).get("source")
    if origin is None or Path(origin) != Path(source).absolute():
        return None
    tell(f"Its generated views are taken: {place}")
    return place


def _is_sound(source: str | os.PathLike[str]) -> bool:
    return Path(source).exists() and not (Path(source) / DESCRIPTION).is_file() and not holds_pt(Path(source))


def _prepared(source: str | os.PathLike[str], run: Path, settings: PretrainSettings) -> Path:
    from tymbal.prepare import prepare

    if processes() > 1:
        raise StoreError(
            "this is not a store, and several processes cannot prepare one together",
            path=source,
            advice=f"Prepare it once: tymbal prepare {source} -o STORE --views 1 --write waveforms",
        )
    prepare(
        source, run / "store", views=1, write="waveforms", augmentations=settings.augmentations, every=settings.every
    )
    shutil.copyfile(run / "store" / FAILURES, run / FAILURES)
    return run / "store"


def clip_numbers(store: SpectrogramSource) -> Tensor:
    """A number for the clip of each row, the same for all its versions: int64 [rows]."""
    numbers: dict[str, int] = {}
    names = (name.rpartition("@v")[0] or name for name in store.index["id"].to_pylist())
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])


def padded_clips(store: SpectrogramSource) -> Tensor:
    """Whether the clip of each row is shorter than its window, bool [rows]; where nobody wrote it down, it is not."""
    features = store.features
    if features is None:
        return torch.zeros(len(store), dtype=torch.bool)
    seconds = zip(store.index["start"].to_pylist(), store.index["end"].to_pylist(), strict=True)
    lengths = [None if end is None else round((end - start) * features.sample_rate) for start, end in seconds]
    return torch.tensor([length is not None and features.frames_of(length) < store.frames for length in lengths])
