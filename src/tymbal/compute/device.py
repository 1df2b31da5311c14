"""Chooses device and precision, with the reason in one line, and explains what is wrong with CUDA.

Also the one knob of the C library that decides the speed of a training step on a CPU: glibc hands every large buffer
back to the kernel when it is freed, and faulting its pages in again costs more than the arithmetic on them.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import warnings

import torch

from tymbal.compute.processes import processes
from tymbal.errors import DeviceError, SettingsError

__all__ = [
    "CUDA_OR_CPU",
    "choose_device",
    "choose_precision",
    "cpu_has_bf16",
    "cuda_trouble",
    "is_cuda_failure",
    "is_out_of_memory",
    "local_gpu",
    "one_line",
]

CUDA_OR_CPU = "cuda-or-cpu"
"""CUDA, or the CPU where CUDA cannot be used; training then says so in a warning, where `auto` makes a remark."""


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """Chooses a device, and says why.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps` or `cuda-or-cpu`. `auto` takes CUDA, then Apple's MPS, then the
            CPU.

    Raises:
        DeviceError: The requested device is not available. No other takes its place.
        SettingsError: The name is of no device.
    """
    if name in ("auto", CUDA_OR_CPU):
        return _choose(mps=name == "auto")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(
            f"device is {name!r}, which is no device", advice="Choose auto, cpu, cuda, cuda:1, mps or cuda-or-cpu."
        ) from None
    if device.type == "cuda":
        trouble = cuda_trouble(local_gpu() if device.index is None else device.index)
        if trouble is not None:
            raise DeviceError(
                f"device {name} was asked for, but {trouble}",
                advice="Use --device auto to go on without it, or repair the installation ('nvidia-smi' shows it).",
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps was asked for, but this is no Mac with MPS", advice="Use --device auto.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name} is not supported", advice="Choose auto, cpu, cuda or mps.")
    return device, "asked for"


def _choose(*, mps: bool) -> tuple[torch.device, str]:
    trouble = cuda_trouble(local_gpu())
    if trouble is None:
        return torch.device("cuda"), f"CUDA is available: {torch.cuda.get_device_name(local_gpu())}"
    if processes() > 1 and torch.cuda.is_available():
        raise DeviceError(
            f"one of {processes()} processes cannot use its GPU: {trouble}",
            advice="The others would wait for it: start as many processes as there are working GPUs.",
        )
    if mps and torch.backends.mps.is_available():
        return torch.device("mps"), "Apple's MPS is available, CUDA is not"
    return torch.device("cpu"), trouble


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Chooses the arithmetic of the encoder, and says why. Losses, norms and the optimizer stay in float32.

    Args:
        name: `auto`, `float32`, `bf16` or `fp16`.
        device: The device to compute on.

    Returns:
        The dtype for autocast, or None for plain float32.

    Raises:
        DeviceError: fp16 on a CPU, which has no loss scaling, or bf16 on a GPU that lacks it.
    """
    if name == "float32":
        return None, "asked for"
    if name == "fp16":
        if device.type != "cuda":
            raise DeviceError(
                f"fp16 on {device.type} loses small gradients: there is no loss scaling",
                advice="Use --precision bf16 or --precision float32.",
            )
        return torch.float16, "asked for"
    has_bf16 = _has_bf16(device)
    if name == "bf16":
        if device.type == "cuda" and not has_bf16:
            raise DeviceError(
                f"{torch.cuda.get_device_name(device)} does not compute bf16",
                advice="Use --precision fp16 or --precision float32.",
            )
        return torch.bfloat16, "asked for" if has_bf16 else "asked for, though this hardware only emulates it"
    if has_bf16:
        return torch.bfloat16, f"this {device.type} computes bf16"
    if device.type == "cuda":
        return torch.float16, "this GPU computes fp16 but not bf16"
    return None, f"this {device.type} does not compute bf16 natively"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively (AVX512-BF16, AMX, Arm's BF16): emulated it is slower than float32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_has_bf16()


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
        messages = [str(warning.message) for warning in caught if "CUDA" in str(warning.message)]
        return one_line(messages[0]) if messages else _no_gpu()
    count = torch.cuda.device_count()
    return _tried(gpu) if gpu < count else f"there is no cuda:{gpu}: the GPUs are cuda:0 to cuda:{count - 1}"


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


def one_line(message: str) -> str:
    """The first sentence of what PyTorch says about CUDA, without its preamble."""
    old = re.search(r"driver on your system is too old \(found version (\d+)\)", message)
    if old:
        version = int(old[1])
        needed = f"this PyTorch needs {torch.version.cuda}" if torch.version.cuda else "this PyTorch needs a newer one"
        return f"the NVIDIA driver is too old: it is for CUDA {version // 1000}.{version % 1000 // 10}, {needed}"
    text = re.sub(r"^CUDA initialization: ", "", message.strip().splitlines()[0])
    sentence = re.split(r"\. (?=[A-Z])|\(Triggered internally", text)[0].rstrip(" .")
    return sentence if len(sentence) <= _WIDTH else f"{sentence[: _WIDTH - 1]}…"


def _no_gpu() -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"PyTorch sees no GPU (CUDA_VISIBLE_DEVICES is {hidden!r})"
    return "PyTorch sees no GPU"
