"""Trouble with a device, in words: which batch would have fitted, and what failed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from small_run import Copying, Rows, settings
from tymbal.compute.memory import Need, held_by
from tymbal.errors import TrainingError
from tymbal.progress import quietly
from tymbal.training import device_errors
from tymbal.training.batches import BatchPlan
from tymbal.training.checkpoints import Checkpoints
from tymbal.training.device_errors import explain, too_large

GIB = 2**30


def test_too_large__offers_what_fits():
    need = Need(fixed=4 * GIB, per_clip=GIB)
    chosen = settings(batch_size=64, gradient_checkpointing=True, precision="auto")
    error = too_large(need, 40 * GIB, chosen, batch_size=64, device="cuda (A100)", begun=False)
    assert str(error) == (
        "the memory of cuda (A100) is too small for batches of 64 clips: they take about 68.0 GiB, and there are 40.0 "
        "GiB\n  The same training in less memory: --batch-size 32 --accumulate 2."
    )
    begun = too_large(need, 40 * GIB, settings(batch_size=64), batch_size=64, device="cuda", begun=True)
    assert str(begun).endswith(
        "--batch-size 32 --accumulate 2. It is another run then, in a folder of its own. --gradient-checkpointing and "
        "--precision bf16 save memory, too."
    )


def test_too_large__not_even_one_clip():
    for need in (None, Need(fixed=50 * GIB, per_clip=GIB)):
        error = too_large(need, 40 * GIB, settings(), batch_size=4, device="cuda", begun=False)
        assert "too small for even one clip" in str(error)
        assert "--gradient-checkpointing, --precision bf16, a smaller --size" in str(error)


def test_too_large__batch_sizes_that_grow():
    chosen = settings(batch_sizes=(1, 2, 4, 64))
    error = too_large(Need(0, GIB), 40 * GIB, chosen, batch_size=64, device="cuda", begun=False)
    assert "Of --batch-sizes none may be above 32." in str(error)


@pytest.mark.parametrize(
    ("raised", "what"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "the memory of mps is too small for batches of 4 clips"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\n…"),
            "CUDA failed: CUDA error: an illegal",
        ),
    ],
)
def test_explain__says_what_failed_and_lets_other_errors_pass(raised: RuntimeError, what: str, tmp_path):
    plan = BatchPlan(length=20, batch_sizes=(4,))
    where = {"plan": plan, "arithmetic": (torch.device("mps"), None), "checkpoints": Checkpoints(tmp_path / "c")}
    with pytest.raises(TrainingError, match=what), explain(Copying(), Rows(20), settings(), **where):
        raise raised
    ours = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError) as caught, explain(Copying(), Rows(20), settings(), **where):
        raise ours
    assert caught.value is ours


class Gpu:
    """A made-up GPU in the place of the real one."""

    def __init__(self, size: int) -> None:
        self.size = size

    def capacity(self) -> int:
        return self.size

    def peak(self, work: Callable[[], None]) -> int:
        work()
        return 1000

    def describe(self) -> str:
        return "H200, 141.0 GiB"


def test_settle_device__cuda_or_cpu_tries_a_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    module, cpu = Copying(), torch.device("cpu")
    held = held_by(module)
    before = torch.random.get_rng_state()
    for size, fits in ((held + 1000, True), (held + 999, False)):
        monkeypatch.setattr(device_errors, "Gpu", lambda _, size=size: Gpu(size))
        assert device_errors._fits(module, Rows(20), (cpu, None), batch_size=4) == fits
    assert module.shapes == [4, 4]
    assert torch.random.get_rng_state().equal(before)

    plan = BatchPlan(length=20, batch_sizes=(4,))
    monkeypatch.setattr(device_errors, "choose_device", lambda _: (torch.device("cuda"), "CUDA is available: H200"))
    monkeypatch.setattr(device_errors, "choose_precision", lambda _, device: (None, f"for {device}"))
    monkeypatch.setattr(device_errors, "_fits", lambda *_, **__: False)
    with quietly():
        assert device_errors.settle_device(module, Rows(20), settings(device="cuda-or-cpu"), plan=plan) == (cpu, None)
        why = "the memory of H200, 141.0 GiB is too small for batches of 4 clips"
        assert capsys.readouterr().err == f"Device: cpu ({why}). Precision: float32 (for cpu).\n"
        assert device_errors.settle_device(module, Rows(20), settings(device="cuda"), plan=plan)[0].type == "cuda"
        assert capsys.readouterr().err == ""
