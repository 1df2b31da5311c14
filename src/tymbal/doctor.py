"""What this machine can do, what is missing, and how long a training would take: `tymbal doctor`.

    tymbal doctor                        versions, devices, decoders, disk, and a trial of some seconds
    tymbal doctor store --size base      the same on this store: minutes an epoch

It changes nothing and writes nothing. What it finds wrong it says with what to do.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tymbal import config as configuration
from tymbal.compute.device import choose_device, choose_precision, cpu_has_bf16, local_gpu
from tymbal.config import versions
from tymbal.data import dataset_of
from tymbal.errors import StoreError, TymbalError
from tymbal.evaluation.students import teacher_speed
from tymbal.features.bank import filter_bank
from tymbal.features.normalisation import LOG_FLOOR, Normalisation
from tymbal.inference.teachers import open_teacher
from tymbal.machine import check_companions, cores, machine
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.encoder_choice import is_full_height
from tymbal.objectives.contrastive import ContrastiveObjective, ContrastiveSettings
from tymbal.objectives.distill import DistillObjective, DistillSettings, Target
from tymbal.objectives.ssast import SSASTObjective, SSASTSettings
from tymbal.progress import Progress, duration, tell
from tymbal.settings import SIZES, DataChoice, DoctorSettings, FeatureSettings, PtSettings, parse_patch
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.store.base import SpectrogramSource
from tymbal.store.packed.packed_store import Store
from tymbal.store.pairs.pair_store import PairFileStore
from tymbal.training.optimization import parameter_groups

if TYPE_CHECKING:
    from tymbal.store.base import SpectrogramSource

__all__ = ["DoctorResult", "Trial", "decoders", "doctor", "free_disk", "hardware", "software", "try_out"]

_WIDTH = 79
_LITTLE_DISK = 5 * 10**9
_LONG_EPOCH = 2 * 3600
_SMALLER = {"base": "small", "small": "tiny"}


@dataclass(frozen=True, kw_only=True)
class DoctorResult:
    """What the doctor measured and advises.

    Attributes:
        software: Versions.
        hardware: Processor, memory, GPUs, and what would be used.
        decoders: The libraries that decode sound.
        free_disk: Free bytes where the store is, or here.
        store: Facts of the store; empty without a store or if it cannot be read.
        trial: The measured speeds; None without a trial.
        epoch_seconds: How long an epoch of pretraining on the store would take; None without one.
        teacher: Clips a second of a teacher and of a student's training, and the seconds that asking about all clips
            and an epoch then take; empty without a teacher.
        size: The encoder that was tried.
        advice: What is wrong or could be better, and what to do.
        as_json: Whether the summary is JSON.
    """

    software: dict[str, str]
    hardware: dict[str, str]
    decoders: dict[str, str]
    free_disk: int
    store: dict[str, str] = field(default_factory=dict)
    trial: Trial | None = None
    epoch_seconds: float | None = None
    teacher: dict[str, float] = field(default_factory=dict)
    size: str = "small"
    advice: tuple[str, ...] = ()
    as_json: bool = False

    def summary(self) -> str:
        """All of it, for a terminal of 80 columns or as JSON."""
        if self.as_json:
            values = {name: value for name, value in asdict(self).items() if name != "as_json"}
            return json.dumps(values, indent=2, ensure_ascii=False)
        parts = [_block("Software", self.software), _block("Machine", self.hardware), _block("Decoders", self.decoders)]
        parts.append(_block("Disk", {"free": f"{self.free_disk / 1e9:,.1f} GB"}))
        if self.store:
            parts.append(_block("Store", self.store))
        if self.trial is not None:
            parts.append(_block("Trial", self._measured(self.trial)))
        if self.epoch_seconds is not None:
            parts.append(f"This store, size {self.size}, this machine: {duration(self.epoch_seconds)} an epoch.")
        if self.teacher:
            parts.append(_block("Teacher", self._taught()))
        advice = [_wrapped(f"- {text}", "  ") for text in self.advice]
        parts.append("\n".join(["What to do", *advice]) if advice else "Nothing is wrong.")
        return "\n\n".join(parts)

    def _taught(self) -> dict[str, str]:
        asking = "its table is read, nothing is computed"
        if self.teacher["asking_rate"]:
            asked = duration(self.teacher["asking_seconds"])
            asking = f"{self.teacher['asking_rate']:,.1f} clips a second, {asked} for all of the store, once"
        epoch = duration(self.teacher["epoch_seconds"])
        return {"asking": asking, "student": f"{self.teacher['student_rate']:,.1f} clips a second, {epoch} an epoch"}

    def _measured(self, trial: Trial) -> dict[str, str]:
        hours = trial.features * 60 / 3600
        figures = {"features": f"{hours:,.1f} hours of sound in a minute on one core"}
        if trial.loading is not None:
            figures["loading"] = f"{trial.loading:,.0f} clips a second"
        figures["pretraining"] = f"{trial.step:,.1f} clips a second of {trial.frames} frames, size {self.size}"
        figures["batch size"] = f"{trial.batch_size}"
        return figures


def doctor(store: str | Path | None = None, *, config: str | Path | None = None, **settings: Any) -> DoctorResult:
    """Looks at this machine, and tries for some seconds what it can do.

    A store that cannot be read, or an installation that does not work together, is a finding and no error.

    Args:
        store: A store to check and to estimate an epoch for: of spectrograms, pairs of views or waveforms, packed or
            in `.pt` files.
        config: YAML file with settings.
        **settings: See `tymbal.settings.DoctorSettings`.

    Raises:
        DeviceError: The requested device is not available.
        SettingsError: Size or patch do not fit the clips of the store.
    """
    chosen = configuration.resolve(DoctorSettings, settings, config=config)
    configuration.say_useless(chosen)
    advice: list[str] = []
    try:
        check_companions()
    except TymbalError as error:
        advice.append(str(error))
    opened, facts = _opened(store, advice)
    trial = None
    if chosen.seconds:
        tell(f"Trying features, loading and size {chosen.size} for about {duration(chosen.seconds)}")
        trial = try_out(opened, chosen)
    epoch = None
    if trial is not None and opened is not None:
        epoch = len(opened.rows("train" if "train" in opened.splits else None)) / trial.clips_per_second
    taught = {} if chosen.teacher is None else _try_teacher(opened, chosen, advice)
    free = free_disk(Path(store or "."))
    advice += _advice(chosen, trial, epoch, free)
    return DoctorResult(
        software=software(),
        hardware=hardware(chosen.device),
        decoders=decoders(),
        free_disk=free,
        store=facts,
        trial=trial,
        epoch_seconds=epoch,
        teacher=taught,
        size=chosen.size,
        advice=tuple(advice),
        as_json=chosen.json,
    )


def _opened(path: str | Path | None, advice: list[str]) -> tuple[SpectrogramSource | None, dict[str, str]]:
    """Opens the store, and reports what is wrong unless it is whole and a sample of its values is finite."""
    import numpy as np

    from tymbal.data import open_data

    if path is None:
        return None, {}
    try:
        data = open_data(path, PtSettings())
        store = data.store()
        compared = _compared(store, advice)
        rows = np.unique(np.linspace(0, len(store) - 1, 64).astype(np.int64))
        values = store.gather(rows).astype(np.float32)
        broken = rows[~np.isfinite(values).reshape(len(rows), -1).all(axis=1)]
    except StoreError as error:
        advice.append(str(error))
        return None, {}
    if len(broken):
        advice.append(f"{path}: row {broken[0]} holds values that are not finite. Prepare the store again.")
        return None, {}
    silent = 0 if store.samples is not None else int((values.reshape(-1, store.mels).max(axis=0) < _NOTHING).sum())
    if silent * 10 >= store.mels:
        advice.append(
            f"{silent} of {store.mels} mel bins hold nothing in any of {len(rows)} clips: the sound ends below them. "
            "tymbal scan says which --sample-rate and --mel-bins fit the files."
        )
    size = sum(file.stat().st_size for file in store.data_files)
    places = "shards, none missing or cut short" if data.is_packed else "files"
    shape = f"{store.frames} frames x {store.mels} mel bins"
    clips = f"{len(store):,} of {shape}"
    if store.samples is not None:
        clips = f"{len(store):,} waveforms of {store.samples:,} samples, or {shape}"
    elif store.views > 1:
        clips = f"{len(store):,} pairs of views of {shape}"
    return store, {
        "clips": clips,
        "size": f"{size / 1e9:,.2f} GB in {len(store.data_files):,} {places}",
        "looked at": f"{len(rows)} clips, all finite; {compared}",
    }


def _compared(store: SpectrogramSource, advice: list[str]) -> str:
    """Reads all of a store and compares it with its checksums; gives in words what was found.

    Raises:
        StoreError: A shard is not what was written.
    """
    with Progress(len(store), "Reading all of it", unit="clips") as progress:
        if isinstance(store, Store):
            store.check_whole(progress)
            return "no checksums, since an earlier version made it" if store.checksums is None else "checksums right"
        if isinstance(store, PairFileStore):
            for row in range(len(store)):
                store.pair(row)
                progress.advance()
    if store.failures:
        first = store.failures[0]
        more = f"{len(store.failures):,} files cannot be used; the first: {first.file}: {first.reason}"
        advice.append(str(StoreError(more, path=store.path, advice=first.advice)))
        return f"{len(store.failures):,} files left out"
    return "all files can be read"


def _advice(settings: DoctorSettings, trial: Trial | None, epoch: float | None, free: int) -> list[str]:
    from tymbal.compute.device import choose_device, choose_precision, cpu_has_bf16

    device, why = choose_device(settings.device)
    advice: list[str] = []
    if "built without CUDA, though" in why or "driver is too old" in why or "has no code for" in why:
        advice.append(f"The GPU is not used: {why}. Install the PyTorch that fits it (pytorch.org says which).")
    if device.type == "cpu" and not cpu_has_bf16():
        advice.append("This processor computes float32 only; a newer one, or a GPU, is 2 to 50 times faster.")
    if device.type == "cpu" and cores() == 1:
        advice.append("This process may use one core: ask the queue for more (--cpus-per-task).")
    if free < _LITTLE_DISK:
        advice.append(f"Only {free / 1e9:.1f} GB are free here: a run writes checkpoints of several times its model.")
    if trial is None:
        return advice
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if device.type == "cpu" and busy > cores() + 1:
        advice.append(f"Other programs keep {busy:.0f} cores busy, of {cores()}: alone it would be faster.")
    if trial.loading is not None and trial.loading < 3 * trial.step:
        advice.append("Loading holds the training up: copy the store to a local disk or to memory (/dev/shm).")
    if trial.batch_size < settings.batch_size:
        advice.append(
            f"A batch of {settings.batch_size} clips takes longer than some seconds: {trial.batch_size} were tried."
        )
    if epoch is not None and epoch > _LONG_EPOCH:
        smaller = f"--size {_SMALLER[settings.size]}, " if settings.size in _SMALLER else ""
        visible = "" if settings.encode == "visible" else "--encode visible, "
        advice.append(f"An epoch takes {duration(epoch)}: try {smaller}{visible}shorter clips, or a GPU.")
    dtype, _ = choose_precision(settings.precision, device)
    if device.type == "cuda" and dtype is None:
        advice.append("The GPU is used in float32: --precision fp16 is about twice as fast.")
    return advice


def _block(title: str, values: Mapping[str, str]) -> str:
    wide = max(map(len, values)) + 2
    return "\n".join(
        [title, *(_wrapped(f"  {name:{wide}}{value}", " " * (wide + 2)) for name, value in values.items())]
    )


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def software() -> dict[str, str]:
    """Versions, and how torch was built."""
    build = "CPU"
    if torch.version.cuda is not None:
        build = f"CUDA {torch.version.cuda}"
    elif torch.version.hip is not None:
        build = f"ROCm {torch.version.hip}"
    return {**versions(), "torch build": build}


def hardware(device: str) -> dict[str, str]:
    """Processor, memory and GPUs, and which of them training would use.

    Raises:
        DeviceError: The requested device is not available.
    """
    facts = machine()
    features = [str(torch.backends.cpu.get_cpu_capability()), "bf16" if cpu_has_bf16() else "no bf16"]
    facts["processor does"] = ", ".join(features)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(local_gpu())
        facts["gpu memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
    chosen, why = choose_device(device)
    facts["trains on"] = f"{chosen} ({why})"
    dtype, why = choose_precision("auto", chosen)
    facts["precision"] = f"{'float32' if dtype is None else str(dtype).removeprefix('torch.')} ({why})"
    return facts


def decoders() -> dict[str, str]:
    """The libraries that decode sound files, with their formats."""
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
    """Free bytes on the disk of a folder, or of its nearest existing parent."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(existing).free


