from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tymbal.evaluation.scoring import draw_confusion, write_confusion, write_decisions

MATRIX = np.array([[8, 2, 0], [0, 5, 0], [3, 3, 0]])
NAMES = ["Möwe, die", "bee", "海"]


def test_write_confusion__is_a_table_of_truth_and_prediction(tmp_path: Path) -> None:
    write_confusion(tmp_path / "confusion.csv", MATRIX, NAMES)
    lines = (tmp_path / "confusion.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ['truth,"Möwe, die",bee,海', '"Möwe, die",8,2,0', "bee,0,5,0", "海,3,3,0"]


def test_write_decisions__names_what_was_decided(tmp_path: Path) -> None:
    write_decisions(tmp_path / "confusion.csv", np.array([[1, 2], [3, 4], [5, 6], [7, 8]]), NAMES[:2])
    lines = (tmp_path / "confusion.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "class,hits,misses,false_alarms,rejections"
    assert lines[2] == "bee,2,6,4,8"


def test_draw_confusion__shades_cells_by_their_share_of_the_row(tmp_path: Path) -> None:
    draw_confusion(tmp_path / "confusion.png", MATRIX, NAMES, title="21 clips")
    picture = np.asarray(Image.open(tmp_path / "confusion.png").convert("L"), dtype=float)
    # The matrix is the last 3 x 64 pixels before the margin on the bottom; its corner pixels are free of numbers.
    bottom = picture.shape[0] - 28
    background = picture[bottom - 2]
    left = int(np.flatnonzero(background < 250)[0])
    corners = picture[bottom - 3 * 64 + 3 : bottom : 64, left + 3 : left + 3 * 64 : 64]
    shades = corners.max() - corners
    assert shades == pytest.approx(shades.max() * np.array([[0.8, 0.2, 0], [0, 1, 0], [0.5, 0.5, 0]]), abs=3)
    assert shades.max() > 100


@pytest.mark.parametrize("classes", [1, 200, 700])
def test_draw_confusion__of_few_and_of_many_classes(classes: int, tmp_path: Path) -> None:
    names = [f"a name that is too long to be shown in a picture {number}" for number in range(classes)]
    draw_confusion(tmp_path / "confusion.png", np.eye(classes, dtype=int), names, title="a title")
    width, height = Image.open(tmp_path / "confusion.png").size
    assert max(width, height) < 2400
