from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tymbal.compute import device as module
from tymbal.compute.device import choose_device, choose_precision, cpu_has_bf16
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
    assert choose_device("auto") == (torch.device("cuda"), "CUDA is there: H000")


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


FAULTS = """
import resource
import torch
from tymbal.machine import tune_malloc

layers = torch.nn.Sequential(torch.nn.Linear(4, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 4))
batch = torch.randn(10_000, 4)  # activations of 40 MB: above 32 MB, glibc always asks the kernel

def faults_of_a_step():
    # The fewest of some: the heap grows for a few steps, until there is room for all blocks of a step side by side.
    faults = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layers(batch).sum().backward()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)

print(faults_of_a_step(), tune_malloc(), faults_of_a_step())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is about glibc")
def test_tune_malloc__spares_a_training_step_its_page_faults():
    output = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    before, took_effect, after = float(output[0]), output[1] == "True", float(output[2])
    if not took_effect:
        pytest.skip("this is not glibc")
    assert before > 1000
    assert after < before / 10
