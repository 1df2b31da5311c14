"""Which batch would have fitted: the arithmetic, with memories and errors that are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from test_run import Copying, Rows, settings

from tymbal.compute.memory import Need, fitting_batch, held_by, measure, step_on
from tymbal.errors import TrainingError
from tymbal.progress import quietly
from tymbal.training import device_errors as trouble
from tymbal.training.batches import BatchPlan
from tymbal.training.checkpoints import Checkpoints
from tymbal.training.device_errors import explain, too_large

GIB = 2**30


@dataclass
class Made:
    """A device on which a step takes `fixed` bytes and `per_clip` for each clip, of `size` in all."""

    size: int
    fixed: int = 100
    per_clip: int = 10
    used: int = 0
    tried: list[int] = field(default_factory=list)

    def capacity(self) -> int:
        return self.size

    def peak(self, work: Callable[[], None]) -> int:
        work()
        return self.used

    def step(self, clips: int) -> None:
        self.tried.append(clips)
        self.used = self.fixed + self.per_clip * clips
        if self.used > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_measure__two_batches_give_the_fixed_part_and_that_of_a_clip():
    made = Made(size=700)
    assert measure(made, made.step, 64, held=1000) == Need(fixed=1100, per_clip=10)
    assert made.tried == [8, 16]
    assert Need(1100, 10).of(64) == 1740


def test_measure__goes_down_to_what_fits():
    made = Made(size=140)
    assert measure(made, made.step, 64, held=0) == Need(fixed=100, per_clip=10)
    assert made.tried == [8, 4, 8, 2, 4]


def test_measure__where_only_one_clip_fits_it_is_all_per_clip():
    made = Made(size=115)
    assert measure(made, made.step, 4, held=7) == Need(fixed=7, per_clip=110)
    assert measure(Made(size=105), Made(size=105).step, 4, held=7) is None


def test_measure__other_errors_pass():
    def wrong(_: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        measure(Made(size=1000), wrong, 8, held=0)


@pytest.mark.parametrize(
    ("capacity", "batch_size", "accumulate", "expected"),
    [
        (500, 64, 1, (32, 2)),  # 36 would fit: 32 is a whole part of 64
        (500, 64, 3, (32, 6)),
        (470, 64, 1, (32, 2)),  # 33.2 fit
        (200, 64, 1, (8, 8)),
        (120, 64, 1, (1, 64)),  # 1.04 fit
        (105, 64, 1, None),
        (500, 67, 1, (34, 2)),  # 67 is prime: one clip more a step
        (10_000, 64, 1, (32, 2)),  # it did not fit, whatever the figures say
        (500, 1, 8, None),
    ],
)
def test_fitting_batch(capacity: int, batch_size: int, accumulate: int, expected: tuple[int, int] | None):
    need = Need(fixed=100, per_clip=10)
    fit = fitting_batch(need, capacity, batch_size=batch_size, accumulate=accumulate)
    assert fit == expected
    if fit is not None:
        assert need.of(fit[0]) <= 0.92 * capacity
        assert 0 <= fit[0] * fit[1] - batch_size * accumulate < fit[0]


def test_held_by__weights_and_optimizer():
    module = Copying()
    weights = sum(value.numel() for value in module.parameters()) * 4
    assert held_by(module) == 3 * weights
    assert held_by(module, processes=2) == 4 * weights
    module.layers[0].requires_grad_(requires_grad=False)
    frozen = (6 * 16 + 16) * 4
    assert held_by(module) == 3 * weights - 2 * frozen


def test_step_on__runs_forward_and_backward_and_leaves_nothing():
    module, rows = Copying(), Rows(5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    step_on(torch.device("cpu"), torch.bfloat16, module, rows.__getitems__)(8)
    assert module.shapes == [8]  # more than there are clips: the next epoch follows
    assert all(value.grad is None for value in module.parameters())
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())


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
def test_in_plain_words(raised: RuntimeError, what: str, tmp_path):
    plan = BatchPlan(length=20, batch_sizes=(4,))
    where = {"plan": plan, "arithmetic": (torch.device("mps"), None), "checkpoints": Checkpoints(tmp_path / "c")}
    with pytest.raises(TrainingError, match=what), explain(Copying(), Rows(20), settings(), **where):
        raise raised
    ours = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError) as caught, explain(Copying(), Rows(20), settings(), **where):
        raise ours
    assert caught.value is ours


class Gpu(Made):
    """A made-up GPU in the place of the real one."""

    def __init__(self, size: int) -> None:
        super().__init__(size=size)

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
        monkeypatch.setattr(trouble, "Gpu", lambda _, size=size: Gpu(size))
        assert trouble._fits(module, Rows(20), (cpu, None), batch_size=4) == fits
    assert module.shapes == [4, 4]
    assert torch.random.get_rng_state().equal(before)

    plan = BatchPlan(length=20, batch_sizes=(4,))
    monkeypatch.setattr(trouble, "choose_device", lambda _: (torch.device("cuda"), "CUDA is there: H200"))
    monkeypatch.setattr(trouble, "choose_precision", lambda _, device: (None, f"for {device}"))
    monkeypatch.setattr(trouble, "_fits", lambda *_, **__: False)
    with quietly():
        assert trouble.settle_device(module, Rows(20), settings(device="cuda-or-cpu"), plan=plan) == (cpu, None)
        why = "the memory of H200, 141.0 GiB is too small for batches of 4 clips"
        assert capsys.readouterr().err == f"Device: cpu ({why}). Precision: float32 (for cpu).\n"
        assert trouble.settle_device(module, Rows(20), settings(device="cuda"), plan=plan)[0].type == "cuda"
        assert capsys.readouterr().err == ""
