"""Masks: the number is exact, the chances are equal, padding is left alone, and what cannot be is said."""

from __future__ import annotations

import pytest
import torch

from tymbal.errors import SettingsError
from tymbal.objectives.masks import count_from, make_masks
from tymbal.randomness import fold

DRAWS = 6000


def draw(kind: str, grid: tuple[int, int], count: int, **options: object):
    return make_masks(fold(1, torch.arange(DRAWS)), grid, kind=kind, count=count, **options)


@pytest.mark.parametrize("kind", ["cluster", "uniform", "frame"])
@pytest.mark.parametrize(("grid", "count"), [((8, 64), 400), ((8, 6), 32), ((1, 64), 20), ((2, 3), 4)])
def test_masks__number_is_exact_and_every_patch_is_as_likely(kind, grid, count):
    masks = draw(kind, grid, count)
    assert masks.index.shape == (DRAWS, count)
    assert (masks.mask.sum(1) == count).all()
    assert masks.valid.all()
    rate = masks.mask.double().mean(0)
    ratio = count / (grid[0] * grid[1])
    # Draws are independent of each other: the rate of a patch scatters with sigma. The largest of N patches stays
    # within 5 sigma but for one case in 10^6 / N. Corners and edges are patches like all others.
    sigma = (ratio * (1 - ratio) / DRAWS) ** 0.5
    assert (rate - ratio).abs().max() < 5 * sigma
    corners = rate.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners - ratio).abs().max() < 4.5 * sigma


@pytest.mark.parametrize("kind", ["cluster", "uniform", "frame"])
def test_masks__index_is_sorted_and_agrees_with_the_picture(kind):
    masks = draw(kind, (4, 10), 24, real_columns=torch.arange(DRAWS) % 10 + 1)
    assert (masks.index.diff(dim=1) > 0).all()
    again = torch.zeros_like(masks.mask)
    for clip in range(50):
        again[clip, masks.index[clip, masks.valid[clip]]] = True
    assert torch.equal(again[:50], masks.mask[:50])


def test_masks__clusters_are_squares_of_three_to_five():
    # One square fits into 9 patches: the first nine masked are a 3 x 3 square, or a part of a larger one.
    mask = draw("cluster", (16, 32), 9).mask.view(-1, 16, 32)
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    three = (rows == 3) & (columns == 3)
    assert abs(three.double().mean() - 1 / 3) < 5 * (2 / 9 / DRAWS) ** 0.5
    assert rows.max() == columns.max() == 5
    starts = mask[three].double().mean(0)
    assert abs(starts.std() / starts.mean()) < 0.5  # everywhere, also around the edges


def test_masks__neighbours_are_masked_together_in_clusters_only():
    together = {}
    for kind in ("cluster", "uniform"):
        mask = draw(kind, (8, 32), 128).mask.view(-1, 8, 32)
        together[kind] = (mask[:, 3, 10] & mask[:, 3, 11]).double().mean().item()
    # Half of the patches: independent neighbours are both masked in a quarter of the clips.
    assert abs(together["uniform"] - 0.25) < 0.03
    assert together["cluster"] > 0.35


def test_masks__frame_masks_whole_columns():
    mask = draw("frame", (4, 10), 24).mask.view(-1, 4, 10)
    assert torch.equal(mask.all(1), mask.any(1))
    assert (mask.any(1).sum(1) == 6).all()


@pytest.mark.parametrize("kind", ["cluster", "uniform", "frame"])
def test_masks__padding_is_not_masked_and_the_rest_is_as_likely(kind):
    real = torch.full((DRAWS,), 5)
    masks = draw(kind, (4, 8), 24, real_columns=real)
    mask = masks.mask.view(-1, 4, 8)
    assert not mask[:, :, 5:].any()
    share = 24 // 4 * 5 // 8 * 4 if kind == "frame" else 24 * 5 // 8
    assert (masks.valid.sum(1) == share).all()
    rate, ratio = mask[:, :, :5].double().mean(0), share / 20
    assert (rate - ratio).abs().max() < 5 * (ratio * (1 - ratio) / DRAWS) ** 0.5


