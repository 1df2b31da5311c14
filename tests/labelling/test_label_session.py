"""A labelling: what was answered is on the disk, what comes next is what the answers ask for."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from small_model import small_model
from tones import RATE, WINDOW, evening, heard_at, tone
from tymbal.errors import SettingsError
from tymbal.labelling.choosing import CHOICES
from tymbal.labelling.session import Answer, Session, Window
from tymbal.settings import LabelSettings


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evening(tmp_path_factory.mktemp("nights") / "nights")


def _open(encoder: Path, nights: Path, output: Path, **settings: object) -> Session:
    return Session.open(encoder, nights, output, LabelSettings(device="cpu", who="ann", **settings))


def _oracle(window: Window, *, check: bool = False) -> Answer:
    heard = heard_at(window.start)
    return Answer(window, (heard,), check=check) if heard else Answer(window, kind="nothing", check=check)


def _taught(encoder: Path, nights: Path, output: Path, answers: int = 48) -> Session:
    session = _open(encoder, nights, output)
    while len(session.answers) < answers:
        session.answer([_oracle(one.window) for one in session.next(6)])
    return session


def test_answer__is_a_row_of_the_table(encoder: Path, nights: Path, tmp_path: Path) -> None:
    session = _open(encoder, nights, tmp_path / "labels")
    window = session.windows.window(3)
    session.answer([Answer(window, ("low", "high"), start=window.start + 0.1, low=200.0, high=400.0)])
    session.answer(
        [Answer(session.windows.window(4), kind="nothing"), Answer(session.windows.window(5), kind="unsure")]
    )
    with (tmp_path / "labels" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["low", "high", "", "?"]
    assert rows[0] | {"when": ""} == {
        "file": str(nights / "evening-0.wav"),
        "start": f"{3 * WINDOW + 0.1:.3f}",
        "end": f"{4 * WINDOW:.3f}",
        "low": "200.0",
        "high": "400.0",
        "label": "low",
        "who": "ann",
        "when": "",
        "round": "0",
    }


def test_session__goes_on_where_it_was(encoder: Path, nights: Path, tmp_path: Path) -> None:
    session = _taught(encoder, nights, tmp_path / "labels", 24)
    window = session.check(1)[0]
    session.answer([_oracle(window, check=True)])
    again = _open(encoder, nights, tmp_path / "labels")
    assert {row: (one.labels, one.kind, one.check) for row, one in again.answers.items()} == {
        row: (one.labels, one.kind, one.check) for row, one in session.answers.items()
    }
    assert again.last is not None and again.last.window.row == window.row
    assert again.labels == session.labels


def test_answer__replaces_and_undo_brings_back(encoder: Path, nights: Path, tmp_path: Path) -> None:
    session = _open(encoder, nights, tmp_path / "labels")
    first, second = session.windows.window(0), session.windows.window(1)
    session.answer([Answer(first, ("a",)), Answer(second, ("b",))])
    before = session.path.read_text()
    session.answer([Answer(first, ("a",))])
    assert session.path.read_text() == before  # the same again is no change
    session.answer([Answer(first, ("c",))])
    assert session.answers[0].labels == ("c",) and session.last == Answer(first, ("c",))
    assert session.undo() == Answer(first, ("c",))
    assert session.answers[0].labels == ("a",) and session.last == Answer(second, ("b",))


def test_answer__that_contradicts_itself_is_refused(encoder: Path, nights: Path, tmp_path: Path) -> None:
    session = _open(encoder, nights, tmp_path / "labels")
    window = session.windows.window(0)
    for wrong in (Answer(window), Answer(window, ("?",)), Answer(window, ("a",), start=9.0)):
        with pytest.raises(SettingsError):
            session.answer([wrong])
    assert not session.answers and not session.path.exists()


@pytest.mark.parametrize("by", CHOICES)
def test_next__never_gives_neighbours_or_what_was_answered(
    by: str, encoder: Path, nights: Path, tmp_path: Path
) -> None:
    session = _taught(encoder, nights, tmp_path / "labels", 12)
    skipped = {0, 1, 2}
    chosen = [one.window for one in session.next(10, by=by, skip=skipped)]
    rows = {window.row for window in chosen}
    assert len(rows) == 10 and not rows & ({*session.answers} | skipped)
    places = sorted((window.file, round(window.start / WINDOW)) for window in chosen)
    assert all(one[0] != other[0] or other[1] - one[1] > 1 for one, other in itertools.pairwise(places))


def test_next__what_is_like_an_example(encoder: Path, nights: Path, tmp_path: Path) -> None:
    session = _open(encoder, nights, tmp_path / "labels")
    low = next(window for place in range(80) if heard_at((window := session.windows.window(place)).start) == "low")
    assert {heard_at(one.window.start) for one in session.next(5, like=low)} == {"low"}
    vector = session.embed_sound(tone("high", seconds=WINDOW, seed=77), RATE)
    assert {heard_at(one.window.start) for one in session.next(5, vector=vector)} == {"high"}


def test_head__finds_what_it_was_taught(encoder: Path, nights: Path, tmp_path: Path) -> None:
    session = _taught(encoder, nights, tmp_path / "labels")
    head = session.head()
    assert head is not None and set(head.labels) == {"low", "high"}
    heard = np.array([heard_at(start) for start in session.windows.start])
    logits = head.logits(session.windows.vectors)
    for column, label in enumerate(head.labels):
        assert logits[heard == label, column].min() > logits[heard != label, column].max()
    direction = session.direction("low")
    assert direction is not None
    moved = session.windows.projection(np.stack([session.windows.embedding(0) + 0.01 * direction]))
    rise = head.logits(moved) - head.logits(session.windows.vectors[:1])
    assert rise[0, head.labels.index("low")] == pytest.approx(0.01 * float(direction @ direction), rel=0.05)


def test_knowledge__counts_and_measures_by_the_blind_sample(encoder: Path, nights: Path, tmp_path: Path) -> None:
    session = _open(encoder, nights, tmp_path / "labels")
    checked = session.check(20)
    session.answer([_oracle(window, check=True) for window in checked])
    session = _taught(encoder, nights, tmp_path / "labels", 60)
    known = session.knowledge()
    heard = [heard_at(one.window.start) for one in session.answers.values()]
    assert known.counts["low"] == heard.count("low") and known.nothing == heard.count(None)
    assert known.checked == 20
    of_sample = sum(heard_at(window.start) == "low" for window in checked)
    recall = known.measured["low"].recall
    assert recall is not None and recall[0] == 1.0 and recall[2] == 1.0
    assert recall[1] == pytest.approx(
        of_sample / (of_sample + 1.959964**2), abs=1e-6
    )  # Wilson's end where all are hits


def test_session__names_recordings_that_came_later(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nights = evening(tmp_path / "nights", recordings=1)
    _open(encoder, nights, tmp_path / "labels")
    _open(encoder, nights, tmp_path / "labels")
    assert "came after" not in capsys.readouterr().err
    evening(nights, recordings=2)
    session = _open(encoder, nights, tmp_path / "labels")
    assert "1 recording came after the windows were embedded" in capsys.readouterr().err.replace("\n", " ")
    assert len(session.windows) == 40


def test_scripts__functions_beside_the_function(encoder: Path, nights: Path, tmp_path: Path) -> None:
    import tymbal

    soundfile.info(nights / "evening-0.wav")
    session = tymbal.label.open_labels(encoder, nights, tmp_path / "labels", device="cpu")
    for suggestion in tymbal.label.next_clips(session, 4, by="random"):
        tymbal.label.answer(session, suggestion.window, *filter(None, [heard_at(suggestion.window.start)]))
    assert len(session.answers) == 4
