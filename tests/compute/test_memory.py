"""Which batch would have fitted: the arithmetic, with memories and errors that are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from small_run import Copying, Rows
from tymbal.compute.memory import Need, fitting_batch, held_by, measure, step_on


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
