"""What a classifier detected, checked: precision by score, and thresholds that are written into the model."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from small_model import small_model
from tones import evening, heard_at
from tymbal import merge, predict
from tymbal.errors import ModelError, SettingsError
from tymbal.labelling.review import Band, bands_of, read_review, thresholds_for, write_thresholds
from tymbal.labelling.session import Answer, Session
from tymbal.models.folder import load_model
from tymbal.settings import LabelSettings

CPU = {"device": "cpu", "precision": "float32"}
LABELS = ("low", "high")


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model", labels=LABELS, pooling="mean", multilabel=True, seed=3)


def test_predict__draws_windows_of_each_tenth(classifier: Path, tmp_path: Path) -> None:
    nights = evening(tmp_path / "nights")
    result = predict(classifier, nights, tmp_path / "night.csv", review=3, **CPU)
    assert result.written[-1] == tmp_path / "night.review.csv"
    with (tmp_path / "night.csv").open(newline="") as file:
        scores = {
            (row["file"], row["start"], row["label"]): float(row["score"])
            for row in csv.DictReader(file)
            if float(row["score"]) >= 0.1
        }
    there = Counter((label, min(int(10 * score), 9)) for (_, _, label), score in scores.items())
    drawn = read_review(tmp_path / "night.review.csv")
    assert Counter((one.label, one.tenth) for one in drawn) == {key: min(3, count) for key, count in there.items()}
    with (tmp_path / "night.review.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            score = scores[row["file"], row["start"], row["label"]]
            assert float(row["score"]) == score and int(row["of"]) == there[row["label"], min(int(10 * score), 9)]
    again = predict(classifier, nights, tmp_path / "again.csv", review=3, **CPU)
    assert again.written[-1].read_text() == (tmp_path / "night.review.csv").read_text()
    with pytest.raises(SettingsError, match="review draws from windows, which raven does not list"):
        predict(classifier, nights, tmp_path / "tables", format="raven", review=3, **CPU)


def test_thresholds__weigh_each_tenth_by_its_windows() -> None:
    bands = [Band(0.9, 100, 10, 10), Band(0.8, 300, 10, 9), Band(0.7, 600, 10, 5), Band(0.6, 50, 0, 0)]
    # Above 0.8 (100 + 270) / 400 of the windows are right, above 0.7 (100 + 270 + 300) / 1000.
    assert thresholds_for({"low": bands}, 0.92) == {"low": 0.8}
    assert thresholds_for({"low": bands}, 0.93) == {"low": 0.9}
    assert thresholds_for({"low": bands}, 0.67) == {"low": 0.7}
    assert thresholds_for({"low": bands[2:]}, 0.9) == {}
    assert thresholds_for({"low": [Band(0.9, 100, 9, 9)]}, 0.5) == {}  # too few to know


def test_review__is_answered_in_its_order_and_counted(classifier: Path, tmp_path: Path) -> None:
    nights = evening(tmp_path / "nights")
    predict(classifier, nights, tmp_path / "night.csv", review=3, **CPU)
    table = tmp_path / "night.review.csv"
    session = Session.open(classifier, nights, tmp_path / "labels", LabelSettings(device="cpu", who="ann"))
    first = session.review(table, 100)
    assert len({one.window.row for one in first}) == len(first)
    assert first[0].scores == {read_review(table)[0].label: read_review(table)[0].score}
    assert first[0].reason.startswith("band 0.")
    for one in first:
        heard = heard_at(one.window.start)
        session.answer([Answer(one.window, (heard,)) if heard else Answer(one.window, kind="nothing")])
    assert session.review(table, 100) == []
    drawn = read_review(table)
    for label, bands in session.bands(table).items():
        own = [one for one in drawn if one.label == label]
        assert sum(band.checked for band in bands) == len(own)
        assert sum(band.right for band in bands) == sum(heard_at(one.start) == label for one in own)
    assert all(band.checked == 0 for bands in bands_of(drawn, lambda one: None).values() for band in bands)


def test_thresholds__are_the_models_and_predict_detects_by_them(classifier: Path, tmp_path: Path) -> None:
    nights = evening(tmp_path / "nights", recordings=1)
    predict(classifier, nights, tmp_path / "before.csv", merge=False, **CPU)
    before = load_model(classifier)
    file = write_thresholds(classifier, {"low": 0.75})
    assert file == classifier / "config.json"
    after = load_model(classifier)
    assert after.description.thresholds == (0.75, 0.5)
    assert all(value.equal(after.module.state_dict()[name]) for name, value in before.module.state_dict().items())
    predict(classifier, nights, tmp_path / "after.csv", merge=False, **CPU)
    assert (tmp_path / "after.csv").read_text() == (tmp_path / "before.csv").read_text()

    def detected(name: str) -> list[tuple[str, float]]:
        with (tmp_path / f"{name}.detections.csv").open(newline="") as opened:
            return [(row["label"], float(row["score"])) for row in csv.DictReader(opened)]

    kept = [(label, score) for label, score in detected("before") if score >= {"low": 0.75, "high": 0.5}[label]]
    assert detected("after") == kept and len(kept) < len(detected("before"))
    merge(
        classifier, small_model(tmp_path / "rain", labels=("rain", "hail"), pooling="mean", seed=3), tmp_path / "both"
    )
    assert load_model(tmp_path / "both").description.thresholds == (0.75, 0.5, 0.5, 0.5)
    with pytest.raises(SettingsError, match="the model has no label wren"):
        write_thresholds(classifier, {"wren": 0.5})
    with pytest.raises(ModelError):
        write_thresholds(tmp_path / "nights", {"low": 0.5})
