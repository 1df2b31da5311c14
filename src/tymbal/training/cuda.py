"""What is wrong with CUDA, in one line: PyTorch says it in a paragraph, in a warning, or not at all."""

from __future__ import annotations

import functools
import os
import re
import shutil
import warnings

import torch

__all__ = ["cuda_trouble", "is_cuda_failure", "is_out_of_memory", "local_gpu", "one_line"]

_WIDTH = 200


def local_gpu() -> int:
    """The GPU of this process where several processes share the machine; else the first one."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@functools.cache
def cuda_trouble(gpu: int) -> str | None:
    """Why a GPU cannot be used, or None where it can: it is tried with a sum.

    Args:
        gpu: Number of the GPU.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        has_driver = shutil.which("nvidia-smi") is not None
        return "this PyTorch is built without CUDA" + (", though there is an NVIDIA driver" if has_driver else "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = [str(warning.message) for warning in caught if "CUDA" in str(warning.message)]
        return one_line(said[0]) if said else _no_gpu()
    there = torch.cuda.device_count()
    return _tried(gpu) if gpu < there else f"there is no cuda:{gpu}: the GPUs are cuda:0 to cuda:{there - 1}"


def _tried(gpu: int) -> str | None:
    try:
        torch.ones(1, device=f"cuda:{gpu}").add_(1).item()
    except RuntimeError as error:
        if is_out_of_memory(error):
            return f"cuda:{gpu} has no memory left: other processes hold it"
        if "no kernel image" in str(error):
            version = ".".join(map(str, torch.cuda.get_device_capability(gpu)))
            return f"this PyTorch has no code for {torch.cuda.get_device_name(gpu)} (compute capability {version})"
        return one_line(str(error))
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that the memory of a GPU is used up; its libraries have words of their own for that."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(word in str(error) for word in ("CUDA error: out of memory", "STATUS_ALLOC_FAILED"))


def is_cuda_failure(error: RuntimeError) -> bool:
    """Whether it is about the GPU or its driver, and not about our code."""
    return str(error).startswith(("CUDA error", "cuDNN error", "CUDA driver error"))


def one_line(said: str) -> str:
    """The first sentence of what PyTorch says about CUDA, without its preamble."""
    old = re.search(r"driver on your system is too old \(found version (\d+)\)", said)
    if old:
        version = int(old[1])
        wanted = f"this PyTorch needs {torch.version.cuda}" if torch.version.cuda else "this PyTorch needs a newer one"
        return f"the NVIDIA driver is too old: it is for CUDA {version // 1000}.{version % 1000 // 10}, {wanted}"
    text = re.sub(r"^CUDA initialization: ", "", said.strip().splitlines()[0])
    sentence = re.split(r"\. (?=[A-Z])|\(Triggered internally", text)[0].rstrip(" .")
    return sentence if len(sentence) <= _WIDTH else f"{sentence[: _WIDTH - 1]}…"


def _no_gpu() -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"PyTorch sees no GPU (CUDA_VISIBLE_DEVICES is {hidden!r})"
    return "PyTorch sees no GPU"
