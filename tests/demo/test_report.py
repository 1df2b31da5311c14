"""What the demo says, also where pretraining loses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tymbal.demo.outcome import Found, Report, Scores

SCORES = Scores(
    figure="accuracy",
    clips=400,
    classes=9,
    baseline=(0.70, 0.60),
    random=(0.65, 0.40),
    pretrained=(0.82, 0.71),
    tuned_random=0.72,
    tuned_pretrained=0.90,
)
REPORT = Report(
    held_out="clips of another device",
    steps=840,
    clips_seen=26_880,
    task=0.31,
    seconds={"pretrain": 130.0, "scan": 2.0},
    scores=SCORES,
    found=Found(17, 15, 40, 3),
)


def test_text__pretraining_wins():
    text = REPORT.text(Path("demo"))
    assert "Told apart: 400 clips of another device, 9 classes. accuracy in %:" in text
    assert "Pretraining pays here." in text
    assert "17.0 points (± 6.0) ahead of the one with random weights," in text
    assert "840 steps in 2 min 10 s, 26,880 clips seen. It tells 31 % of the masked patches apart." in text
    assert "15 of 17 events" in text
    assert "Of 40 windows without any, 3 were false alarms." in text
    assert "That is little" not in text


def test_text__pretraining_loses_and_says_why():
    losing = dataclasses.replace(SCORES, pretrained=(0.55, 0.5))
    text = dataclasses.replace(REPORT, scores=losing).text(Path("demo"))
    assert "Pretraining does not pay here, so far." in text
    assert "15.0 points (± 6.6) behind the plain baseline" in text
    assert "That is little" in text


def test_text__what_so_few_clips_cannot_tell():
    few = dataclasses.replace(SCORES, clips=40)
    text = dataclasses.replace(REPORT, scores=few).text(Path("demo"))
    assert "Pretraining seems to pay here, but so few clips cannot prove it." in text
    assert "12.0 points (± 18.5, may be chance) ahead of the plain baseline" in text


def test_text__level_is_neither_ahead_nor_behind():
    level = dataclasses.replace(SCORES, pretrained=SCORES.random)
    text = dataclasses.replace(REPORT, scores=level).text(Path("demo"))
    assert "0.0 points (± 6.6, may be chance) level with the one with random weights" in text


def test_text__without_labels_it_says_how_to_give_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what `make demo` has left here is no part of it
    text = dataclasses.replace(REPORT, scores=None, found=None).text(Path("demo"))
    assert "There are no labels" in text
    assert "--label-pattern" in text
    assert "Pretraining: 840 steps" in text
    assert "classifier" not in text


def test_text__lists_what_is_there(tmp_path):
    (tmp_path / "manifest.csv").touch()
    text = REPORT.text(tmp_path)
    assert str(tmp_path / "manifest.csv") in text
    assert str(tmp_path / "predictions.csv") not in text
