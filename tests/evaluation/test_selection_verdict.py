"""Whether pretraining has paid, as it is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tymbal.evaluation.probe_tasks import READERS, ProbeRow
from tymbal.evaluation.selection import Verdict, judge

CLIPS = 200


def row(features: str, right: int, **facts: Any) -> ProbeRow:
    """A line of which the first so many of 200 clips are read right."""
    marks = (np.arange(CLIPS) < right).astype(float)
    common = {"pooling": "grid:4", "dimensions": 8, "reader": "logistic", "strength": 1.0}
    figures = {"accuracy": right / CLIPS}
    given = {"marks": marks, "asked": np.arange(CLIPS), "figures": figures, "each": (right / CLIPS,), **common, **facts}
    return ProbeRow(features=features, **given)


def judged(*rows: ProbeRow, groups: list[str] | None = None, multilabel: bool = False) -> Verdict:
    verdict = judge(rows, groups=groups, multilabel=multilabel, readers=READERS)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("model", "said", "pays"),
    [
        (180, "Pretraining pays here: the model reads 90.0 % (grid:4, logistic)", True),
        (161, "No clear gain by pretraining here: the model reads 80.5 %", False),
        (120, "Pretraining does not pay here: the model reads 60.0 %", False),
    ],
)
def test_judge__says_so(model: int, said: str, pays: bool) -> None:
    verdict = judged(row("plain", 160, pooling="clip:4"), row("random", 100), row("model", model))
    assert (verdict.pays, verdict.against, verdict.best) == (pays, "plain", 0.8)
    assert verdict.text().startswith(said)
    assert "the best of plain line and random weights 80.0 % (the plain line, clip:4)" in verdict.text()
    assert verdict.to_json()["pays"] is pays


def test_judge__the_margin_is_that_of_the_paired_clips() -> None:
    verdict = judged(row("plain", 100), row("random", 160), row("model", 180))
    assert verdict.against == "random"
    difference = (np.arange(CLIPS) >= 160) & (np.arange(CLIPS) < 180)
    assert verdict.margin == pytest.approx(1.96 * difference.std(ddof=1) / np.sqrt(CLIPS))
    assert verdict.text().endswith("+10.0 points, 95 % margin ± 4.2 (clips as independent).")
    groups = [str(place // 20) for place in range(CLIPS)]
    of_groups = judged(row("random", 160), row("model", 180), groups=groups)
    assert of_groups.groups == 10
    assert not of_groups.pays  # one group of ten has gained
    assert "(10 groups)" in of_groups.text()


def test_judge__lines_are_taken_without_a_look_at_their_figures() -> None:
    rows = [
        row("plain", 120, pooling="clip:4"),
        row("random", 100, pooling="rows"),
        row("random", 90),
        row("random", 110, layer="both"),
        row("random", 199, reader="knn"),
        row("model", 199, pooling="rows"),
        row("model", 150),
        row("model", 198, layer=2),
        row("model", 140, layer="both"),
        row("model", 199, shots=5),
        row("model+plain", 199),
    ]
    verdict = judged(*rows)
    assert (verdict.model, verdict.against, verdict.best) == (0.7, "plain", 0.6)


def test_judge__clips_that_both_were_asked_about() -> None:
    later = row("model", 180, asked=np.arange(CLIPS) + 100)
    difference = later.marks[:100] - row("plain", 160).marks[100:]
    verdict = judged(row("plain", 160), later)
    assert verdict.margin == pytest.approx(1.96 * difference.std(ddof=1) / 10)


def test_judge__several_labels() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((CLIPS, 3)) < 0.4
    lines = []
    for name, noise in (("plain", 2.0), ("model", 0.4)):
        scores = truth + generator.normal(scale=noise, size=truth.shape)
        lines.append(row(name, 100, marks=None, scores=scores, truth=truth, figures={"mAP": 0.9 if noise < 1 else 0.5}))
    verdict = judged(*lines, multilabel=True)
    assert 0.02 < verdict.margin < 0.15
    assert verdict.pays
    folds = [row(name, 100, marks=None, each=each, figures={"mAP": np.mean(each)}) for name, each in
             (("plain", (0.5, 0.6, 0.4)), ("model", (0.8, 0.9, 0.8)))]  # fmt: skip
    assert judged(*folds, multilabel=True).margin == pytest.approx(4.3027 * 0.0577 / np.sqrt(3), rel=1e-2)


def test_judge__what_it_is_compared_with_is_read_by_whichever_reads_it_best() -> None:
    lines = [row("plain", 150), replace(row("plain", 170), reader="ridge"), replace(row("random", 160), reader="ridge")]
    verdict = judged(*lines, row("model", 180), replace(row("model", 165), reader="ridge"))
    assert (verdict.reader, verdict.model) == ("ridge", 0.825)
    assert (verdict.against, verdict.best, verdict.against_reader) == ("plain", 0.85, "")
    lines[0] = row("plain", 178)
    verdict = judged(*lines, replace(row("model", 180), reader="ridge"))
    assert (verdict.best, verdict.against_reader) == (0.89, "logistic")
    assert "89.0 % (the plain line, " in verdict.text()
    assert ", logistic)" in verdict.text()


def test_judge__nothing_to_compare_with() -> None:
    assert judge([row("model", 100)], groups=None, multilabel=False, readers=READERS) is None
    assert judge([row("plain", 100)], groups=None, multilabel=False, readers=READERS) is None
