from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tymbal.audio.manifest import Clip
from tymbal.errors import SettingsError
from tymbal.preparation.plan import Plan, make_plan, window_starts
from tymbal.settings import PrepareSettings


def plan_of(*lengths: float, clips: list[Clip] | None = None, **settings: object) -> Plan:
    if clips is None:
        clips = [Clip(f"/sound/{i}.wav", id=f"{i}.wav", split="train") for i in range(len(lengths))]
    by_file = dict(zip(dict.fromkeys(clip.file for clip in clips), lengths, strict=True))
    return make_plan(clips, by_file, PrepareSettings(**settings))


@pytest.mark.parametrize(
    ("length", "hop", "min_fill", "starts"),
    [
        (10.0, 2.0, 0.5, [0, 2, 4, 6, 8]),
        (10.9, 2.0, 0.5, [0, 2, 4, 6, 8]),
        (11.0, 2.0, 0.5, [0, 2, 4, 6, 8, 10]),
        (10.1, 2.0, 0.05, [0, 2, 4, 6, 8, 10]),
        (4.0, 1.0, 0.5, [0, 1, 2]),
        (4.5, 1.0, 0.5, [0, 1, 2, 3]),
        (7.0, 3.0, 0.5, [0, 3, 6]),
        (6.9, 3.0, 0.5, [0, 3]),
        (2.2, 5.0, 0.5, [0]),
    ],
)
def test_window_starts__of_two_seconds(length: float, hop: float, min_fill: float, starts: list[float]) -> None:
    assert window_starts(length, window=2.0, hop=hop, min_fill=min_fill) == starts


def test_plan__default_window_is_the_longest_clip() -> None:
    plan = plan_of(1.0, 3.0, 2.0)
    assert plan.seconds == 3.0
    assert plan.frames == 304  # 298 frames, in patches of 16
    assert [window.id for window in plan.windows] == ["0.wav", "1.wav", "2.wav"]
    assert all(window.whole and window.end is None for window in plan.windows)


def test_plan__default_window_is_at_most_that_of_audioset() -> None:
    plan = plan_of(25.0)
    assert (plan.seconds, plan.frames) == (10.24, 1024)
    assert [window.start for window in plan.windows] == [0.0, 10.24]


def test_plan__frames_alone_say_the_window() -> None:
    plan = plan_of(25.0, frames=98)
    assert plan.frames == 98
    assert plan.seconds == pytest.approx(0.995)
    assert len(plan.windows) == 25


def test_plan__windows_are_named_and_read_a_little_further() -> None:
    plan = plan_of(5.0, window=2.0, hop=1.5, min_fill=0.9)
    assert [window.id for window in plan.windows] == ["0.wav#0-2", "0.wav#1.5-3.5", "0.wav#3-5"]
    # 208 frames are 2.095 s: what is there of the file after the window fills them, and a few samples for rounding.
    assert [window.end for window in plan.windows] == [2.1, 3.6, None]


def test_plan__cropping_takes_one_window() -> None:
    assert [(w.id, w.start) for w in plan_of(10.0, 1.0, window=2, longer="crop-start").windows] == [
        ("0.wav#0-2", 0.0),
        ("1.wav", 0.0),
    ]
    assert [(w.id, w.start) for w in plan_of(10.0, window=2, longer="crop-centre").windows] == [("0.wav#4-6", 4.0)]


def test_plan__parts_of_a_file_stay_together_in_order() -> None:
    clips = [
        Clip("/sound/a.wav", start=3.0, end=5.0, labels=("frog",), id="a.wav#3-5"),
        Clip("/sound/b.wav", id="b.wav"),
        Clip("/sound/a.wav", start=1.0, end=2.0, id="a.wav#1-2"),
    ]
    plan = plan_of(60.0, 2.0, clips=clips)
    assert [(w.id, w.start, w.end) for w in plan.windows] == [
        ("a.wav#1-2", 1.0, 2.0),
        ("a.wav#3-5", 3.0, 5.0),
        ("b.wav", 0.0, None),
    ]
    assert plan.windows[1].labels == ("frog",)
    assert plan.seconds == 2.0


def test_plan__shards() -> None:
    plan = plan_of(*[1.0] * 70)
    assert [len(shard) for shard in plan.shards()] == [32, 32, 6]
    assert sum(plan.shards(), ()) == plan.windows
    # One MiB holds 36 spectrograms of 112 frames x 128 mel bins in float16.
    assert plan_of(*[1.0] * 5000, shard_mib=1).shard_rows == 36
    assert plan_of(*[1.0] * 5000).shard_rows == 5000 // 32


def test_plan__digest_tells_any_change() -> None:
    clips = [Clip("/sound/a.wav", id="a.wav", split="train"), Clip("/sound/b.wav", id="b.wav", split="train")]
    one = plan_of(1.0, 1.0, clips=clips).digest()
    assert plan_of(1.0, 1.0, clips=clips).digest() == one
    others = [
        plan_of(1.0, 1.0, clips=clips[::-1]),
        plan_of(1.0, 1.0, clips=[clips[0], replace(clips[1], split="validation")]),
        plan_of(1.0, 1.0, clips=[clips[0], replace(clips[1], labels=("frog",))]),
        plan_of(1.0, 1.0, clips=clips, frames=100),
        plan_of(1.0, 2.0, clips=clips),
    ]
    assert len({one, *(other.digest() for other in others)}) == 6


def test_plan__window_below_a_frame() -> None:
    with pytest.raises(SettingsError, match=r"window is 0.02 s, shorter than one frame of 0.025 s"):
        plan_of(1.0, window=0.02)


def test_plan__one_clip_in_so_many_of_every_split_and_class() -> None:
    kinds = [("train", "ant")] * 7 + [("train", "bee")] * 2 + [("validation", "ant")] * 4 + [("train", None)] * 3
    clips = [
        Clip(f"/sound/{i}.wav", id=f"{i}", split=split, labels=() if label is None else (label,))
        for i, (split, label) in enumerate(kinds)
    ]
    lengths = [1.0] * len(clips)
    assert [one.id for one in plan_of(*lengths, clips=clips, every=3).windows] == ["0", "3", "6", "7", "9", "12", "13"]
    assert len(plan_of(*lengths, clips=clips, every=1).windows) == 16
    # Windows of a long file are clips, and the length of a clip is that of all.
    plan = plan_of(10.0, 20.0, window=2.0, every=4)
    assert [(one.file, one.start) for one in plan.windows] == [
        ("/sound/0.wav", 0),
        ("/sound/0.wav", 8),
        ("/sound/1.wav", 6),
        ("/sound/1.wav", 14),
    ]
    assert plan_of(1.0, 3.0, every=2).seconds == 3.0


@pytest.mark.parametrize("settings", [{"window": 1e12}, {"frames": 10**13}])
def test_plan__a_clip_larger_than_the_memory_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="more than this machine's memory"):
        plan_of(1.0, **settings)
