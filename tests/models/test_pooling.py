"""Pooling on tokens whose means are known."""

from __future__ import annotations

import pytest
import torch

from tymbal.errors import SettingsError
from tymbal.models.classifier import AttentivePooling, pool, pooled_width
from tymbal.models.encoder import EncoderConfig

TOKENS = torch.tensor(
    [[[10.0], [20.0], [1.0], [2.0], [3.0], [5.0], [6.0], [7.0]]]
)  # 2 prefix tokens, 2 rows x 3 columns


@pytest.mark.parametrize(("how", "expected"), [("mean", [4.0]), ("rows", [2.0, 6.0]), ("cls", [15.0]), ("all", [6.75])])
def test_pool__takes_the_right_mean(how, expected):
    assert pool(TOKENS, how=how, grid=(2, 3)).tolist() == [expected]


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [3.5]), ("rows", [1.5, 5.5]), ("cls", [15.0]), ("all", [44 / 6])]
)
def test_pool__leaves_out_padding(how, expected):
    found = pool(TOKENS, how=how, grid=(2, 3), real_columns=torch.tensor([2]))
    assert found.tolist() == [pytest.approx(expected)]


def test_pool__names_the_ways_there_are():
    with pytest.raises(SettingsError, match="mean, rows, cls, all"):
        pool(TOKENS, how="max", grid=(2, 3))


def test_pooled_width__counts_rows():
    config = EncoderConfig(width=8, depth=1, heads=1, mels=64, frames=32)
    assert [pooled_width(how, config) for how in ("mean", "rows", "cls", "all", "attention")] == [8, 32, 8, 8, 8]


def attentive(query: list[list[float]]) -> AttentivePooling:
    pooling = AttentivePooling(EncoderConfig(width=2, depth=1, heads=len(query), mels=64, frames=32))
    pooling.query.data = torch.tensor(query)
    return pooling


def test_attentive_pooling__begins_as_the_mean():
    tokens, real = torch.randn(3, 8, 2), torch.tensor([1, 2, 3])
    pooling = AttentivePooling(EncoderConfig(width=2, depth=1, heads=1, mels=64, frames=32))
    expected = pool(tokens, how="mean", grid=(2, 3), real_columns=real)
    torch.testing.assert_close(pooling(tokens, grid=(2, 3), real_columns=real), expected)


def test_attentive_pooling__weighs_patches_by_their_likeness_to_the_query_of_each_head():
    tokens = torch.zeros(1, 8, 2)
    tokens[0, 2:, 0] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    tokens[0, 2:, 1] = torch.tensor([0.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    first = torch.tensor(3.0).exp()
    # Two heads of one channel: the first asks for large numbers, the second does not care.
    found = attentive([[3.0], [0.0]])(tokens, grid=(2, 3))
    assert found[0].tolist() == [pytest.approx((first / (first + 5)).item()), pytest.approx(4 / 6)]
    # One head of two channels weighs both by the same patch.
    found = attentive([[0.0, 100.0]])(tokens, grid=(2, 3))
    assert found[0].tolist() == pytest.approx([0.0, 4.0])


def test_attentive_pooling__is_blind_to_padding():
    tokens, changed = torch.randn(1, 8, 2), torch.randn(1, 8, 2)
    real = [2, 3, 5, 6]  # two of three columns in each of two rows, behind the prefix
    changed[:, real] = tokens[:, real]
    pooling = attentive([[2.0, -1.0]])
    options = {"grid": (2, 3), "real_columns": torch.tensor([2])}
    torch.testing.assert_close(pooling(changed, **options), pooling(tokens, **options))
    assert not torch.allclose(pooling(changed, grid=(2, 3)), pooling(tokens, grid=(2, 3)))
