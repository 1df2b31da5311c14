import random
from collections import Counter
from dataclasses import replace

import pytest

from tymbal.audio.clip_labels import assign_splits
from tymbal.audio.manifest import Clip
from tymbal.errors import ManifestError, SettingsError
from tymbal.settings import ScanSettings


def clips(count: int = 400, classes: int = 10, groups: int | None = None) -> list[Clip]:
    return [
        Clip(
            f"/data/{index}.wav",
            labels=(f"class {index % classes}",),
            group=None if groups is None else f"g{index % groups}",
            id=f"{index}.wav",
        )
        for index in range(count)
    ]


def validation(found) -> set[str]:
    return {clip.id for clip in found if clip.split == "validation"}


def test_assign_splits__default_is_one_in_ten():
    found = assign_splits(clips(), ScanSettings())
    assert Counter(clip.split for clip in found) == {"train": 360, "validation": 40}
    assert [clip.id for clip in found] == [clip.id for clip in clips()]


def test_assign_splits__by_id_and_seed_alone():
    first = validation(assign_splits(clips(), ScanSettings()))
    shuffled = random.Random(0).sample(clips(), 400)
    moved = [replace(clip, file=clip.file.replace("data", "elsewhere")) for clip in clips()]
    assert validation(assign_splits(shuffled, ScanSettings())) == first
    assert validation(assign_splits(moved, ScanSettings())) == first
    assert validation(assign_splits(clips(), ScanSettings(seed=43))) != first
    # Pinned: a change would silently reshuffle the splits of everyone's data.
    assert sorted(validation(assign_splits(clips(20), ScanSettings()))) == ["17.wav", "7.wav"]


def test_assign_splits__added_files_move_few_others():
    before = assign_splits(clips(1000), ScanSettings())
    after = assign_splits(clips(1100), ScanSettings())
    moved = sum(one.split != other.split for one, other in zip(before, after, strict=False))
    assert moved <= 20


def test_assign_splits__stratified():
    uneven = clips(400, 10) + [Clip(f"/x{i}.wav", labels=("rare",)) for i in range(10)]
    found = assign_splits(uneven, ScanSettings(stratify=True, validation=0.2))
    sizes = Counter(clip.labels[0] for clip in found if clip.split == "validation")
    assert sizes == {**{f"class {i}": 8 for i in range(10)}, "rare": 2}


def test_assign_splits__stratified_has_the_exact_sum():
    found = assign_splits(clips(35, 10), ScanSettings(stratify=True))  # 3 or 4 of each: 0.35 of each would round to 0
    assert len(validation(found)) == 4
    assert max(Counter(clip.labels for clip in found if clip.split == "validation").values()) == 1


def test_assign_splits__whole_groups():
    found = assign_splits(clips(600, groups=30), ScanSettings())
    sides = {clip.group: clip.split for clip in found}
    assert all(clip.split == sides[clip.group] for clip in found)
    assert Counter(sides.values()) == {"train": 27, "validation": 3}


def test_assign_splits__stratified_groups():
    grouped = [replace(clip, group=f"{clip.labels[0]} {index // 40}") for index, clip in enumerate(clips(400))]
    found = assign_splits(grouped, ScanSettings(stratify=True))
    assert all(len({c.split for c in found if c.group == clip.group}) == 1 for clip in found[:50])
    assert set(Counter(clip.labels for clip in found if clip.split == "validation").values()) == {4}


def test_assign_splits__few_large_groups_leave_no_side_empty():
    for count in (2, 3, 6):
        sides = {clip.group: clip.split for clip in assign_splits(clips(60, groups=count), ScanSettings())}
        assert Counter(sides.values()) == {"train": count - 1, "validation": 1}
    large = assign_splits(clips(60, groups=2), ScanSettings(validation=0.9))
    assert {clip.split for clip in large} == {"train", "validation"}


def test_assign_splits__one_unit_cannot_be_split():
    assert {clip.split for clip in assign_splits(clips(20, groups=1), ScanSettings())} == {"train"}
    assert validation(assign_splits(clips(), ScanSettings(validation=0))) == set()


def test_assign_splits__parts_and_copies_stay_together():
    parts = [
        Clip(f"/{i}.wav", j, j + 1, hash=f"{i // 2}", id=f"{i}.wav#{j}-{j + 1}") for i in range(40) for j in range(5)
    ]
    sides: dict[str, set[str]] = {}
    for clip in assign_splits(parts, ScanSettings()):
        sides.setdefault(clip.hash, set()).add(clip.split)
    assert set(map(len, sides.values())) == {1}
    single = assign_splits(parts, ScanSettings(split="clips"))
    assert max(len({c.split for c in single if c.file == clip.file}) for clip in single) == 2


