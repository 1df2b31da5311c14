from dataclasses import replace

import pytest

from tymbal.audio.clip_labels import group_clips, label_clips, split_by_folders
from tymbal.audio.manifest import Clip
from tymbal.errors import ManifestError, SettingsError
from tymbal.settings import ScanSettings


def clips(*ids: str, **keywords) -> list[Clip]:
    return [Clip(f"/root/{name}", id=name, **keywords) for name in ids]


def labels(found):
    return [clip.labels for clip in found[0]]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["rain/a.wav", "wind/b.wav"], [("rain",), ("wind",)]),
        (["rain/a.wav", "wind/b.wav", "c.wav"], [("rain",), ("wind",), ()]),
        (["Wren,Robin/a.wav", "wren/b.wav"], [("Wren", "Robin"), ("wren",)]),
        (["train/rain/a.wav", "val/wind/b.wav"], [("rain",), ("wind",)]),
        (["train/a.wav", "val/b.wav"], [(), ()]),
        (["all/a.wav", "all/b.wav"], [(), ()]),
        (["2021/05/a.wav", "2022/b.wav"], [(), ()]),
    ],
)
def test_label_clips__class_folders(ids, expected):
    assert labels(label_clips(clips(*ids), ScanSettings(), labelled=False)) == expected


def test_label_clips__nested_folders_are_told():
    nested = clips("rain/x/a.wav", "wind/b.wav")
    assert "folders lie in folders" in label_clips(nested, ScanSettings(), labelled=False)[1][0]
    assert labels(label_clips(nested, ScanSettings(labels="folder"), labelled=False)) == [("rain",), ("wind",)]


def test_label_clips__column_before_folder():
    listed = clips("rain/a.wav", "wind/b.wav", labels=("x",))
    assert labels(label_clips(listed, ScanSettings(), labelled=True)) == [("x",), ("x",)]
    assert labels(label_clips(listed, ScanSettings(labels="folder"), labelled=True)) == [("rain",), ("wind",)]
    assert labels(label_clips(listed, ScanSettings(labels="none"), labelled=True)) == [(), ()]


def test_label_clips__what_is_not_there():
    with pytest.raises(ManifestError, match="from a column"):
        label_clips(clips("a.wav"), ScanSettings(labels="column"), labelled=False)
    with pytest.raises(ManifestError, match="from folders"):
        label_clips(clips("a.wav"), ScanSettings(labels="folder"), labelled=False)


def test_label_clips__pattern():
    digits = clips("3_theo_1.wav", "4_theo_2.wav", "noise.wav")
    found, notes = label_clips(digits, ScanSettings(label_pattern=r"(\d)_"), labelled=False)
    assert [clip.labels for clip in found] == [("3",), ("4",), ()]
    assert notes == ["clips without a label, as label_pattern finds nothing in their path: 1, as noise.wav"]
    with pytest.raises(SettingsError, match="finds nothing in any path"):
        label_clips(digits, ScanSettings(label_pattern="(x)"), labelled=False)


def test_label_clips__pattern_sees_the_path_alone():
    part = Clip("/root/a.wav", 12.0, 13.0, id="a.wav#12-13")
    with pytest.raises(SettingsError):
        label_clips([part], ScanSettings(label_pattern=r"(\d+)"), labelled=False)


def test_group_clips__pattern():
    found, _ = group_clips(clips("3_theo_1.wav", "4_lucas_2.wav"), ScanSettings(group_pattern="_([a-z]+)_"))
    assert [clip.group for clip in found] == ["theo", "lucas"]
    assert group_clips(clips("a.wav", group="g"), ScanSettings())[0][0].group == "g"


def test_split_by_folders__only_where_all_lie_in_them():
    found = split_by_folders(clips("Train/a.wav", "val/x/b.wav", "TEST/c.wav"))
    assert [clip.split for clip in found] == ["train", "validation", "test"]
    assert [clip.split for clip in split_by_folders(clips("test/a.wav", "rain/b.wav"))] == [None, None]


def test_label_and_group_clips__patterns_fill_what_is_empty_and_refuse_what_differs():
    some = [
        replace(clip, labels=labels, group=group)
        for clip, labels, group in zip(
            clips("owl_ann_1.wav", "wren_bob_2.wav"), [("owl",), ()], [None, "bob"], strict=True
        )
    ]
    labelled, notes = label_clips(some, ScanSettings(label_pattern="^([a-z]+)_"), labelled=True)
    assert ([clip.labels for clip in labelled], notes) == ([("owl",), ("wren",)], [])
    grouped, _ = group_clips(some, ScanSettings(group_pattern="_([a-z]+)_"))
    assert [clip.group for clip in grouped] == ["ann", "bob"]
    with pytest.raises(SettingsError, match=r"column label and label_pattern differ on 1 clips, as owl_ann_1.wav"):
        label_clips(some, ScanSettings(label_pattern="_([a-z]+)_"), labelled=True)
    with pytest.raises(SettingsError, match="'bob' and 'wren'"):
        group_clips(some, ScanSettings(group_pattern="^([a-z]+)_"))
    with pytest.raises(SettingsError, match="labels and label_pattern"):
        label_clips(some, ScanSettings(labels="folder", label_pattern="^([a-z]+)_"), labelled=True)
