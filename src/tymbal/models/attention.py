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


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0, attended: Tensor | None = None
) -> Tensor:
    """Mixes the values of each query by the softmax of its scaled products with the keys.

    Args:
        queries: [batch, heads, queries, width of a head].
        keys: [batch, heads, tokens, width of a head].
        values: As the keys.
        dropout: Dropout of the weights.
        attended: Which keys count, bool [batch, 1, 1, tokens]; None is all.

    Returns:
        [batch, heads, queries, width of a head].
    """
    if keys.device.type == "cpu" and keys.dtype == torch.bfloat16 and not dropout and not torch.compiler.is_compiling():
        return cast(Tensor, _WrittenOut.apply(queries, keys, values, attended))  # type: ignore[no-untyped-call]
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=attended, dropout_p=dropout)


class _WrittenOut(torch.autograd.Function):
    """The products, some clips at once; arguments as of `attend`."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, attended: Tensor | None = None) -> Tensor:
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        parts = _parts(queries, keys)
        for part in parts:
            weights = _weights(queries[part], keys[part], None if attended is None else attended[part])
            mixed[part] = weights @ values[part]
        ctx.attended = attended
        ctx.save_for_backward(queries, keys, values, *([weights] if len(parts) == 1 else []))
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, *cached = ctx.saved_tensors
        (gradient,) = gradients
        scale = queries.shape[-1] ** -0.5
        of_queries, of_keys, of_values = (torch.empty_like(x) for x in (queries, keys, values))
        for part in _parts(queries, keys):
            mask = None if ctx.attended is None else ctx.attended[part]
            weights = cached[0] if cached else _weights(queries[part], keys[part], mask)
            of_values[part] = weights.transpose(2, 3) @ gradient[part]
            of_weights = gradient[part] @ values[part].transpose(2, 3)
            of_scores = _softmax_backward(of_weights, weights) * scale
            of_queries[part] = of_scores @ keys[part]
            of_keys[part] = of_scores.transpose(2, 3) @ queries[part]
        return of_queries, of_keys, of_values, None


def _parts(queries: Tensor, keys: Tensor) -> list[slice]:
    """Clips that are computed at once."""
    batch, heads, num_queries, _ = queries.shape
    step = max(1, _WEIGHTS_AT_ONCE // (heads * num_queries * keys.shape[2]))
    return [slice(start, start + step) for start in range(0, batch, step)]


def _weights(queries: Tensor, keys: Tensor, attended: Tensor | None) -> Tensor:
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
    scores = scores if attended is None else scores.masked_fill_(~attended, -torch.inf)
    if scores.dtype == torch.bfloat16 and scores.shape[-1] in _SHORT and scores.shape[-1] % _VECTOR:
        return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return torch.softmax(scores, -1)


def _softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    if weights.dtype == torch.bfloat16 and weights.shape[-1] in _SHORT and weights.shape[-1] < _VECTOR:
        short = torch._softmax_backward_data(gradient.float(), weights.float(), -1, torch.float32)
        return short.to(weights.dtype)
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
