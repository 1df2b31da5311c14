from __future__ import annotations

import re

import numpy as np

from tymbal.evaluation.scoring import LabelledScores
from tymbal.reporting.classifier_part import confusion

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
