"""Which patches are masked how often? Tymbal's masks and those of SSAST's algorithm, side by side.

    python benchmarks/mask_statistics.py
    python benchmarks/mask_statistics.py --draws 400 --output masks.png

400 of the 512 patches of a clip of 1024 frames are masked in clusters, as SSAST is pretrained. A fair draw masks every
patch in 400 of 512 clips, 78 %. SSAST's masks low mel bins half as often as high ones, and two corners never: a cluster
grows upwards from where it starts, so that few reach the lowest row; what runs over a row's end lands in the next row;
and of too many patches those with the highest numbers are dropped. Ours lie on a torus, where no place is special.

Prints the rate of every mel row and draws one mask each, the rates by patch and the rates by row.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from _ssast_reference import draw_cluster
from tymbal.objectives.masks import make_masks
from tymbal.randomness import fold

GRID, COUNT = (8, 64), 400
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "masks.png"
REFERENCE, OURS = "SSAST's algorithm", "Tymbal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="masks of each kind")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the picture")
    arguments = parser.parse_args()
    masks = {REFERENCE: reference_masks(arguments.draws), OURS: our_masks(arguments.draws)}
    print("\n".join(table(masks)))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(masks, arguments.output)
    print(f"\n{arguments.output}")


def reference_masks(draws: int) -> NDArray[np.bool_]:
    """Masks of the reference's algorithm, [draws, rows, columns]."""
    source = random.Random(0)
    masks = np.zeros((draws, GRID[0] * GRID[1]), dtype=bool)
    for mask in masks:
        mask[draw_cluster(len(mask), GRID[1], COUNT, source)] = True
    return masks.reshape(draws, *GRID)


def our_masks(draws: int) -> NDArray[np.bool_]:
    """Ours, [draws, rows, columns]."""
    masks = make_masks(fold(0, torch.arange(draws)), GRID, kind="cluster", count=COUNT)
    return masks.mask.view(draws, *GRID).numpy()


def table(masks: dict[str, NDArray[np.bool_]]) -> list[str]:
    """Mask rates by mel row, and the extremes by patch."""
    fair, draws = COUNT / (GRID[0] * GRID[1]), len(masks[OURS])
    deviation = (fair * (1 - fair) / draws) ** 0.5
    lines = [
        f"{COUNT} of {GRID[0]} x {GRID[1]} patches, {draws:,} masks; fair: {fair:.3f} +- {deviation:.3f} by patch",
        f"{'mel row, low to high':<22}"
        + "".join(f"{row:>7}" for row in range(GRID[0]))
        + "   rarest patch   most often",
    ]
    for name, drawn in masks.items():
        by_patch = drawn.mean(0)
        rows = "".join(f"{rate:>7.3f}" for rate in by_patch.mean(1))
        lines.append(f"{name:<22}{rows}{by_patch.min():>15.3f}{by_patch.max():>13.3f}")
    return lines


def draw(masks: dict[str, NDArray[np.bool_]], path: Path) -> None:
    """Draws one mask, the rates by patch and the rates by row of each into one picture."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    fair = COUNT / (GRID[0] * GRID[1])
    scale = TwoSlopeNorm(vcenter=fair, vmin=0, vmax=1)
    plt.rcParams.update({"font.size": 9, "figure.facecolor": "white", "savefig.facecolor": "white"})
    figure = plt.figure(figsize=(10, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.6, 1))
    axes = left.subplots(4, 1, sharex=True)
    for (name, drawn), single, rates in zip(masks.items(), axes[:2], axes[2:], strict=True):
        shown = {"origin": "lower", "aspect": "auto", "extent": (0, GRID[1], 0, GRID[0])}
        single.imshow(drawn[0], cmap="Greys", vmin=0, vmax=1.6, **shown)
        single.set_title(f"One mask (masked is grey): {name}", loc="left")
        image = rates.imshow(drawn.mean(0), cmap="RdBu_r", norm=scale, **shown)
        rates.set_title(f"How often each patch is masked: {name}", loc="left")
    for axis in axes:
        axis.set_yticks([0.5, 7.5], ["low", "high"])
        axis.set_ylabel("mel row")
    axes[-1].set_xlabel("time, in patches of 16 frames")
    bar = left.colorbar(image, ax=axes[2:], ticks=[0, 0.2, 0.4, 0.6, fair, 1], label="masked in … of the clips")
    bar.ax.set_yticklabels(["0 %", "20 %", "40 %", "60 %", f"fair: {100 * fair:.0f} %", "100 %"])
    by_row(masks, right.subplots(), fair)
    right.legend(loc="outside lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def by_row(masks: dict[str, NDArray[np.bool_]], axis: Any, fair: float) -> None:
    rows = np.arange(GRID[0])
    axis.axvline(fair, color="0.5", linewidth=1, linestyle="--", label=f"fair: {100 * fair:.1f} %")
    for (name, drawn), colour, marker in zip(masks.items(), ("tab:red", "tab:blue"), ("s", "o"), strict=True):
        axis.plot(drawn.mean((0, 2)), rows, color=colour, marker=marker, label=name)
    axis.set_title("By mel row", loc="left")
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axis.set_xlabel("masked in … of the clips")
    axis.set_yticks(rows, ["0, low", *map(str, rows[1:-1]), f"{rows[-1]}, high"])
    axis.set_ylabel("mel row")
    axis.grid(color="0.9")


if __name__ == "__main__":
    main()
