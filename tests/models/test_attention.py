"""Attention against torch's own, in float32 and in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tymbal.models import attention
from tymbal.models.attention import _WrittenOut, attend


def inputs(dtype: torch.dtype, wanted: int = 37) -> list[torch.Tensor]:
    torch.manual_seed(0)
    lengths = (wanted, 37, 37)
    return [torch.randn(3, 2, length, 16, dtype=dtype, requires_grad=True) for length in lengths]


@pytest.mark.parametrize("wanted", [37, 2])
def test_attend__bf16_on_a_cpu_is_torchs_own(wanted):
    whole = inputs(torch.float32, wanted)
    expected = F.scaled_dot_product_attention(*whole)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    short = [tensor.detach().bfloat16().requires_grad_() for tensor in whole]
    found = attend(*short)
    found.backward(gradient.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0)
    for ours, theirs in zip(short, whole, strict=True):
        torch.testing.assert_close(ours.grad.float(), theirs.grad, atol=0.02 * theirs.grad.abs().max().item(), rtol=0)


@pytest.mark.parametrize("at_once", [1, 2 * 2 * 37 * 37, 2**24])
def test_written_out__gradients_are_those_of_torch_however_many_clips_at_once(at_once, monkeypatch):
    monkeypatch.setattr(attention, "_WEIGHTS_AT_ONCE", at_once)
    ours, theirs = inputs(torch.float64), inputs(torch.float64)
    mixed, expected = _WrittenOut.apply(*ours), F.scaled_dot_product_attention(*theirs)
    torch.testing.assert_close(mixed, expected, atol=1e-12, rtol=0)
    gradient = torch.randn_like(expected)
    mixed.backward(gradient)
    expected.backward(gradient)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, atol=1e-12, rtol=0)


def test_attend__float32_and_dropout_are_left_to_torch():
    whole = inputs(torch.float32)
    assert torch.equal(attend(*whole), F.scaled_dot_product_attention(*whole))
    short = [tensor.bfloat16() for tensor in whole]
    torch.manual_seed(1)
    dropped = attend(*short, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropped, F.scaled_dot_product_attention(*short, dropout_p=0.5))
