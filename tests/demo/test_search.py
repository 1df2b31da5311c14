"""How many events predictions find, and recordings that are joined of clips."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import soundfile as sf

from tymbal.audio.manifest import Clip, Manifest
from tymbal.demo.outcome import Found, count_events, join_clips
from tymbal.demo.wingbeats import Event


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
    assert count_events(tmp_path / "p.csv", events, background="none") == Found(2, 1, 1, 1)
    assert count_events(tmp_path / "p.csv", events) == Found(2, 1, 0, 0)


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
