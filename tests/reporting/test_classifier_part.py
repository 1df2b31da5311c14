from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tones import tone_store
from tymbal.evaluation.scoring import LabelledScores
from tymbal.pages.page import NotShownError
from tymbal.pages.players import Sounds
from tymbal.reporting.classifier_part import by_class, confusion, confusion_matrix, mistakes
from tymbal.reporting.drawn_clips import Clips

CLASSES = ("rain", "robin", "wren")
TRUTH = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
SCORES = np.array([[0.9, 0.2, 0.7], [0.8, 0.1, 0.1], [0.6, 0.9, 0.1], [0.1, 0.1, 0.1], [0.4, 0.7, 0.6]], np.float32)


def page(classes=CLASSES, truth=TRUTH, scores=SCORES) -> str:
    return confusion(LabelledScores(classes, np.arange(len(truth)), truth, scores, multilabel=True))


def cells(row: str) -> list[str]:
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>.*?</t[dh]>", row)]


def test_confusion__several_labels_have_their_decisions_and_what_is_said_beside_them() -> None:
    text = page()
    table = text.split("<tbody>")[1].split("</tbody>")[0]
    assert [cells(row) for row in table.split("</tr>")[:-1]] == [
        ["rain", "3", "2", "1", "1", "67 %", "92 %"],
        ["robin", "3", "2", "1", "0", "80 %", "100 %"],
        ["wren", "0", "0", "0", "2", "-", "-"],
    ]
    matrix = text.split('class="confusion"')[1].split("<tbody>")[1].split("</tbody>")[0]
    assert [cells(row) for row in matrix.split("</tr>")[:-1]] == [
        ["rain", "2", "·", "2"],
        ["robin", "1", "2", "2"],
        ["wren", "·", "·", "·"],
    ]
    assert text.count("<polyline") == 2  # wren has no clip to be found
    assert "hardest" not in text.split("Thresholds")[1].split("</p>")[0]


def test_confusion__of_many_labels_the_hardest_are_drawn() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((60, 30)) < 0.2
    scores = (0.6 * truth + 0.5 * generator.random((60, 30))).astype(np.float32)
    text = page(tuple(f"label {place}" for place in range(30)), truth, scores)
    assert text.count("<polyline") == 15
    assert text.count("<figure") == 3
    assert "of the 15 hardest classes" in text
    assert "Shown are the 20 of 30 classes" in text
    assert text.split('class="confusion"')[1].count('<th scope="row">') == 20


def single(scores: list[list[float]], truth: list[int], classes: tuple[str, ...] = CLASSES) -> LabelledScores:
    """Scores of clips that have one label each."""
    known = np.eye(len(classes), dtype=bool)[truth]
    return LabelledScores(classes, np.arange(len(truth)), known, np.array(scores, np.float32), multilabel=False)


RIGHT, WRONG, SURELY_WRONG = [0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.05, 0.05, 0.9]


def test_confusion__counts_what_is_taken_for_what() -> None:
    text = confusion(single([RIGHT, WRONG, SURELY_WRONG, SURELY_WRONG], [0, 0, 0, 0]))
    matrix = text.split("<tbody>")[1].split("</tbody>")[0]
    assert [cells(row) for row in matrix.split("</tr>")[:-1]] == [
        ["rain", "1", "1", "2"],
        ["robin", "·", "·", "·"],
        ["wren", "·", "·", "·"],
    ]
    assert "rgba(var(--cell),0.18)" in matrix  # a quarter of the clips of its row
    assert "rgba(var(--wrong),0.29)" in matrix
    worst = text.split("Confused most often")[1].split("<tbody>")[1]
    assert [cells(row) for row in worst.split("</tr>")[:2]] == [["rain", "wren", "2"], ["rain", "robin", "1"]]


def test_confusion_matrix__of_many_classes_has_the_worst() -> None:
    counts = 5 * np.eye(30, dtype=np.int64)
    counts[29, 3] = 4
    text = confusion_matrix(counts, [f"c{place}" for place in range(30)])
    assert "what 154 validation clips are" in text
    assert "Shown are the 20 of 30 classes" in text
    rows = re.findall(r'<th scope="row">(c\d+)</th>', text)
    assert len(rows) == 20
    assert {"c3", "c29"} <= set(rows)
    assert "No clip is confused." in confusion_matrix(np.eye(2, dtype=np.int64), ("a", "b"))


def test_by_class__begins_with_the_hardest() -> None:
    text = by_class(single([RIGHT, WRONG, WRONG, SURELY_WRONG], [0, 0, 1, 2]))
    rows = [cells(row) for row in text.split("<tbody>")[1].split("</tr>")[:-1]]
    assert rows == [
        ["robin", "1", "100 %", "50 %", "50 %"],
        ["rain", "2", "50 %", "100 %", "83 %"],
        ["wren", "1", "100 %", "100 %", "100 %"],
    ]
    several = by_class(LabelledScores(CLASSES, np.arange(5), TRUTH, SCORES, multilabel=True))
    rows = [cells(row) for row in several.split("<tbody>")[1].split("</tr>")[:-1]]
    assert rows == [
        ["rain", "3", "67 %", "67 %", "92 %"],
        ["robin", "3", "67 %", "100 %", "100 %"],
        ["wren", "0", "-", "0 %", "-"],
    ]


def test_mistakes__the_surest_comes_first(tmp_path: Path) -> None:
    sounds = Sounds(most=0, seconds=1.0, beside=tmp_path, numbers=count(1))
    clips = Clips(tone_store(tmp_path / "store", clips=2), sounds)
    text = mistakes(single([WRONG, RIGHT, SURELY_WRONG], [0, 0, 1]), clips, most=5)
    titles = re.findall(r"<strong>([^<]*)</strong><div>([^<]*)</div>", text)
    assert titles == [("“wren (90%)”", "is robin (5%)"), ("“robin (50%)”", "is rain (30%)")]
    assert text.count('class="card"') == 2
    with pytest.raises(NotShownError, match="wrong about none"):
        mistakes(single([RIGHT], [0]), clips, most=5)
    several = LabelledScores(CLASSES, np.arange(5), TRUTH, SCORES, multilabel=True)
    said = re.findall(r"<strong>“(\w+) \((\d+)%", mistakes(several, clips, most=5))
    assert said == [("wren", "70"), ("rain", "60"), ("wren", "60")]  # what does not reach 50 % is not said
