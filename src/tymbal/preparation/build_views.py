"""One shard of pairs of augmented views, from sound files to disk: what `build.build_shard` is for plain spectrograms.

A clip may be mixed with another one of its group: some clips of the shard that follow each other. So what is written
depends on the plan alone, as everything that is drawn does.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tymbal.audio.failures import Failure
from tymbal.audio.readers import Waveform
from tymbal.errors import AudioError
from tymbal.features.normalisation import Moments
from tymbal.preparation.build import Built, Task, built_shard, check_waveform, cut, one_thread, write_sidecar
from tymbal.preparation.plan import Window
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.store.packed.format import Shard, shard_name
from tymbal.store.packed.packed_store import FULL_SCALE
from tymbal.store.packed.writer import Entry, open_shard

if TYPE_CHECKING:
    from tymbal.views.make import Mode, ViewMaker

__all__ = ["ViewTask", "build_views", "make_pairs", "show_views"]

_GROUP = 16


@dataclass(frozen=True)
class ViewTask(Task):
    """Everything that a process needs to build a shard of views.

    Attributes:
        samples: Samples of a clip.
        versions: Versions of each clip.
        augmentations: How views are drawn.
        mode: How views are made.
        seed: Seed of what is drawn.
        waveforms: Keep waveforms instead of views.
        stems: Names of the files of each window, where each version goes to a file; else none.
        only: Of these, the names of the files to write; all, if none are given.
    """

    samples: int = 0
    versions: int = 1
    augmentations: AugmentationSettings = field(default_factory=AugmentationSettings)
    mode: Mode = "spectral"
    seed: int = 42
    waveforms: bool = False
    stems: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


def build_views(task: ViewTask) -> Built:
    """Builds a shard of views, or its files, and its sidecar, each whole or not at all."""
    with one_thread():
        built = _files(task) if task.stems else _waves(task) if task.waveforms else _shard(task)
    write_sidecar(task.work, built)
    return built


def make_pairs(
    maker: ViewMaker,
    waveforms: npt.NDArray[np.float32],
    names: Sequence[str],
    *,
    versions: int,
    seed: int,
) -> Iterator[npt.NDArray[np.float32]]:
    """Makes the pairs of all versions of some clips, which may be mixed with each other.

    Args:
        maker: Makes views.
        waveforms: float32 [clips, samples].
        names: Ids of the clips.
        versions: Versions of each clip.
        seed: Seed of what is drawn.

    Yields:
        For each clip log-mel values [versions, 2, frames, mels].
    """
    import torch

    from tymbal.views.draw import VIEWS, clip_key, draw, view_keys

    count, each = len(names), versions * VIEWS
    sound = torch.from_numpy(waveforms)
    keys = torch.tensor([clip_key(name) for name in names])
    numbers = torch.arange(versions)
    draws = draw(
        maker.settings,
        view_keys(seed, keys.repeat_interleave(versions), numbers.repeat(count)),
        numbers.repeat_interleave(VIEWS).repeat(count).tolist(),
    )
    transformed = None if maker.mode == "exact" else maker.transform(sound)
    mel = maker.clean(sound) if transformed is None else transformed.mel
    clip = torch.zeros(each, dtype=torch.int64)
    for place in range(count):
        own = draws.part(place * each, (place + 1) * each)
        step = 1 + (own.uniform("mixup", 1) * max(count - 1, 1)).long()
        partners = mel[(place + step) % count]
        source = sound[place : place + 1] if transformed is None else transformed.part(place, place + 1)
        views = maker.views(source, clip, own, partners)
        yield views.reshape(versions, VIEWS, *views.shape[1:]).numpy()


def show_views(task: ViewTask, folder: Path) -> tuple[Failure, ...]:
    """Writes a page of the windows of a task beside their views; gives what failed."""
    from tymbal.views.preview import write_preview

    failures: list[Failure] = []
    maker = _maker(task.augmentations, task.features, task.samples, task.mode)
    sounds = list(_sounds(task, failures))
    if sounds:
        names = [window.id for window, _ in sounds]
        lengths = [min(len(waveform), task.samples) for _, waveform in sounds]
        stacked = _stacked(sounds, task.samples)
        write_preview(folder, maker, stacked, names, versions=task.versions, seed=task.seed, lengths=lengths)
    return tuple(failures)


def _shard(task: ViewTask) -> Built:
    path = Path(task.store) / shard_name(task.number)
    entries: list[Entry] = []
    failures: list[Failure] = []
    features = task.features
    with open_shard(path, frames=task.frames, mels=features.mel_bins, views=2) as writer:
        for window, waveform, pairs in _pairs(task, failures):
            for version, pair in enumerate(_half(pairs)):
                writer.append_views(pair)
                entries.append(_entry(window, waveform, version, task))
    return built_shard(task, path, writer, entries, failures)


def _waves(task: ViewTask) -> Built:
    """Waveforms as int16, with the statistics of a pair of views of each."""
    path = Path(task.store) / shard_name(task.number)
    entries: list[Entry] = []
    failures: list[Failure] = []
    mels = task.features.mel_bins
    with open_shard(path, frames=task.frames, mels=mels, samples=task.samples) as writer:
        for window, waveform, pairs in _pairs(task, failures):
            sound = _stacked([(window, waveform)], task.samples)[0]
            writer.append_waveform(np.round(np.clip(sound, -1, 1) * FULL_SCALE).astype(np.int16), _half(pairs))
            entries.append(replace(_entry(window, waveform, 0, task), id=window.id, version=None))
    return built_shard(task, path, writer, entries, failures)


def _files(task: ViewTask) -> Built:
    from tymbal.store.pairs.pair_files import write_pair

    stems = dict(zip((window.id for window in task.windows), task.stems, strict=True))
    entries: list[Entry] = []
    failures: list[Failure] = []
    files, checksums = [], []
    moments = Moments()
    for window, waveform, pairs in _pairs(task, failures):
        if task.only and stems[window.id] not in task.only:
            continue
        for version, pair in enumerate(pairs):
            written = write_pair(
                Path(task.store), pair, stem=stems[window.id], version=version, split=window.split, source=window.file
            )
            files.append((written.relative_to(task.store).as_posix(), written.stat().st_size))
            checksums.append(zlib.crc32(written.read_bytes()))
            entries.append(_entry(window, waveform, version, task))
            moments = moments.merge(Moments.of(pair))
    shard = Shard("", len(entries), sum(size for _, size in files))
    return Built(
        shard,
        tuple(entries),
        moments,
        tuple(failures),
        len(task.windows),
        task.number,
        tuple(files),
        tuple(checksums),
    )


def _pairs(task: ViewTask, failures: list[Failure]) -> Iterator[tuple[Window, Waveform, npt.NDArray[np.float32]]]:
    """Windows that can be used, with their waveforms and the pairs of all their versions."""
    maker = _maker(task.augmentations, task.features, task.samples, task.mode)
    group: list[tuple[Window, Waveform]] = []
    for pair in _sounds(task, failures):
        group.append(pair)
        if len(group) == _GROUP:
            yield from _of_group(maker, group, task)
            group = []
    yield from _of_group(maker, group, task)


def _of_group(
    maker: ViewMaker, group: Sequence[tuple[Window, Waveform]], task: ViewTask
) -> Iterator[tuple[Window, Waveform, npt.NDArray[np.float32]]]:
    if not group:
        return
    names = [window.id for window, _ in group]
    pairs = make_pairs(maker, _stacked(group, task.samples), names, versions=task.versions, seed=task.seed)
    for (window, waveform), pair in zip(group, pairs, strict=True):
        yield window, waveform, pair


def _stacked(sounds: Sequence[tuple[Window, Waveform]], samples: int) -> npt.NDArray[np.float32]:
    """Waveforms of one length, silence behind the end of shorter ones: [clips, samples]."""
    waveforms = np.zeros((len(sounds), samples), np.float32)
    for row, (_, waveform) in zip(waveforms, sounds, strict=True):
        row[: len(waveform)] = waveform[:samples]
    return waveforms


def _sounds(task: ViewTask, failures: list[Failure]) -> Iterator[tuple[Window, Waveform]]:
    """Waveforms of windows; what fails is named, and the rest goes on."""
    for file, windows in groupby(task.windows, key=lambda window: window.file):
        of_file = tuple(windows)
        waveforms = cut(of_file, sample_rate=task.features.sample_rate, samples=task.samples)
        for window in of_file:
            try:
                waveform = next(waveforms)
            except AudioError as error:
                # Nothing behind this place can be read either.
                failures.append(Failure.of(error, file))
                break
            try:
                check_waveform(waveform, window, task)
            except AudioError as error:
                failures.append(Failure.of(error, file))
                continue
            yield window, waveform


def _half(pairs: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    import torch

    # torch rounds to float16 ten times as fast as numpy.
    half: npt.NDArray[np.float16] = torch.from_numpy(pairs).half().numpy()
    return half


def _entry(window: Window, waveform: Waveform, version: int, task: ViewTask) -> Entry:
    return Entry(
        id=f"{window.id}@v{version}",
        file=window.file,
        start=window.start,
        end=round(window.start + len(waveform) / task.features.sample_rate, 6),
        frames=task.frames,
        labels=window.labels,
        group=window.group,
        split=window.split,
        version=version,
    )


@lru_cache(maxsize=2)
def _maker(augmentations: AugmentationSettings, features: FeatureSettings, samples: int, mode: Mode) -> ViewMaker:
    from tymbal.views.make import ViewMaker

    return ViewMaker(augmentations, features, samples, mode=mode)
