"""Scaled dot-product attention, by the fastest way that a device has.

That is torch's own, except for bf16 on a CPU, where its forward pass takes as long as in float32, and its backward pass
longer. Products written out use what the processor has for bf16; on one with AVX512-BF16 both passes together take 0.27
(58 tokens) to 0.70 (1,214) of the time. Some clips are computed at once, few enough that memory stays small; where they
are too many for that, weights are computed again in the backward pass, as torch's own does, instead of being held.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["attend"]

_WEIGHTS_AT_ONCE = 2**24
"""Attention weights (32 MiB in bf16) that are computed together, and up to which a call's are held for the backward."""

_VECTOR, _SHORT = 32, range(12, 64)
"""bf16 numbers of a vector of the processor, and rows that are short: torch's softmax takes what is left of a row
behind its last whole vector one by one, which for short rows costs up to five times as much as through float32."""


def attend(qkv: Tensor, dropout: float = 0.0, attended: Tensor | None = None, only: int | None = None) -> Tensor:
    """Mixes the values of each query by the softmax of its scaled products with the keys.

    Args:
        qkv: Queries, keys and values, [batch, tokens, 3, heads, width of a head].
        dropout: Dropout of the weights.
        attended: Which keys count, bool [batch, 1, 1, tokens]; None is all.
        only: Queries at the beginning that are answered; None is all.

    Returns:
        [batch, queries, heads x width of a head].
    """
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and not dropout:
        return cast(Tensor, _WrittenOut.apply(qkv, attended, only))  # type: ignore[no-untyped-call]
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(queries[:, :, :only], keys, values, attn_mask=attended, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


class _WrittenOut(torch.autograd.Function):
    """The products, some clips at once; arguments as of `attend`.

    Queries, keys and values are copied once to the order that products take, and so are their gradients, as one.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, attended: Tensor | None = None, only: int | None = None) -> Tensor:
        batch, tokens, _, heads, channels = qkv.shape
        wanted = tokens if only is None else min(only, tokens)
        mixed = qkv.new_empty(batch, wanted, heads, channels)
        parts = _parts(qkv, wanted)
        for part in parts:
            queries, keys, values = copied = _by_head(qkv[part])
            weights = _weights(queries[:, :wanted], keys, None if attended is None else attended[part])
            mixed[part] = torch.bmm(weights, values).view(-1, heads, wanted, channels).transpose(1, 2)
        ctx.attended, ctx.wanted, ctx.shape = attended, wanted, qkv.shape
        ctx.save_for_backward(*([copied, weights] if len(parts) == 1 else [qkv]))
        return mixed.flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        _, tokens, _, heads, channels = ctx.shape
        kept, *cached = ctx.saved_tensors
        wanted = ctx.wanted
        gradient = gradients[0].view(-1, wanted, heads, channels)
        given = torch.empty(ctx.shape, dtype=kept.dtype)
        for part in [slice(None)] if cached else _parts(kept, wanted):
            queries, keys, values = copied = kept if cached else _by_head(kept[part])
            mask = None if ctx.attended is None else ctx.attended[part]
            weights = cached[0] if cached else _weights(queries[:, :wanted], keys, mask)
            of_mixed = gradient[part].transpose(1, 2).reshape(-1, wanted, channels)
            of_scores = _softmax_backward(torch.bmm(of_mixed, values.transpose(1, 2)), weights)
            of_all = torch.empty_like(copied) if wanted == tokens else torch.zeros_like(copied)
            of_all[0, :, :wanted] = torch.bmm(of_scores, keys).mul_(channels**-0.5)
            torch.bmm(of_scores.transpose(1, 2), queries[:, :wanted], out=of_all[1])
            torch.bmm(weights.transpose(1, 2), of_mixed, out=of_all[2])
            given[part] = of_all.view(3, -1, heads, tokens, channels).permute(1, 3, 0, 2, 4)
        return given, None, None


def _parts(qkv: Tensor, queries: int) -> list[slice]:
    """Clips that are computed at once."""
    batch, tokens, _, heads, _ = qkv.shape
    step = max(1, _WEIGHTS_AT_ONCE // (heads * queries * tokens))
    return [slice(start, start + step) for start in range(0, batch, step)]


def _by_head(qkv: Tensor) -> Tensor:
    """Queries, scaled, keys and values as products take them: [3, batch x heads, tokens, width of a head]."""
    copied = qkv.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
    copied[0].mul_(qkv.shape[-1] ** -0.5)
    return copied


def _weights(queries: Tensor, keys: Tensor, attended: Tensor | None) -> Tensor:
    """Weights [batch x heads, queries, tokens] of scaled queries and keys by head."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if attended is not None:
        # A sum: on a CPU a fill by a mask that is broadcast takes four times as long.
        closed = torch.zeros(attended.shape, dtype=scores.dtype).masked_fill_(~attended, -torch.inf)
        scores.view(len(attended), -1, *scores.shape[1:]).add_(closed)
    if scores.dtype == torch.bfloat16 and scores.shape[-1] in _SHORT and scores.shape[-1] % _VECTOR:
        return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return torch.softmax(scores, -1)


def _softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    if weights.dtype == torch.bfloat16 and weights.shape[-1] in _SHORT and weights.shape[-1] < _VECTOR:
        short = torch._softmax_backward_data(gradient.float(), weights.float(), -1, torch.float32)
        return short.to(weights.dtype)
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