def test_assign_splits__groups_that_are_not_there():
    with pytest.raises(ManifestError, match="no clip has one"):
        assign_splits(clips(), ScanSettings(split="groups"))


def test_assign_splits__keeps_what_is_given():
    given = [replace(clip, split=("train", "validation", "test", None)[i % 4]) for i, clip in enumerate(clips())]
    found = assign_splits(given, ScanSettings())
    assert [clip.split for clip in found[:4]] == ["train", "validation", "test", "train"]
    assert assign_splits(given, ScanSettings(split="keep")) == given
    with pytest.raises(ManifestError, match="to be kept"):
        assign_splits(clips(), ScanSettings(split="keep"))


def test_assign_splits__test_clips_are_never_drawn():
    given = [replace(clip, split="test" if i < 100 else "train") for i, clip in enumerate(clips())]
    for how in ("auto", "clips"):
        found = assign_splits(given, ScanSettings(split=how))
        assert Counter(clip.split for clip in found) == {"test": 100, "train": 270, "validation": 30}
        assert {clip.split for clip in found[:100]} == {"test"}


def test_assign_splits__pattern():
    found = assign_splits(clips(), ScanSettings(validation_pattern=r"7\.wav"))
    assert validation(found) == {f"{i}7.wav".removeprefix("0") for i in range(40)}
    for pattern, says in (("nowhere", "finds nothing"), ("wav", "finds every clip")):
        with pytest.raises(SettingsError, match=says):
            assign_splits(clips(), ScanSettings(validation_pattern=pattern))


def test_assign_splits__none():
    given = [replace(clip, split="train") for clip in clips()]
    assert {clip.split for clip in assign_splits(given, ScanSettings(split="none"))} == {None}


@pytest.mark.parametrize(
    "settings",
    [
        {"validation": 0.3},
        {"stratify": True},
        {"validation_pattern": r"[0-4]\.wav"},
        {"split": "keep", "validation": 0.3},
        {"split": "none", "stratify": True},
        {"split": "groups", "validation_pattern": r"7\.wav"},
        {"validation": 0.3, "validation_pattern": r"7\.wav"},
    ],
)
def test_assign_splits__settings_without_effect_are_refused(settings):
    given = [clip.but(split="validation" if clip.id.endswith("7.wav") else "train") for clip in clips()]
    with pytest.raises(SettingsError):
        assign_splits(given, ScanSettings(**settings))


def test_assign_splits__what_a_split_was_made_by_may_be_said_again():
    settings = ScanSettings(validation=0.3, stratify=True, seed=7)
    once = assign_splits(clips(), settings)
    assert assign_splits(once, settings) == once


@pytest.mark.parametrize("count", [4, 60, 61, 403])
@pytest.mark.parametrize("share", [0.1, 0.25])
def test_assign_splits__sklearn_takes_the_files_of_train_test_split(count: int, share: float):
    from sklearn.model_selection import train_test_split

    given = random.Random(1).sample(clips(count), count)
    names = sorted(clip.id for clip in given)
    _, expected = train_test_split(names, test_size=share, random_state=42)
    found = assign_splits(given, ScanSettings(split="sklearn", validation=share))
    assert validation(found) == set(expected)
    assert {clip.split for clip in found} == {"train", "validation"}


def test_assign_splits__sklearn_keeps_groups_parts_and_given_splits_together():
    grouped = clips(groups=20)
    assert assign_splits(grouped, ScanSettings(split="sklearn")) == assign_splits(grouped, ScanSettings())
    parts = [Clip("/a.wav", id=f"a.wav#{n}-{n + 1}", start=float(n), end=n + 1.0) for n in range(5)]
    found = assign_splits([*parts, *clips(9)], ScanSettings(split="sklearn"))
    assert len({clip.split for clip in found[:5]}) == 1
    given = [clip.but(split="validation" if clip.id == "3.wav" else None) for clip in clips(20)]
    assert validation(assign_splits(given, ScanSettings(split="sklearn"))) == {"3.wav"}
    tests = [clip.but(split="test" if clip.id == "3.wav" else None) for clip in clips(20)]
    assert Counter(clip.split for clip in assign_splits(tests, ScanSettings(split="sklearn"))) == {
        "train": 17,
        "validation": 2,
        "test": 1,
    }
