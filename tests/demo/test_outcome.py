"""What the demo says, also where pretraining loses; how many events predictions find, and joined recordings."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tymbal.audio.manifest import Clip, Manifest
from tymbal.demo.outcome import Report, Scores, Search, count_events, join_clips
from tymbal.demo.wingbeats import Event
from tymbal.evaluation.selection import Verdict

VERDICT = Verdict(
    figure="accuracy",
    reader="logistic",
    pooling="grid:4",
    model=0.82,
    against="plain",
    against_pooling="clip:4",
    best=0.70,
    margin=0.03,
    groups=None,
)
SCORES = Scores(
    figure="accuracy",
    clips=400,
    classes=9,
    plain_line="clip:4",
    plain=(0.70, 0.60),
    random=(0.65, 0.40),
    pretrained=(0.82, 0.71),
    beside=(0.84, 0.70),
    tuned_random=0.72,
    tuned_pretrained=0.90,
    verdict=VERDICT,
)
REPORT = Report(
    held_out="clips of another device",
    steps=840,
    clips_seen=26_880,
    task=0.31,
    seconds={"pretrain": 130.0, "scan": 2.0},
    scores=SCORES,
    found=Search(17, 15, 40, 3),
)


def test_text__pretraining_wins():
    text = REPORT.text(Path("demo"))
    assert "Told apart: 400 clips of another device, 9 classes. accuracy in %:" in text
    assert "best plain line (clip:4)                  70.0        60.0" in text
    assert "  and plain line side by side             84.0        70.0" in text
    assert VERDICT.text() in text
    assert VERDICT.text().startswith("Pretraining pays here: the model reads 82.0 %")
    assert "Fine-tuned, it is 18.0 points (± 5.3) ahead of what begins with random weights." in text
    assert "The better of the probe that it begins as and of its end is kept, by these very clips." in text
    assert "840 steps in 2 min 10 s, 26,880 clips seen. Of 31 % of the held-out clips it finds the other view" in text
    assert "15 of 17 events" in text
    assert "Of 40 windows without any, 3 were false alarms." in text
    assert "That is little" not in text


def test_text__pretraining_loses_and_says_so():
    losing = dataclasses.replace(SCORES, pretrained=(0.55, 0.5), verdict=dataclasses.replace(VERDICT, model=0.55))
    text = dataclasses.replace(REPORT, scores=losing).text(Path("demo"))
    assert "Pretraining does not pay here: the model reads 55.0 %" in text
    assert "-15.0 points, 95 % margin ± 3.0" in text
    assert "That is little time" in text


def test_text__what_so_few_clips_cannot_tell():
    verdict = dataclasses.replace(VERDICT, margin=0.18)
    few = dataclasses.replace(SCORES, clips=40, tuned_random=0.8, verdict=verdict)
    text = dataclasses.replace(REPORT, scores=few).text(Path("demo"))
    assert "No clear gain by pretraining here" in text
    assert "10.0 points (± 15.5, may be chance) ahead of what begins with random weights" in text


def test_text__level_is_neither_ahead_nor_behind():
    level = dataclasses.replace(SCORES, tuned_pretrained=SCORES.tuned_random)
    text = dataclasses.replace(REPORT, scores=level).text(Path("demo"))
    assert "0.0 points (± 6.2, may be chance) level with what begins with random weights" in text


def test_text__nothing_to_compare_with():
    text = dataclasses.replace(REPORT, scores=dataclasses.replace(SCORES, verdict=None)).text(Path("demo"))
    assert "No comparison could be made." in text


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


def _write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "start", "end", "label", "score"])
        for start, end, scores in rows:
            writer.writerows(["a.flac", start, end, label, score] for label, score in scores.items())


def test_count_found__windows_vote_by_their_overlap(tmp_path):
    rows = [
        (0.0, 1.0, {"wren": 0.9, "none": 0.1}),
        (1.0, 2.0, {"wren": 0.3, "none": 0.7}),
        (2.0, 3.0, {"wren": 0.2, "none": 0.8}),
        (3.0, 4.0, {"wren": 0.6, "none": 0.4}),
    ]
    _write(tmp_path / "p.csv", rows)
    # 0.5 s of the first window (0.9) and 0.2 s of the second (0.3): wren. All of the third: none, not wren.
    events = [Event(0.5, 1.2, "wren"), Event(2.0, 3.0, "wren")]
    assert count_events(tmp_path / "p.csv", events, background="none") == Search(2, 1, 1, 1)
    assert count_events(tmp_path / "p.csv", events) == Search(2, 1, 0, 0)


def test_join_clips__events_say_where_each_clip_lies(tmp_path):
    rate = 8_000
    clips = []
    for number, (seconds, split) in enumerate([(1.0, "validation"), (0.5, "validation"), (0.75, "train")]):
        file = tmp_path / f"{number}.wav"
        sf.write(file, np.full(round(seconds * rate), 0.1 * (number + 1)), rate)
        clips.append(Clip(str(file), labels=(f"label{number}",), split=split))
    manifest = Manifest(tuple(clips), tmp_path)
    events = join_clips(manifest, tmp_path / "joined.flac", seconds=10, sample_rate=rate, seed=0)
    sound, _ = sf.read(tmp_path / "joined.flac")
    assert {event.label for event in events} == {"label0", "label1"}
    assert len(sound) == 1.5 * rate
    for event in events:
        part = sound[int(event.start * rate) : int(event.end * rate)]
        assert part.mean() == pytest.approx(0.1 if event.label == "label0" else 0.2, abs=1e-3)


def test_join_clips__is_no_longer_than_asked(tmp_path):
    sf.write(tmp_path / "a.wav", np.full(30_000, 0.1), 1000 * 10)
    manifest = Manifest((Clip(str(tmp_path / "a.wav"), labels=("a",), split="validation"),), tmp_path)
    events = join_clips(manifest, tmp_path / "joined.flac", seconds=2, sample_rate=10_000, seed=0)
    assert events == [Event(0.0, 2.0, "a")]
    assert sf.info(tmp_path / "joined.flac").duration == 2.0
