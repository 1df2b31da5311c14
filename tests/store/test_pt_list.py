"""Which files a list or a folder means, and where they are looked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tymbal.data import open_data
from tymbal.errors import ManifestError, SettingsError, StoreError
from tymbal.settings import PtSettings
from tymbal.store.pt.pt_list import list_pt, stem_of


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.ones(3, 2), path)


def write(path: Path, *wavs: str, **more: object) -> Path:
    path.write_text(json.dumps({"data": [{"wav": wav, "labels": "/m/1"} for wav in wavs], **more}))
    return path


def places(listing, root: Path) -> list[str]:
    return [str(Path(file.path).relative_to(root)) for file in listing.files]


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.wav", "a"), ("/x/y/a.b.flac", "a.b"), ("C:\\sound\\a.wav", "a"), ("a", "a"), ("x/a.pt", "a")],
)
def test_stem_of(name, stem):
    assert stem_of(name) == stem


def test_list__is_found_beside_itself_in_a_fixed_order(tmp_path):
    source = write(tmp_path / "train.json", "/gone/a.wav", "/gone/b.wav")
    folders = ["train", "precomputed/train", "precomputed", "."]
    for folder in folders:
        touch(tmp_path / folder / "b.pt")
    touch(tmp_path / "train" / "other.pt")
    for folder in folders:
        prefix = "" if folder == "." else f"{folder}/"
        assert places(list_pt(source), tmp_path) == [f"{prefix}a.pt", f"{prefix}b.pt"]
        assert open_data(source, PtSettings()).has_spectrograms
        (tmp_path / folder / "b.pt").unlink()
    assert open_data(source, PtSettings()).has_sound
    with pytest.raises(StoreError, match=r"none of the list's .pt files lies beside it\n  Give data_dir. Looked in "):
        list_pt(source)


def test_list__data_folders_that_are_given_come_first(tmp_path):
    train = write(tmp_path / "train.json", "a.wav")
    validation = write(tmp_path / "val.json", "b.wav")
    touch(tmp_path / "train" / "a.pt", tmp_path / "x" / "a.pt", tmp_path / "y" / "b.pt", tmp_path / "val" / "b.pt")
    listing = list_pt(train, data_dir=tmp_path / "x", validation=validation, data_val_dir=tmp_path / "y")
    assert places(listing, tmp_path) == ["x/a.pt", "y/b.pt"]
    assert [file.split for file in listing.files] == ["train", "validation"]
    # Without a folder of its own, validation is looked for in data_dir, then beside its list.
    assert places(list_pt(train, data_dir=tmp_path / "x", validation=validation), tmp_path) == ["x/a.pt", "val/b.pt"]
    touch(tmp_path / "x" / "b.pt")
    assert places(list_pt(train, data_dir=tmp_path / "x", validation=validation), tmp_path) == ["x/a.pt", "x/b.pt"]
    with pytest.raises(StoreError, match=r"no such folder of .pt files\n  Check data_dir"):
        list_pt(train, data_dir=tmp_path / "nowhere")


def test_list__two_entries_with_one_stem_are_an_error_that_names_both(tmp_path):
    source = write(tmp_path / "train.json", "/one/a.wav", "/one/b.wav", "/two/a.flac")
    touch(tmp_path / "a.pt")
    message = r"train.json: entries 1 \(/one/a.wav\) and 3 \(/two/a.flac\) have one stem: both would be a.pt"
    with pytest.raises(ManifestError, match=message):
        list_pt(source)


def test_list__an_entry_that_stands_there_twice_counts_twice(tmp_path, capsys):
    source = write(tmp_path / "train.json", "/one/a.wav", "/one/b.wav", "/one/a.wav", "/one/a.wav")
    touch(tmp_path / "a.pt", tmp_path / "b.pt")
    assert places(list_pt(source), tmp_path) == ["a.pt", "b.pt", "a.pt", "a.pt"]
    said = " ".join(capsys.readouterr().err.split())
    assert said == "train.json: entries that stand there already count again: 2, as /one/a.wav"


def test_list__an_entry_without_a_file(tmp_path):
    source = write(tmp_path / "train.json", "a.wav", "")
    touch(tmp_path / "a.pt")
    with pytest.raises(ManifestError, match="entry 2 names no file"):
        list_pt(source)


def test_list__labels_by_the_label_table_in_its_order(tmp_path):
    touch(tmp_path / "a.pt")
    data = [{"wav": "a.wav", "labels": "/m/2,/m/1"}, {"wav": "b.wav", "labels": "Rain, heavy"}, {"wav": "c.wav"}]
    data[1]["labels"] = ["Rain, heavy"]
    (tmp_path / "l.json").write_text(json.dumps({"data": data}))
    table = tmp_path / "labels.csv"
    table.write_text('index,mid,display_name\n1,/m/1,"Rain, heavy"\n0,/m/2,Frog\n2,/m/3,Ant\n')
    listing = list_pt(tmp_path / "l.json", label_csv=table)
    assert listing.label_names == ("Frog", "Rain, heavy", "Ant")
    assert [file.labels for file in listing.files] == [("Frog", "Rain, heavy"), ("Rain, heavy",), ()]
    assert list_pt(tmp_path / "l.json").files[0].labels == ("/m/2", "/m/1")
    table.write_text("index,mid,display_name\n0,/m/1,Same\n1,/m/2,Same\n2,/m/3,Ant\n")
    data[1]["labels"] = "/m/3"
    (tmp_path / "l.json").write_text(json.dumps({"data": data}))
    # Names that are not unique would make one class of two.
    assert list_pt(tmp_path / "l.json", label_csv=table).label_names == ("/m/1", "/m/2", "/m/3")
    table.write_text("index,mid,display_name\n0,/m/1,Frog\n")
    with pytest.raises(ManifestError, match=r"labels.csv: 2 labels of the list are not in this table, as /m/2"):
        list_pt(tmp_path / "l.json", label_csv=table)


def test_list__any_table_of_clips_will_do(tmp_path):
    touch(tmp_path / "spectrograms" / "a.pt")
    (tmp_path / "l.csv").write_text("path,species,split,recording\nsound/a.wav,frog;ant,val,night\nb.wav,,train,\n")
    listing = list_pt(tmp_path / "l.csv", data_dir=tmp_path / "spectrograms")
    first, second = listing.files
    assert (first.id, first.source, first.labels) == ("sound/a.wav", "sound/a.wav", ("frog", "ant"))
    assert (first.split, first.group, second.split) == ("validation", "night", "train")


def test_folder__splits_and_classes_are_its_folders(tmp_path):
    touch(tmp_path / "train" / "frog" / "b.pt", tmp_path / "train" / "ant" / "a.pt", tmp_path / "val" / "ant" / "a.pt")
    touch(tmp_path / ".hidden" / "x.pt", tmp_path / "train" / "ant" / ".y.pt")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "train" / "loop").symlink_to(tmp_path)
    listing = list_pt(tmp_path)
    assert [file.id for file in listing.files] == ["train/ant/a.pt", "train/frog/b.pt", "val/ant/a.pt"]
    assert [file.labels for file in listing.files] == [("ant",), ("frog",), ("ant",)]
    assert [file.split for file in listing.files] == ["train", "train", "validation"]
    shutil.rmtree(tmp_path / "train" / "frog")
    assert [file.labels for file in list_pt(tmp_path).files] == [(), ()]


def test_folder__validation_folder_of_its_own(tmp_path):
    touch(tmp_path / "x" / "a.pt", tmp_path / "y" / "a.pt")
    listing = list_pt(tmp_path / "x", data_val_dir=tmp_path / "y")
    assert [(file.id, file.split) for file in listing.files] == [("a.pt", "train"), ("a.pt", "validation")]


def test_folder__of_lists_is_what_they_say(tmp_path):
    touch(tmp_path / "train" / "a.pt", tmp_path / "val" / "b.pt", tmp_path / "val" / "unlisted.pt")
    write(tmp_path / "train.json", "/gone/a.wav")
    write(tmp_path / "val.json", "/gone/b.wav")
    listing = list_pt(tmp_path)
    assert [(file.source, file.split) for file in listing.files] == [
        ("/gone/a.wav", "train"),
        ("/gone/b.wav", "validation"),
    ]


def test_folder__mistakes(tmp_path):
    with pytest.raises(StoreError, match="no such list or folder"):
        list_pt(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"no .pt file in this folder"):
        list_pt(tmp_path)
    touch(tmp_path / "a.pt")
    with pytest.raises(SettingsError, match="data_dir goes with a list"):
        list_pt(tmp_path, data_dir=tmp_path)


def test_split__is_drawn_only_where_nothing_says_it(tmp_path, capsys):
    wavs = [f"{number}.wav" for number in range(20)]
    source = write(tmp_path / "train.json", *wavs)
    touch(*(tmp_path / "train" / f"{number}.pt" for number in range(20)))
    assert {file.split for file in list_pt(source).files} == {None}
    drawn = {file.id for file in list_pt(source, validation_fraction=0.1).files if file.split == "validation"}
    assert len(drawn) == 2
    write(source, *reversed(wavs))
    assert drawn == {file.id for file in list_pt(source, validation_fraction=0.1).files if file.split == "validation"}
    validation = write(tmp_path / "val.json", "3.wav")
    listing = list_pt(source, data_dir=tmp_path / "train", validation=validation, validation_fraction=0.5)
    assert [file.split for file in listing.files] == ["train"] * 20 + ["validation"]
    said = capsys.readouterr().err
    assert "Files that are in training and in validation: 1, as " in said
    assert "validation=0.5 has no effect: other files are for validation already" in said


def test_header__says_what_the_store_was(tmp_path):
    touch(tmp_path / "a.pt")
    (tmp_path / "labels.csv").write_text("index,mid,display_name\n0,/m/1,Frog\n")
    told = {"features": {"sample_rate": 8000, "mel_bins": 32}, "frames": 48, "mels": 32, "padding": -15.9}
    source = write(tmp_path / "train.json", "a.wav", tymbal={**told, "label_csv": "labels.csv"})
    listing = list_pt(source)
    assert listing.header.features.sample_rate == 8000
    assert (listing.header.frames, listing.header.mels, listing.header.mean) == (48, 32, None)
    assert listing.files[0].labels == ("Frog",)
    write(source, "a.wav", tymbal={"frmes": 3})
    with pytest.raises(ManifestError, match="what it says under 'tymbal' is damaged"):
        list_pt(source)
