"""Chooses the masked patches: clusters, single patches or whole columns of time.

SSAST's masks (Gong et al. 2022, section 3.2) with its faults left out: every patch, corners included, is masked equally
often; the number of masked patches is exact; all clips of a batch are drawn at once, by sorting instead of by trying
until it fits; and what cannot be met is refused with what could.

A cluster is a square of 3 to 5 patches a side (one side a clip). Clusters lie on a torus, that is, they wrap around
both edges of the grid: no place on a torus is special, hence the equal chances. A draw gives every place a random rank;
a patch takes the best rank of all squares that cover it; the best patches are masked. So clusters come one after the
other in the order of their ranks until the number is reached, and of the last one only random patches are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tymbal.errors import SettingsError
from tymbal.randomness import BITS, bits

__all__ = ["CLUSTER", "Masks", "count_from", "make_masks"]

CLUSTER = (3, 5)
"""Shortest and longest side of a cluster, in patches."""

_SIDE, _RANK, _TIE = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class Masks:
    """Masked patches of a batch.

    Attributes:
        index: Numbers of the masked patches, ascending: int64 [batch, masked].
        valid: Which of them count: bool [batch, masked]. False only where a clip is partly padding and `masked` is more
            than its share; `index` then lists a patch of padding to keep the shape, which is not learned from.
        mask: The same as a picture: bool [batch, patches], true where `index` is valid.
    """

    index: Tensor
    valid: Tensor
    mask: Tensor

    @property
    def visible(self) -> Tensor:
        """Numbers of the patches that `index` does not list, ascending: int64 [batch, patches - masked].

        Their number is the same for every clip. All of a clip's sound that is not masked is among them; where it is
        fewer, patches of padding fill up, and the rest of the padding, listed in `index`, is simply not shown.
        """
        listed = torch.zeros_like(self.mask, dtype=torch.uint8).scatter(1, self.index, 1)
        return listed.argsort(dim=1, stable=True)[:, : self.mask.shape[1] - self.index.shape[1]]


def count_from(grid: tuple[int, int], *, kind: str, ratio: float | None = None, count: int | None = None) -> int:
    """Number of patches to mask, from a ratio or a count.

    Args:
        grid: Rows and columns of patches.
        kind: `cluster`, `uniform` or `frame`; with `frame`, the number is a multiple of the rows.
        ratio: Fraction of the patches, rounded to what is possible.
        count: Number of patches, taken as it is; wins over `ratio`.

    Raises:
        SettingsError: Where less than one patch (column) is masked or less than one is left. It says what would fit.
    """
    rows, columns = grid
    unit, units, name = (rows, columns, "columns of time") if kind == "frame" else (1, rows * columns, "patches")
    size = f"a clip has {units} {name}" + (f" of {rows} patches" if kind == "frame" else "")
    if units < 2:
        raise SettingsError(f"nothing can be masked: {size}", advice="Use longer clips or smaller patches.")
    largest = (units - 1) * unit
    if count is not None:
        if count % unit:
            below = max(count // unit, 1) * unit
            raise SettingsError(
                f"mask_count is {count}, but {size} and only whole columns are masked",
                advice=f"The nearest count is {min(below, largest)}; or use mask uniform.",
            )
        if not unit <= count <= largest:
            raise SettingsError(
                f"mask_count is {count}, but {size}, of which at least one must stay visible",
                advice=f"Set mask_count to {unit} to {largest}, or mask_ratio to at most {_floor(largest, grid)}.",
            )
        return count
    if ratio is None:
        raise ValueError("give a ratio or a count")
    chosen = round(ratio * units) * unit
    if not unit <= chosen <= largest:
        raise SettingsError(
            f"mask_ratio is {ratio:g}, which masks {chosen} patches, but {size}, of which at least one must be masked "
            "and one stay visible",
            advice=f"Set mask_ratio from {unit / (rows * columns):.3g} to {_floor(largest, grid)}.",
        )
    return chosen


def make_masks(
    keys: Tensor,
    grid: tuple[int, int],
    *,
    kind: str,
    count: int,
    cluster: tuple[int, int] = CLUSTER,
    real_columns: Tensor | None = None,
) -> Masks:
    """Draws masks for a batch.

    Args:
        keys: A key a clip (`randomness.fold`), int64 [batch]; equal keys give equal masks.
        grid: Rows and columns of patches.
        kind: `cluster`, `uniform` or `frame`.
        count: Masked patches a clip, from `count_from`.
        cluster: Shortest and longest side of a cluster.
        real_columns: Columns at the start of each clip that hold sound, int64 [batch]. Only these are then masked,
            in the same proportion, at least one patch (one column of `frame`). `None` takes all columns.

    Returns:
        Masks with `count` patches a clip.

    Raises:
        SettingsError: For an unknown kind.
    """
    rows, columns = grid
    if real_columns is None:
        real_columns = torch.full_like(keys, columns)
    column = torch.arange(columns, device=keys.device)
    real = (column < real_columns.unsqueeze(1)).unsqueeze(1).expand(-1, rows, -1).flatten(1)  # [batch, patches]
    if kind == "cluster":
        rank = _cluster_rank(keys, grid, cluster, real_columns)
    elif kind == "uniform":
        rank = bits(keys, rows * columns, stream=_RANK)
    elif kind == "frame":
        rank = bits(keys, columns, stream=_RANK).repeat(1, rows)
    else:
        raise SettingsError(f"mask is {kind!r}", advice="Set mask to cluster, uniform or frame.")
    if kind == "frame":
        share = (count // rows * real_columns // columns).clamp(min=1) * rows
        tie = column.repeat(rows).unsqueeze(0)  # equal ranks: a column stays whole
    else:
        share = (count * real_columns // columns).clamp(min=1)
        tie = bits(keys, rows * columns, stream=_TIE)
    order = torch.where(real, (rank << BITS) + tie, -1)
    counts = torch.arange(count, device=keys.device) < share.unsqueeze(1)
    mask = torch.zeros_like(real).scatter(1, order.topk(count, dim=1).indices, counts)
    # What is missing from the number is listed from the padding, so that all sound but the masked stays off the list.
    order = torch.where(mask, 1 << BITS, torch.where(real, -1, tie))
    index = order.topk(count, dim=1).indices.sort(dim=1).values
    return Masks(index, mask.gather(1, index), mask)


def _cluster_rank(keys: Tensor, grid: tuple[int, int], cluster: tuple[int, int], real_columns: Tensor) -> Tensor:
    """Best rank of all squares over a patch: int64 [batch, patches].

    A square is the place it starts from and the `side` places on, in both directions, around the edges; along time the
    edge is that of the real columns. The maximum over a square is that over its rows, then over its columns.
    """
    rows, columns = grid
    shortest, longest = cluster
    side = shortest + (bits(keys, 1, stream=_SIDE) * (longest - shortest + 1) >> BITS).unsqueeze(2)  # [batch, 1, 1]
    rank = bits(keys, rows * columns, stream=_RANK).view(-1, rows, columns)
    best = rank
    for step in range(1, longest):
        best = torch.where(side > step, torch.maximum(best, rank.roll(step, dims=1)), best)
    rank = best
    column = torch.arange(columns, device=keys.device).unsqueeze(0)
    for step in range(1, longest):
        source = ((column - step) % real_columns.unsqueeze(1)).unsqueeze(1).expand_as(rank)
        best = torch.where(side > step, torch.maximum(best, rank.gather(2, source)), best)
    return best.flatten(1)


def _floor(count: int, grid: tuple[int, int]) -> str:
    """A ratio with three decimals that does not round up to more than `count` patches."""
    return f"{int(1000 * count / (grid[0] * grid[1])) / 1000:g}"
