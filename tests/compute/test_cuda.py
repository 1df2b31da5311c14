"""What is said about CUDA: PyTorch's words (of versions 1.9 to 2.13), and ours."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tymbal.compute import device as cuda
from tymbal.compute.device import cuda_trouble, is_cuda_failure, is_out_of_memory, one_line

OLD_DRIVER = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version from the vendor. Alternatively, install a PyTorch version that "
    "has been compiled with your version of the driver. (Triggered internally at ../c10/cuda/CUDAFunctions.cpp:108.)"
)
NO_DRIVER = (
    "CUDA initialization: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
    "installed a driver from the vendor (Triggered internally at ../c10/cuda/CUDAFunctions.cpp:108.)"
)
UNKNOWN = (
    "CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env "
    "variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero. (Triggered "
    "internally at ../c10/cuda/CUDAFunctions.cpp:109.)"
)
ASSERT = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other call."
)
FULL = (
    "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 1.88 MiB is free."
)


@pytest.fixture(autouse=True)
def fresh():
    cuda_trouble.cache_clear()
    yield
    cuda_trouble.cache_clear()


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):
    """A PyTorch with CUDA 13.0 that sees two GPUs, of which `first` is what computing on the first one does."""

    def build(first: Any = None, *, available: bool = True, warning: str | None = None) -> None:
        def is_available() -> bool:
            if warning:
                warnings.warn(warning, stacklevel=1)
            return available

        class Sum:
            def add_(self, _: int) -> torch.Tensor:
                if isinstance(first, RuntimeError):
                    raise first
                return torch.tensor(2.0)

        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if available else 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: "GTX 1080")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (6, 1))
        monkeypatch.setattr(cuda.torch, "ones", lambda *_, device: Sum())

    return build


def test_one_line__a_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert one_line(OLD_DRIVER) == "the NVIDIA driver is too old: it is for CUDA 11.4, this PyTorch needs 13.0"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (NO_DRIVER, "Found no NVIDIA driver on your system"),
        (ASSERT, "CUDA error: device-side assert triggered"),
        (
            UNKNOWN,
            "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
            "CUDA_VISIBLE_DEVICES after program start",
        ),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_one_line__the_first_sentence(said: str, line: str):
    assert one_line(said) == line


def test_cuda_trouble__a_build_without_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuda.shutil, "which", lambda _: None)
    assert cuda_trouble(0) == "this PyTorch is built without CUDA"
    cuda_trouble.cache_clear()
    monkeypatch.setattr(cuda.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert cuda_trouble(0) == "this PyTorch is built without CUDA, though there is an NVIDIA driver"


def test_cuda_trouble__takes_the_reason_from_a_warning_and_swallows_it(build, recwarn: pytest.WarningsRecorder):
    build(available=False, warning=OLD_DRIVER)
    assert cuda_trouble(0) == "the NVIDIA driver is too old: it is for CUDA 11.4, this PyTorch needs 13.0"
    assert len(recwarn) == 0


def test_cuda_trouble__no_gpu(build, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    build(available=False)
    assert cuda_trouble(0) == "PyTorch sees no GPU"
    cuda_trouble.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_trouble(0) == "PyTorch sees no GPU (CUDA_VISIBLE_DEVICES is '')"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError(FULL), "cuda:0 has no memory left: other processes hold it"),
        (
            RuntimeError("CUDA error: out of memory\nCompile with …"),
            "cuda:0 has no memory left: other processes hold it",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "this PyTorch has no code for GTX 1080 (compute capability 6.1)",
        ),
        (
            RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with …"),
            "CUDA error: all CUDA-capable devices are busy or unavailable",
        ),
        (None, None),
    ],
)
def test_cuda_trouble__tries_a_sum(build, error: RuntimeError | None, reason: str | None):
    build(error)
    assert cuda_trouble(0) == reason


def test_cuda_trouble__a_gpu_that_is_not_there(build):
    build()
    assert cuda_trouble(1) is None
    assert cuda_trouble(2) == "there is no cuda:2: the GPUs are cuda:0 to cuda:1"


def test_kinds_of_errors():
    assert is_out_of_memory(torch.OutOfMemoryError(FULL))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_cuda_failure(RuntimeError(ASSERT))
    ours = RuntimeError("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0")
    assert not is_out_of_memory(ours)
    assert not is_cuda_failure(ours)
