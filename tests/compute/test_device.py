"""Which device and which arithmetic, why, and what is wrong with CUDA."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tymbal.compute import device as cuda
from tymbal.compute import device as module
from tymbal.compute.device import (
    choose_device,
    choose_precision,
    cpu_has_bf16,
    cuda_trouble,
    is_cuda_failure,
    is_out_of_memory,
    one_line,
)
from tymbal.errors import DeviceError, SettingsError

CPU = torch.device("cpu")


def trouble(monkeypatch: pytest.MonkeyPatch, *reasons: str | None) -> None:
    """Pretends that there are GPUs, each with what is wrong with it."""
    monkeypatch.setattr(module, "cuda_trouble", lambda gpu: reasons[gpu] if gpu < len(reasons) else f"no cuda:{gpu}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(reasons))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: f"H{gpu}00")


def test_choose_device__auto_says_why(monkeypatch: pytest.MonkeyPatch):
    trouble(monkeypatch, "the driver is too old")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == (CPU, "the driver is too old")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto")[0].type == "mps"
    trouble(monkeypatch, None)
    assert choose_device("auto") == (torch.device("cuda"), "CUDA is available: H000")


def test_choose_device__cuda_or_cpu_takes_nothing_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    trouble(monkeypatch, "the driver is too old")
    assert choose_device("cuda-or-cpu") == (CPU, "the driver is too old")
    trouble(monkeypatch, None)
    assert choose_device("cuda-or-cpu")[0].type == "cuda"


def test_choose_device__cuda_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch):
    trouble(monkeypatch, "the driver is too old")
    with pytest.raises(DeviceError, match="cuda was asked for, but the driver is too old"):
        choose_device("cuda")
    trouble(monkeypatch, None, None)
    assert choose_device("cuda:1")[0].index == 1
    with pytest.raises(DeviceError, match="no cuda:2"):
        choose_device("cuda:2")


def test_choose_device__each_process_tries_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    trouble(monkeypatch, None, "it has no memory left")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device("auto")[0].type == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    # One process on the CPU beside one on a GPU would wait for each other for ever.
    for name in ("auto", "cuda-or-cpu"):
        with pytest.raises(DeviceError, match="one of 2 processes cannot use its GPU: it has no memory left"):
            choose_device(name)


def test_choose_device__what_is_no_device_is_an_error():
    with pytest.raises(SettingsError, match="'gpu', which is no device"):
        choose_device("gpu")


def test_choose_precision__fp16_on_a_cpu_is_refused():
    with pytest.raises(DeviceError, match="no loss scaling"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, None)],
)
def test_choose_precision__auto_takes_bf16_where_the_cpu_computes_it(
    capabilities: dict[str, bool], expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module.torch.cpu, "get_capabilities", lambda: capabilities)
    assert cpu_has_bf16() == (expected is not None)
    assert choose_precision("auto", CPU)[0] == expected
    assert choose_precision("float32", CPU)[0] is None
    dtype, why = choose_precision("bf16", CPU)
    assert dtype == torch.bfloat16
    assert ("emulates" in why) == (expected is None)


@pytest.mark.parametrize("supported", [True, False])
def test_choose_precision__on_a_gpu(supported: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    gpu = torch.device("cuda")
    assert choose_precision("auto", gpu)[0] == (torch.bfloat16 if supported else torch.float16)
    assert choose_precision("fp16", gpu)[0] == torch.float16
    if not supported:
        with pytest.raises(DeviceError, match="T4 does not compute bf16"):
            choose_precision("bf16", gpu)


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