_NOTHING = LOG_FLOOR + 1.0  # in log energy: a bin of an empty spectrum
_SHARES = {"features": 0.15, "loading": 0.15, "step": 0.7}
_CLIP_SECONDS = 10.0
_LONGEST_STEP = 3.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Measured speeds.

    Attributes:
        features: Seconds of sound that the filter bank of the store turns into spectrograms in a second.
        loading: Clips that are read from the store in a second; None without a store.
        step: Clips that a pretraining learns from in a second.
        batch_size: Clips of the steps tried: fewer than requested if steps are slow.
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
        settings: Settings of the trial.

    Raises:
        DeviceError: The requested device is not available.
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
    return _steps(objective, frames, mels, settings, pairs=pairs)


def _steps(
    objective: nn.Module,
    frames: int,
    mels: int,
    settings: DoctorSettings,
    *,
    pairs: bool = False,
    target: tuple[int, int] | None = None,
) -> tuple[float, int]:
    """Clips a second, and clips a step, of an objective that learns from noise, with a teacher's vectors or without."""
    device, _ = choose_device(settings.device)
    dtype, _ = choose_precision(settings.precision, device)
    objective.to(device).train()
    groups = parameter_groups(objective.named_parameters(), learning_rate=1e-4, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups)

    def step(clips: int) -> None:
        batch = _noise(clips, (2, frames, mels) if pairs else (frames, mels), device)
        if target is not None:
            batch["target"] = torch.randn(clips, *target, device=device)
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


