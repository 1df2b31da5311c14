"""The picture of benchmarks/views_learning.py: what each pretraining is worth, by data set, pooling and reader."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _learning import DATA, Figures

__all__ = ["draw"]

TITLES = {"rows": "rows of mel bins kept apart", "mean": "mean over all patches"}
READERS = {"accuracy": ("linear probe", "#2f6f73", "o"), "knn": ("nearest neighbours", "#b3483d", "s")}
APART = 0.17


def draw(figures: Figures, names: Sequence[str], path: Path) -> None:
    """Draws mean and standard deviation over the seeds of every arm into a PNG file."""
    import matplotlib.pyplot as plt

    poolings = list(dict.fromkeys(row["pooling"] for row in figures.rows if "pooling" in row))
    arms = list(dict.fromkeys(row["arm"] for row in figures.rows if "pooling" in row))
    plt.rcParams.update({"font.size": 9, "figure.facecolor": "white", "savefig.facecolor": "white"})
    height = 1.1 + 0.26 * len(arms) * len(poolings)
    figure, grid = plt.subplots(
        len(poolings), len(names), figsize=(10, height), sharex="col", sharey=True, squeeze=False, layout="constrained"
    )
    for line, pooling in zip(grid, poolings, strict=True):
        for axes, name in zip(line, names, strict=True):
            panel(axes, figures.have(data=name, pooling=pooling), arms)
            axes.set_title(f"{DATA[name].title}: {TITLES[pooling]}", loc="left", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("accuracy on the tested clips, %")
    seeds = max(len(figures.have(arm=arm, pooling=poolings[0], data=name)) for arm in arms for name in names)
    handles, labels = grid[0][0].get_legend_handles_labels()
    spread = f"mean ± standard deviation of {seeds} seeds; the line is random weights"
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=spread, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def panel(axes: Any, rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> None:
    """One data set and pooling: a line an arm, both readers in it."""
    for (reader, (label, colour, marker)), side in zip(READERS.items(), (-APART, APART), strict=True):
        values = [[100 * row[reader] for row in rows if row["arm"] == arm] for arm in arms]
        there = [(place + side, found) for place, found in enumerate(values) if found]
        means = [statistics.fmean(found) for _, found in there]
        spreads = [statistics.stdev(found) if len(found) > 1 else 0.0 for _, found in there]
        heights = [height for height, _ in there]
        axes.errorbar(
            means, heights, xerr=spreads, fmt=marker, color=colour, markersize=5, elinewidth=1.2, capsize=2, label=label
        )
        axes.axvline(means[0], color=colour, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
