"""Pooling on tokens whose means are known."""

from __future__ import annotations

import pytest
import torch

from tymbal.errors import SettingsError
from tymbal.models.encoder import EncoderConfig
from tymbal.models.pooling import pool, pooled_width

TOKENS = torch.tensor(
    [[[10.0], [20.0], [1.0], [2.0], [3.0], [5.0], [6.0], [7.0]]]
)  # 2 prefix tokens, 2 rows x 3 columns


@pytest.mark.parametrize(("how", "expected"), [("mean", [4.0]), ("rows", [2.0, 6.0]), ("cls", [15.0])])
def test_pool__takes_the_right_mean(how, expected):
    assert pool(TOKENS, how=how, grid=(2, 3)).tolist() == [expected]


@pytest.mark.parametrize(("how", "expected"), [("mean", [3.5]), ("rows", [1.5, 5.5]), ("cls", [15.0])])
def test_pool__leaves_out_padding(how, expected):
    assert pool(TOKENS, how=how, grid=(2, 3), real_columns=torch.tensor([2])).tolist() == [expected]


def test_pool__names_the_ways_there_are():
    with pytest.raises(SettingsError, match="mean, rows, cls"):
        pool(TOKENS, how="max", grid=(2, 3))


def test_pooled_width__counts_rows():
    config = EncoderConfig(width=8, depth=1, heads=1, mels=64, frames=32)
    assert [pooled_width(how, config) for how in ("mean", "rows", "cls")] == [8, 32, 8]