def _try_teacher(store: SpectrogramSource | None, settings: DoctorSettings, advice: list[str]) -> dict[str, float]:
    """Asks a teacher about some clips, and has a student learn from vectors as long as its own."""
    if store is None or settings.teacher is None or _is_for_pairs(store):
        advice.append("A teacher is tried on a store of spectrograms: tymbal doctor STORE --teacher T.")
        return {}
    patch = parse_patch(settings.patch)
    taught = DistillSettings().fitted(DataChoice(full_height=is_full_height(settings.patch, store.mels)))
    try:
        teacher = open_teacher(settings.teacher, store, parts=None, compared=taught.parts or 1, settings=settings)
    except TymbalError as error:
        advice.append(str(error))
        return {}
    rows = store.rows("train" if "train" in store.splits else None)
    asking = teacher_speed(teacher, rows) or 0.0
    width, depth, heads = SIZES[settings.size]
    config = EncoderConfig(
        width=width, depth=depth, heads=heads, mels=store.mels, frames=store.frames, patch=patch, stride=patch
    )
    shape = (teacher.parts, teacher.width)
    objective = DistillObjective(
        SpectrogramEncoder(config),
        normalisation=Normalisation(mean=0.0, std=0.5, padding=LOG_FLOOR),
        settings=taught,
        views=SpectrogramViews(),
        target=Target(torch.zeros(shape), torch.ones(shape)),
        frames=float(store.frames),
    )
    rate, _ = _steps(objective, store.frames, store.mels, settings, target=shape)
    return {
        "asking_rate": asking,
        "asking_seconds": len(store) / asking if asking else 0.0,
        "student_rate": rate,
        "epoch_seconds": len(rows) / rate,
    }


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
