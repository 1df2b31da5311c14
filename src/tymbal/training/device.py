"""Where to compute and in which arithmetic, with the reason in one line.

Also the one knob of the C library that decides the speed of a training step on a CPU: glibc hands every large buffer
back to the kernel when it is freed, and faulting its pages in again costs more than the arithmetic on them.
"""

from __future__ import annotations

import torch

from tymbal.errors import DeviceError, SettingsError
from tymbal.training.cuda import cuda_trouble, local_gpu
from tymbal.training.processes import processes

__all__ = ["CUDA_OR_CPU", "choose_device", "choose_precision", "cpu_has_bf16"]


CUDA_OR_CPU = "cuda-or-cpu"
"""CUDA, or the CPU where CUDA cannot be used; training then says so in a warning, where `auto` makes a remark."""


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """Chooses a device, and says why.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps` or `cuda-or-cpu`. `auto` takes CUDA, then Apple's MPS, then the
            CPU.

    Raises:
        DeviceError: What was asked for is not there. Nothing else is taken in its place.
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
        return torch.device("cuda"), f"CUDA is there: {torch.cuda.get_device_name(local_gpu())}"
    if processes() > 1 and torch.cuda.is_available():
        raise DeviceError(
            f"one of {processes()} processes cannot use its GPU: {trouble}",
            advice="The others would wait for it: start as many processes as there are working GPUs.",
        )
    if mps and torch.backends.mps.is_available():
        return torch.device("mps"), "Apple's MPS is there, CUDA is not"
    return torch.device("cpu"), trouble


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Chooses the arithmetic of the encoder, and says why. Losses, norms and the optimizer stay in float32.

    Args:
        name: `auto`, `float32`, `bf16` or `fp16`.
        device: Where it will be computed.

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
