"""Tables of names: which of ours is which of theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

__all__ = ["expand", "rename"]


def expand(table: Iterable[tuple[str, str]], depth: int) -> dict[str, str]:
    """Writes a table out: `{n}` stands for the number of a block, `.*` for `.weight` and `.bias`.

    Args:
        table: Pairs of a name of ours and one of theirs.
        depth: Number of blocks.

    Returns:
        Ours to theirs, each a name of a tensor.
    """
    names = {}
    for ours, theirs in table:
        for ending in ("weight", "bias") if ours.endswith(".*") else ("*",):
            for n in range(depth) if "{n}" in ours else (0,):
                pair = [text.replace("{n}", str(n)).replace("*", ending) for text in (ours, theirs)]
                names[pair[0]] = pair[1]
    return names


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Renames tensors by a table of old to new names; also gives the old names that it lacks."""
    renamed = {names[name]: value for name, value in tensors.items() if name in names}
    return renamed, tuple(name for name in tensors if name not in names)
