"""What this machine can do: what is installed, and how fast features, loading and steps of a pretraining are here."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tymbal.compute.device import choose_device, choose_precision, cpu_has_bf16, local_gpu
from tymbal.config import versions
from tymbal.data import dataset_of
from tymbal.features.bank import filter_bank
from tymbal.features.normalisation import Normalisation
from tymbal.features.statistics import LOG_FLOOR
from tymbal.machine import machine
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.contrastive import ContrastiveObjective, ContrastiveSettings
from tymbal.objectives.ssast import SSASTObjective, SSASTSettings
from tymbal.settings import SIZES, DoctorSettings, FeatureSettings, parse_patch
from tymbal.store.base import SpectrogramSource
from tymbal.training.optimization import parameter_groups

__all__ = ["Trial", "decoders", "free_disk", "hardware", "software", "try_out"]


def software() -> dict[str, str]:
    """Versions, and how torch was built."""
    build = "CPU"
    if torch.version.cuda is not None:
        build = f"CUDA {torch.version.cuda}"
    elif torch.version.hip is not None:
        build = f"ROCm {torch.version.hip}"
    return {**versions(), "torch build": build}


def hardware(device: str) -> dict[str, str]:
    """Processor, memory and GPUs, and what of them would be used.

    Raises:
        DeviceError: The device that was asked for is not there.
    """
    found = machine()
    features = [str(torch.backends.cpu.get_cpu_capability()), "bf16" if cpu_has_bf16() else "no bf16"]
    found["processor does"] = ", ".join(features)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(local_gpu())
        found["gpu memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
    chosen, why = choose_device(device)
    found["trains on"] = f"{chosen} ({why})"
    dtype, why = choose_precision("auto", chosen)
    found["precision"] = f"{'float32' if dtype is None else str(dtype).removeprefix('torch.')} ({why})"
    return found


def decoders() -> dict[str, str]:
    """What reads sound files, and what they read."""
    import av
    import soundfile

    formats = {name.upper() for name in soundfile.available_formats()}
    named = [name for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "CAF") if name in formats]
    others = [name for name in ("aac", "opus", "wmav2", "amrnb", "alac") if name in av.codecs_available]
    return {
        "libsndfile": f"{soundfile.__libsndfile_version__} ({', '.join(named)})",
        "FFmpeg (PyAV)": f"{importlib.metadata.version('av')} ({', '.join(others)})",
        "soxr": importlib.metadata.version("soxr"),
    }


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder, or of the nearest one that is there."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free


_SHARES = {"features": 0.15, "loading": 0.15, "step": 0.7}
_CLIP_SECONDS = 10.0
_LONGEST_STEP = 3.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was measured.

    Attributes:
        features: Seconds of sound that the filter bank of the store turns into spectrograms in a second.
        loading: Clips that are read from the store in a second; None without a store.
        step: Clips that a pretraining learns from in a second.
        batch_size: Clips of the steps that were tried: fewer than asked for where steps are slow.
        frames: Frames of the clips.
    """

    features: float
    loading: float | None
    step: float
    batch_size: int
    frames: int

    @property
    def clips_per_second(self) -> float:
        """Clips a second of a training that loads and learns in turn."""
        return self.step if self.loading is None else 1 / (1 / self.step + 1 / self.loading)


def try_out(store: SpectrogramSource | None, settings: DoctorSettings) -> Trial:
    """Tries for about as long as the settings say; at least one step of each kind, however slow.

    Args:
        store: Clips to load and learn from; None takes noise of ten seconds.
        settings: What to try.

    Raises:
        DeviceError: The device that was asked for is not there.
        SettingsError: Size or patch do not fit the clips.
    """
    features = (store.features if store is not None else None) or FeatureSettings()
    compute = filter_bank(features).trial(_CLIP_SECONDS)
    spectrograms = _often(compute, settings.seconds * _SHARES["features"])
    loading = None if store is None else _load(store, settings)
    frames = features.frames_of(round(_CLIP_SECONDS * features.sample_rate)) if store is None else store.frames
    pairs = store is not None and _is_for_pairs(store)
    step, batch_size = _learn(frames, features.mel_bins if store is None else store.mels, settings, pairs=pairs)
    return Trial(
        features=_CLIP_SECONDS * spectrograms, loading=loading, step=step, batch_size=batch_size, frames=frames
    )


def _is_for_pairs(store: SpectrogramSource) -> bool:
    """Whether a pretraining on this store learns from pairs of views."""
    return store.views > 1 or store.samples is not None


def _load(store: SpectrogramSource, settings: DoctorSettings) -> float:
    """Clips a second that are read, and of waveforms made into fresh views."""
    generator = np.random.default_rng(0)
    training = ContrastiveSettings(device=settings.device) if _is_for_pairs(store) else SSASTSettings()
    dataset = dataset_of(store, store.rows(), training)

    def load() -> None:
        dataset.__getitems__(generator.integers(0, len(store), settings.batch_size).tolist())

    return settings.batch_size * _often(load, settings.seconds * _SHARES["loading"])


def _learn(frames: int, mels: int, settings: DoctorSettings, *, pairs: bool) -> tuple[float, int]:
    """Clips a second, and clips a step; of pairs with the contrastive objective."""
    device, _ = choose_device(settings.device)
    dtype, _ = choose_precision(settings.precision, device)
    width, depth, heads = SIZES[settings.size]
    patch = parse_patch(settings.patch)
    config = EncoderConfig(width=width, depth=depth, heads=heads, mels=mels, frames=frames, patch=patch, stride=patch)
    normalisation = Normalisation(mean=0.0, std=0.5, padding=LOG_FLOOR)
    encoder = SpectrogramEncoder(config)
    objective: nn.Module = (
        ContrastiveObjective(encoder, normalisation=normalisation, clips=torch.arange(settings.batch_size))
        if pairs
        else SSASTObjective(encoder, normalisation=normalisation, encode=settings.encode)
    )
    objective.to(device).train()
    groups = parameter_groups(objective.named_parameters(), learning_rate=1e-4, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups)

    def step(clips: int) -> None:
        batch = _noise(clips, (2, frames, mels) if pairs else (frames, mels), device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss: Tensor = objective(**batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device

    clips = min(2, settings.batch_size)
    step(clips)  # the first step makes room and chooses kernels
    while clips < settings.batch_size and _seconds(partial(step, clips)) < _LONGEST_STEP / 2:
        clips = min(2 * clips, settings.batch_size)
    return clips * _often(partial(step, clips), settings.seconds * _SHARES["step"]), clips


def _noise(clips: int, shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    number = torch.arange(clips, device=device)
    return {
        "spectrogram": torch.randn(clips, *shape, device=device),
        "frames": torch.full_like(number, shape[-2]),
        "row": number,
        "epoch": torch.zeros_like(number),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _often(work: Callable[[], object], seconds: float) -> float:
    """How often a second something can be done; the middle of what single times say, which a busy machine spoils less.

    The first time does not count.
    """
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(_seconds(work))
    return 1 / max(float(np.median(times)), 1e-9)
