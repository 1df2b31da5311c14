"""Linear layers in integers of 8 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tymbal.compute.int8 import Int8Linear, as_int8, exactly, rounding
from tymbal.errors import DeviceError

CPU = torch.device("cpu")


def layers(inputs: int = 96, outputs: int = 128) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, 5))


def test_layer__is_near_the_exact_one_and_keeps_its_weights() -> None:
    module, x = layers(), 3 * torch.randn(4, 7, 96)
    before, exact = {key: value.clone() for key, value in module.state_dict().items()}, module[0](x).detach()
    as_int8(module, CPU)
    assert isinstance(module[0], Int8Linear)
    assert isinstance(module[2], nn.Linear)  # a head
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    found = module[0](x).detach()
    assert found.shape == exact.shape
    assert 0 < float((found - exact).std() / exact.std()) < 0.02
    with exactly(module):
        assert torch.equal(module[0](x), exact)
    assert torch.equal(module[0](x), found)


def test_layer__a_clip_does_not_depend_on_the_others_of_its_batch() -> None:
    module = layers()
    as_int8(module, CPU)
    x = torch.randn(6, 7, 96)
    loud = torch.cat([x, 1000 * torch.randn(2, 7, 96)])
    together = module[0](loud)
    assert torch.equal(together[:6], module[0](x))
    assert torch.equal(together[2:3], module[0](x[2:3]))


@pytest.mark.parametrize("value", [0.0, 1e-30, 7.0])
def test_layer__of_numbers_that_do_not_vary(value: float) -> None:
    module = layers()
    exact = module[0](torch.full((2, 96), value))
    as_int8(module, CPU)
    assert torch.allclose(module[0](torch.full((2, 96), value)), exact, atol=0.02 * max(1.0, value))


def test_as_int8__is_for_cpus() -> None:
    with pytest.raises(DeviceError, match="int8 is for CPUs, not for cuda"):
        as_int8(layers(), torch.device("cuda"))


def test_as_int8__without_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> None:
        raise RuntimeError("Didn't find engine")

    monkeypatch.setattr(torch.ops.quantized, "linear_prepack", absent)
    with pytest.raises(DeviceError, match="has no products of int8 for this CPU: Didn't find engine"):
        as_int8(layers(), CPU)


class Scores(nn.Module):
    """Logits of clips that are what they look like."""

    def __init__(self, *, noise: float) -> None:
        super().__init__()
        self.first, self.noise = nn.Linear(64, 64, bias=False), noise
        nn.init.eye_(self.first.weight)

    def forward(self, x: torch.Tensor, *, frames: torch.Tensor) -> torch.Tensor:
        return self.first(x[:, 0]) * self.noise


@pytest.mark.parametrize("multilabel", [False, True])
def test_rounding__says_what_it_costs(multilabel: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.eye(64)[torch.randint(64, (32,), generator=generator)]
    x = truth[:, None] - 0.5 * multilabel
    batch = (x, torch.ones(32, dtype=torch.long), truth.bool())
    cost = rounding(Scores(noise=4.0), iter([batch]), multilabel=multilabel)
    assert cost is not None
    assert (cost.clips, cost.agree, cost.loss) == (32, 1.0, 0.0)
    assert cost.is_fine
    assert cost.to_json()["verdict"].startswith("as good as float32")
    assert rounding(Scores(noise=4.0), iter([]), multilabel=multilabel) is None


def test_rounding__that_is_too_coarse() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 64, generator=generator)
    truth = x[:, 0] == x[:, 0].amax(1, keepdim=True)
    cost = rounding(Scores(noise=200.0), iter([(x, torch.ones(64, dtype=torch.long), truth)]), multilabel=False)
    assert cost is not None
    assert not cost.is_fine
    assert "leave --precision int8" in cost.to_json()["verdict"]