@pytest.mark.parametrize("kind", ["cluster", "uniform", "frame"])
@pytest.mark.parametrize("count", [8, 24, 28])
def test_masks__visible_are_equally_many_and_hold_all_sound_that_is_not_masked(kind, count):
    real = torch.arange(DRAWS) % 8 + 1
    masks = draw(kind, (4, 8), count, real_columns=real)
    visible = masks.visible
    assert visible.shape == (DRAWS, 32 - count)
    assert (visible.diff(dim=1) > 0).all()
    shown = torch.zeros(DRAWS, 32, dtype=torch.bool).scatter(1, visible, value=True)
    assert torch.equal(shown.scatter(1, masks.index, value=True).sum(1), torch.full((DRAWS,), 32))
    sound = (torch.arange(8) < real[:, None]).unsqueeze(1).expand(-1, 4, -1).flatten(1)
    assert torch.equal(shown & sound, ~masks.mask & sound)
    assert (masks.mask <= sound).all()


def test_masks__cluster_sides_are_those_asked_for():
    mask = draw("cluster", (16, 32), 4, cluster=(2, 2)).mask.view(-1, 16, 32)
    assert set(zip(mask.any(2).sum(1).tolist(), mask.any(1).sum(1).tolist(), strict=True)) == {(2, 2)}


@pytest.mark.parametrize("kind", ["cluster", "uniform", "frame"])
def test_masks__the_shortest_clip_keeps_one_masked(kind):
    masks = draw(kind, (4, 8), 8, real_columns=torch.ones(DRAWS, dtype=torch.int64))
    assert (masks.valid.sum(1) == (4 if kind == "frame" else 1)).all()
    assert not masks.mask.view(-1, 4, 8)[:, :, 1:].any()


def test_masks__repeat_by_key_in_any_batch():
    keys = fold(3, torch.arange(20))
    whole = make_masks(keys, (8, 12), kind="cluster", count=60)
    part = make_masks(keys[7:9], (8, 12), kind="cluster", count=60)
    assert torch.equal(whole.index[7:9], part.index)
    assert len({tuple(row.tolist()) for row in whole.index}) == 20


@pytest.mark.parametrize(
    ("kind", "ask", "expected"),
    [
        ("cluster", {"ratio": 0.75}, 36),
        ("uniform", {"count": 47}, 47),
        ("frame", {"ratio": 0.75}, 32),  # 4.5 columns of 6: rounded to 4
        ("frame", {"count": 40}, 40),
        ("cluster", {"ratio": 0.9, "count": 5}, 5),
    ],
)
def test_count_from__gives_what_was_asked_for(kind, ask, expected):
    assert count_from((8, 6), kind=kind, **ask) == expected


@pytest.mark.parametrize(
    ("kind", "ask", "message"),
    [
        ("cluster", {"count": 400}, r"48 patches.*\n.*mask_count to 1 to 47, or mask_ratio to at most 0.979"),
        ("uniform", {"count": 48}, "1 to 47"),
        ("uniform", {"count": 0}, "1 to 47"),
        ("frame", {"count": 48}, "8 to 40, or mask_ratio to at most 0.833"),
        ("frame", {"count": 30}, "nearest count is 24"),
        ("frame", {"count": 3}, "nearest count is 8"),
        ("uniform", {"ratio": 0.999}, "mask_ratio from 0.0208 to 0.979"),
        ("frame", {"ratio": 0.05}, "mask_ratio from 0.167 to 0.833"),
    ],
)
def test_count_from__says_what_would_fit(kind, ask, message):
    with pytest.raises(SettingsError, match=f"(?s){message}"):
        count_from((8, 6), kind=kind, **ask)


def test_count_from__what_it_advises_fits():
    for grid in [(8, 6), (1, 3), (3, 7), (12, 101)]:
        largest = grid[0] * grid[1] - 1
        assert count_from(grid, kind="uniform", ratio=int(1000 * largest / (largest + 1)) / 1000) <= largest


def test_count_from__a_single_patch_cannot_be_masked():
    with pytest.raises(SettingsError, match="nothing can be masked"):
        count_from((1, 1), kind="uniform", ratio=0.5)


def test_masks__unknown_kind_is_named():
    with pytest.raises(SettingsError, match="'block'"):
        draw("block", (8, 6), 4)
