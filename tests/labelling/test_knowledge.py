"""What is known by now: the curve, what surprised, what is left, and the advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tymbal.labelling.head import Examples
from tymbal.labelling.knowledge import History, Knowledge, history_of, share_of, what_is_known
from tymbal.labelling.table import Answer
from tymbal.labelling.windows import Windows

LABELS = ("a", "b")
SEPARATE = 4.0


def windows(folder: Path, truth: np.ndarray, *, apart: float = SEPARATE) -> Windows:
    """Windows of noise, of which those with a label are shifted along an axis of it."""
    values = np.random.default_rng(1).normal(size=(len(truth), 16)).astype(np.float32)
    values[:, : truth.shape[1]] += apart * truth
    columns = {
        "file": [f"/nights/{row // 10}.wav" for row in range(len(truth))],
        "start": np.arange(len(truth)) % 10 * 2.0,
        "end": np.arange(len(truth)) % 10 * 2.0 + 1.0,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 16),
    }
    pq.write_table(pa.table(columns), folder / "windows.parquet")
    return Windows(folder / "windows.parquet", most=len(truth), seed=0)


def rare(count: int) -> np.ndarray:
    """Which windows have which label: one in five of each."""
    return np.arange(count)[:, None] % 5 == np.array([0, 1])


def examples(places: Sequence[int], truth: np.ndarray, *, several: bool = True) -> Examples:
    return Examples(np.array(places), truth[list(places)], LABELS, several)


def answers(held: Windows, places: Sequence[int], truth: np.ndarray, *, check: bool = False) -> list[Answer]:
    """What a person answers who knows all."""
    named = [tuple(name for name, has in zip(LABELS, truth[place], strict=True) if has) for place in places]
    return [
        Answer(held.window(place), names, check=check)
        if names
        else Answer(held.window(place), kind="nothing", check=check)
        for place, names in zip(places, named, strict=True)
    ]


@pytest.fixture
def estimate(left: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left, as a test has it."""
    monkeypatch.setattr("tymbal.labelling.knowledge._undiscovered", lambda *_: left)


def test_history__the_curve_of_the_blind_sample_rises_to_what_is_told_apart(tmp_path: Path) -> None:
    truth = rare(400)
    held = windows(tmp_path, truth)
    found = history_of(held, examples(range(200), truth), answers(held, range(200, 300), truth, check=True))
    assert found.curve_name == "mAP on the blind sample"
    assert found.curve[0][0] == 10 and found.curve[-1][0] == 200
    assert found.curve[-1][1] > 0.95
    assert found.changed is not None and found.changed <= 10


def test_history__without_a_blind_sample_tells_how_many_answers_were_expected(tmp_path: Path) -> None:
    truth = rare(400)
    held = windows(tmp_path, truth)
    found = history_of(held, examples(range(150), truth), [])
    assert found.curve_name == "answers that were expected"
    assert found.curve[0][0] == 10
    assert found.curve[-1][1] >= 0.9


def test_history__answers_that_nobody_could_expect_change_much(tmp_path: Path) -> None:
    truth = np.random.default_rng(3).random((400, 2)) < 0.5
    held = windows(tmp_path, truth, apart=0.0)
    found = history_of(held, examples(range(200), truth), [])
    assert found.changed is not None and found.changed > 50


def test_history__of_few_answers_is_not_known(tmp_path: Path) -> None:
    truth = rare(60)
    held = windows(tmp_path, truth)
    assert history_of(held, examples(range(19), truth), []) == History()


def test_known__what_is_left_is_about_what_is_left(tmp_path: Path) -> None:
    truth = rare(2000)
    held = windows(tmp_path, truth)
    taught, checks = examples(range(300), truth), answers(held, range(300, 500), truth, check=True)
    given = {one.window.row: one for one in [*answers(held, range(300), truth), *checks]}
    known = what_is_known(held, given, taught, taught.head(held), History())
    # 800 of 2,000 have a label, 200 of them are known.
    assert known.undiscovered == pytest.approx(0.75, abs=0.05)
    assert known.checked == 200 and known.counts == {"a": 100, "b": 100}


def test_known__where_each_has_a_label_what_is_left_are_labels_seen_once(tmp_path: Path) -> None:
    truth = np.arange(200)[:, None] % 2 == np.array([0, 1])
    held = windows(tmp_path, truth)
    taught, checks = examples(range(100), truth, several=False), answers(held, range(100, 160), truth, check=True)
    once = replace(checks[0], labels=("rare one",))
    given = {one.window.row: one for one in [once, *checks[1:]]}
    known = what_is_known(held, given, taught, taught.head(held), History())
    assert known.undiscovered == pytest.approx(1 / 60)


def test_known__too_small_a_sample_tells_nothing_of_what_is_left(tmp_path: Path) -> None:
    truth = rare(200)
    held = windows(tmp_path, truth)
    taught, checks = examples(range(100), truth), answers(held, range(100, 149), truth, check=True)
    known = what_is_known(held, {one.window.row: one for one in checks}, taught, taught.head(held), History())
    assert known.undiscovered is None and known.measured["a"].recall is not None


@pytest.mark.parametrize(
    ("answered", "checked", "changed", "left", "advice"),
    [
        (0, 0, None, None, "Begin with an example"),
        (3, 0, None, None, "Answer windows of another kind"),
        (60, 0, None, None, "Go on: after some hundred answers"),
        (160, 0, 6, None, "Go on: 6 of the last 100"),
        (160, 20, 5, None, "Answer the blind sample: 30 more"),
        (160, 50, 5, 0.4, "about 40 % of what is there is not labelled"),
        (160, 50, 5, 0.05, "Further answers change little"),
    ],
)
@pytest.mark.usefixtures("estimate")
def test_known__advice_follows_what_is_known(
    answered: int, checked: int, changed: int | None, *, advice: str, tmp_path: Path
) -> None:
    truth = rare(400)
    truth[1:4] = truth[0]  # the first windows are of one kind
    held = windows(tmp_path, truth)
    taught = examples(range(answered), truth)
    head = None if answered < 10 else taught.head(held)
    given = {one.window.row: one for one in answers(held, range(200, 200 + checked), truth, check=True)}
    known = what_is_known(held, given, taught, head, History(changed=changed))
    assert advice in known.advice and known.enough is (checked == 50)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_share__has_the_interval_of_wilson(hits: int, count: int, low: float, high: float) -> None:
    assert share_of(hits, count) == pytest.approx((hits / count, low, high), abs=1e-4)
    assert share_of(0, 0) is None


def test_known__of_nothing_is_nothing(tmp_path: Path) -> None:
    truth = rare(50)
    held = windows(tmp_path, truth)
    known = what_is_known(held, {}, examples([], truth), None, History())
    assert known == Knowledge(counts={"a": 0, "b": 0}, advice=known.advice)
