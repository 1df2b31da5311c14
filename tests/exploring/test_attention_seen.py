from __future__ import annotations

import torch
from torch import Tensor

from tymbal.exploring.model_view import attention, readers
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder

CONFIG = EncoderConfig(width=16, depth=3, heads=2, mels=16, frames=32, patch=(8, 8), stride=(8, 8))


def encoder() -> SpectrogramEncoder:
    torch.manual_seed(0)
    model = SpectrogramEncoder(CONFIG).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    return model


def by_hand(model: SpectrogramEncoder, x: Tensor) -> list[Tensor]:
    """The attention of each block from its input, [tokens, tokens], the mean over the heads."""
    found = []
    for block, tokens in zip(model.blocks, model(x, hidden_states=True).hidden_states, strict=False):
        queries, keys, _ = block.attention.qkv(block.norm1(tokens))[0].chunk(3, dim=1)
        heads = [(queries[:, part] @ keys[:, part].T / 8**0.5).softmax(1) for part in (slice(0, 8), slice(8, 16))]
        found.append((heads[0] + heads[1]) / 2)
    return found


@torch.no_grad()
def test_attention__is_that_of_the_blocks_by_hand() -> None:
    model, x = encoder(), torch.randn(1, 32, 16)
    blocks = by_hand(model, x)
    read = torch.tensor([0, 1])
    found = attention(model, x, readers=read)
    torch.testing.assert_close(found.last, blocks[-1][read].mean(0))
    product = torch.eye(10)
    for block in blocks:
        product = (0.5 * block + 0.5 * torch.eye(10)) @ product
    torch.testing.assert_close(found.rollout, product[read].mean(0))
    torch.testing.assert_close(found.rollout.sum(), torch.tensor(1.0))


def test_attention__leaves_nothing_behind_in_the_encoder() -> None:
    model, x = encoder(), torch.randn(1, 32, 16)
    before = model(x).tokens
    attention(model, x, readers=torch.tensor([2]))
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model(x).tokens, before)


def test_readers__are_the_tokens_that_are_pooled() -> None:
    def found(pooling: str | None) -> list[int]:
        return readers(pooling, prefix=2, grid=(2, 4), real_columns=3).tolist()

    patches = [2, 3, 4, 6, 7, 8]
    assert found("cls") == [0, 1]
    assert found("all") == found("all-normed-twice") == [0, 1, *patches]
    assert found("mean") == found("rows") == found("attention") == found(None) == patches
