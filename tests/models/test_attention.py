"""Attention against torch's own, in float32 and in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tymbal.models import attention
from tymbal.models.attention import _WrittenOut, attend

SHAPE = (3, 37, 3, 2, 16)  # clips, tokens, queries, keys and values, heads, width of a head
ONLY = pytest.mark.parametrize("only", [None, 2])
MASKED = pytest.mark.parametrize("masked", [False, True])


def given(dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(SHAPE, dtype=dtype, requires_grad=True)


def mask(masked: bool) -> torch.Tensor | None:
    return (torch.arange(37) < torch.tensor([[37], [20], [1]]))[:, None, None] if masked else None


def torchs(qkv: torch.Tensor, attended: torch.Tensor | None = None, only: int | None = None) -> torch.Tensor:
    queries, keys, values = (part.transpose(1, 2) for part in qkv.unbind(2))
    mixed = F.scaled_dot_product_attention(queries[:, :, :only], keys, values, attn_mask=attended)
    return mixed.transpose(1, 2).flatten(2)


@ONLY
@MASKED
def test_attend__bf16_on_a_cpu_is_torchs_own(only, masked):
    whole = given(torch.float32)
    expected = torchs(whole, mask(masked), only)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    short = whole.detach().bfloat16().requires_grad_()
    found = attend(short, 0.0, mask(masked), only)
    found.backward(gradient.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0)
    for ours, theirs in zip(short.grad.unbind(2), whole.grad.unbind(2), strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.02 * theirs.abs().max().item(), rtol=0)


@ONLY
@MASKED
@pytest.mark.parametrize("at_once", [1, 2 * 2 * 37 * 37, 2**24])
def test_written_out__gradients_are_those_of_torch_however_many_clips_at_once(at_once, masked, only, monkeypatch):
    monkeypatch.setattr(attention, "_WEIGHTS_AT_ONCE", at_once)
    ours, theirs = given(torch.float64), given(torch.float64)
    mixed, expected = _WrittenOut.apply(ours, mask(masked), only), torchs(theirs, mask(masked), only)
    torch.testing.assert_close(mixed, expected, atol=1e-12, rtol=0)
    gradient = torch.randn_like(expected)
    mixed.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=0)


def test_attend__float32_and_dropout_are_left_to_torch():
    whole = given(torch.float32)
    assert torch.equal(attend(whole), torchs(whole))
    short = whole.bfloat16()
    torch.manual_seed(1)
    dropped = attend(short, 0.5)
    torch.manual_seed(1)
    queries, keys, values = (part.transpose(1, 2) for part in short.unbind(2))
    expected = F.scaled_dot_product_attention(queries, keys, values, dropout_p=0.5)
    assert torch.equal(dropped, expected.transpose(1, 2).flatten(2))
