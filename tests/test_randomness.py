"""Numbers that depend on their key alone, and are random enough for masks."""

from __future__ import annotations

import torch

from tymbal.randomness import bits, fold, uniform


def test_uniform__is_a_function_of_the_key_alone():
    keys = fold(7, 3, torch.arange(100))
    together = uniform(keys, 20, stream=1)
    assert torch.equal(uniform(keys[40:41], 20, stream=1), together[40:41])
    assert torch.equal(uniform(keys.flip(0), 20, stream=1), together.flip(0))
    assert torch.equal(uniform(keys, 5, stream=1), together[:, :5])


def test_uniform__is_the_same_on_every_machine():
    # Recorded: a change here changes all masks of all seeds.
    recorded = [[1628485, 786045, 7952108], [12221124, 5517096, 16186899]]
    assert bits(fold(42, 0, torch.arange(2)), 3, stream=1).tolist() == recorded


def test_uniform__is_uniform():
    values = uniform(fold(0, torch.arange(10_000)), 40, stream=0)
    n = values.numel()
    assert values.dtype == torch.float32
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.double().mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    counts = torch.histc(values, bins=100, min=0, max=1)
    chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert abs(chi2 - 99) < 5 * (2 * 99) ** 0.5  # mean and standard deviation of chi-square with 99 degrees


def test_uniform__neighbours_do_not_depend_on_each_other():
    values = uniform(fold(0, torch.arange(20_000)), 8, stream=0).double() - 0.5
    other = uniform(fold(0, torch.arange(20_000)), 8, stream=1).double() - 0.5
    bound = 5 / 20_000**0.5
    places = torch.corrcoef(torch.cat([values, other], 1).T).fill_diagonal_(0)
    assert places.abs().max() < bound
    keys = (values[1:] * values[:-1]).mean(0) * 12
    assert keys.abs().max() < bound


def test_fold__tells_every_part_apart():
    keys = {int(fold(*parts)) for parts in [(1,), (2,), (1, 0), (0, 1), (1, 1), (-1,), (1 << 32,), (1 << 33,)]}
    assert len(keys) == 8
    assert int(fold(3, 5, 7)) == int(fold(torch.tensor(3), 5, torch.tensor(7)))
    assert len(fold(1, torch.arange(3).unsqueeze(1), torch.arange(5)).unique()) == 15


def test_bits__refuses_no_count_and_stays_on_the_device():
    meta = bits(torch.empty(3, dtype=torch.int64, device="meta"), 70_000, stream=2)
    assert meta.device.type == "meta"
    assert meta.shape == (3, 70_000)


def test_uniform__compiles_to_the_same_numbers():
    keys = fold(1, torch.arange(4))
    compiled = torch.compile(lambda k: uniform(k, 6, stream=3), fullgraph=True, backend="eager")
    assert torch.equal(compiled(keys), uniform(keys, 6, stream=3))
