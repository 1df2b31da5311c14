"""What is installed and built in, as far as it matters here."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import torch

from tymbal.config import versions
from tymbal.machine import machine
from tymbal.training.cuda import local_gpu
from tymbal.training.device import choose_device, choose_precision, cpu_has_bf16

__all__ = ["decoders", "free_disk", "hardware", "software"]


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
