"""What lies at a path: recognised once, said in one line, and opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tymbal
from pairs import pair_store
from tones import tone_folder
from training_setup import make_store
from tymbal import config
from tymbal.data import DataSource, open_data
from tymbal.errors import ManifestError, SettingsError, StoreError
from tymbal.objectives.contrastive import ContrastiveSettings
from tymbal.settings import FeatureSettings, FinetuneSettings, PretrainSettings, PtSettings

PROPERTIES = ("is_packed", "has_rows", "has_spectrograms", "has_views", "has_waveforms", "has_sound")


def touch_pt(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.ones(32, 128), path)


def sound_list(path: Path, *files: Path) -> Path:
    data = [{"wav": str(file), "labels": file.parent.name} for file in files]
    path.write_text(json.dumps({"data": data}))
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each kind of data."""
    root = tmp_path_factory.mktemp("places")
    make_store(root / "store")
    pair_store(root / "pairs")
    tymbal.convert(root / "pairs", root / "pair_files")
    sounds = sorted(tone_folder(root / "sound", clips=2, splits=("train",)).rglob("*.wav"))
    tymbal.prepare(root / "sound", root / "waves", views=1, write="waveforms", workers=1, sample_rate=8000, window=0.5)
    shutil.copy(sounds[0], root / "one.wav")
    sound_list(root / "sounds.json", *sounds)
    (root / "manifest.csv").write_text("file,label\n" + "".join(f"{file},a\n" for file in sounds))
    touch_pt(root / "pt" / "a.pt", root / "lists" / "train" / "a.pt", root / "elsewhere" / "a.pt")
    sound_list(root / "lists" / "train.json", Path("a.wav"))
    sound_list(root / "far.json", Path("a.wav"))
    return root


KINDS = {
    "store": ("a store of spectrograms", {"is_packed", "has_rows", "has_spectrograms"}),
    "pairs": ("a store of pairs of views", {"is_packed", "has_rows", "has_views"}),
    "waves": ("a store of waveforms", {"is_packed", "has_rows", "has_waveforms"}),
    "pair_files": ("pairs of views in .pt files", {"has_rows", "has_views"}),
    "pair_files/metadata.json": ("pairs of views in .pt files", {"has_rows", "has_views"}),
    "pt": ("spectrograms in .pt files", {"has_rows", "has_spectrograms"}),
    "lists/train.json": ("spectrograms in .pt files", {"has_rows", "has_spectrograms"}),
    "sound": ("a folder of sound files", {"has_sound"}),
    "one.wav": ("a sound file", {"has_sound"}),
    "sounds.json": ("a list of sound files", {"has_sound"}),
    "manifest.csv": ("a list of sound files", {"has_sound"}),
}


@pytest.mark.parametrize("place", KINDS)
def test_open_data__recognises_each_kind_once_and_says_so_in_one_line(
    place: str, places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, able = KINDS[place]
    data = open_data(places / place, PtSettings())
    assert capsys.readouterr().err == ""
    assert {name for name in PROPERTIES if getattr(data, name)} == able
    assert data.exists
    assert data.what == what
    assert capsys.readouterr().err == f"{places / place}: {what}\n"


@pytest.mark.parametrize(("place", "shape"), [("store", 2), ("pairs", 3), ("pair_files", 3), ("waves", 1), ("pt", 2)])
def test_store__opens_what_has_rows(place: str, shape: int, places: Path) -> None:
    store = open_data(places / place, PtSettings()).store()
    assert store.gather([0]).shape == (1, *store.row_shape)
    assert len(store.row_shape) == shape
    assert (store.views, store.samples is None) == ({"pairs": 2, "pair_files": 2}.get(place, 1), place != "waves")
    assert bool(store.data_files) and all(file.is_file() for file in store.data_files)
    assert bool(store.description_files) == (place != "pt")


def test_store__says_what_to_do_where_there_are_no_rows(places: Path) -> None:
    for place in ("sound", "one.wav", "sounds.json"):
        with pytest.raises(StoreError, match=r"is no store: it has no store.json\n  Make a store"):
            open_data(places / place, PtSettings()).store()


@pytest.mark.parametrize("place", ["pairs", "pair_files", "waves"])
def test_single_spectrograms__are_not_pairs_or_waveforms(place: str, places: Path, tmp_path: Path) -> None:
    data = open_data(places / place, PtSettings())
    what = "holds waveforms" if place == "waves" else "holds pairs of augmented views"
    with pytest.raises(StoreError, match=what):
        data.single_spectrograms()
    with pytest.raises(StoreError, match=what):
        data.spectrograms(tmp_path, FeatureSettings())


def test_open_data__nothing_is_an_error_when_it_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_data(tmp_path / "nowhere", ContrastiveSettings())
    assert not data.exists
    assert not any(getattr(data, name) for name in PROPERTIES)
    for opens in (data.store, data.single_spectrograms):
        with pytest.raises(StoreError, match="there is no such folder"):
            opens()
    for opens in (lambda: data.spectrograms(tmp_path, FeatureSettings()), lambda: data.view_pairs(tmp_path)):
        with pytest.raises(StoreError, match="there is no such store, folder of sound or manifest"):
            opens()
    assert capsys.readouterr().err == ""


def test_open_data__damage_is_named(places: Path, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{]")
    with pytest.raises(StoreError, match="is damaged"):
        open_data(tmp_path, PtSettings()).has_rows  # noqa: B018
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ManifestError):
        open_data(tmp_path / "notes.txt", PtSettings()).has_rows  # noqa: B018


def test_open_data__metadata_of_something_else_are_no_pairs(places: Path, tmp_path: Path) -> None:
    shutil.copytree(places / "sound", tmp_path / "sound")
    (tmp_path / "sound" / "metadata.json").write_text(json.dumps({"site": "forest"}))
    assert open_data(tmp_path / "sound", PtSettings()).has_sound
    (tmp_path / "sound" / "metadata.json").write_text("{")
    assert open_data(tmp_path / "sound", PtSettings()).has_views  # and what is wrong with them is said


def test_open_data__data_dir_says_that_a_list_is_of_pt_files(places: Path) -> None:
    assert open_data(places / "far.json", PtSettings()).has_sound
    data = open_data(places / "far.json", PtSettings(data_dir=str(places / "elsewhere")))
    assert data.has_spectrograms
    assert len(data.store()) == 1


def test_open_data__a_folder_with_sound_is_one_of_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not open_data(tmp_path, PtSettings()).has_spectrograms
    touch_pt(tmp_path / "deep" / "a.pt")
    assert open_data(tmp_path, PtSettings()).has_spectrograms
    (tmp_path / "a.wav").touch()
    assert not open_data(tmp_path, PtSettings()).has_spectrograms
    assert "holds sound files and .pt files: the sound is used" in capsys.readouterr().err


def test_settings__of_a_recipe_for_sound_are_left_out_where_clips_are_made(places: Path) -> None:
    chosen = config.resolve(FinetuneSettings, {"recipe": "notebook"})
    without = open_data(places / "store", chosen).settings
    assert isinstance(without, FinetuneSettings)
    assert (chosen.window, without.window, without.sample_rate) == (1.0, None, None)
    assert open_data(places / "sound", chosen).settings == chosen
    with pytest.raises(SettingsError, match="window is for sound"):
        open_data(places / "store", FinetuneSettings(window=3.0)).settings  # noqa: B018


def test_spectrograms__two_lists_of_sound_are_prepared_together(tmp_path: Path) -> None:
    sounds = sorted(tone_folder(tmp_path / "sound", clips=3, splits=("train",)).rglob("*.wav"))
    train, validation = (
        sound_list(tmp_path / f"{n}.json", *part) for n, part in (("t", sounds[:6]), ("v", sounds[6:]))
    )
    settings = PretrainSettings(data_val=str(validation), mel_bins=32, frames=48)
    store = open_data(train, settings).spectrograms(tmp_path / "run", FeatureSettings(sample_rate=8000))
    assert store.features is not None
    assert (store.frames, store.mels, store.features.sample_rate) == (48, 32, 8000)
    assert (len(store.rows("train")), len(store.rows("validation"))) == (6, 3)
    assert store.labels == ["high", "low", "middle"]
    assert store.splits == {"train", "validation"}


def test_spectrograms__a_single_sound_file_is_prepared(places: Path, tmp_path: Path) -> None:
    data: DataSource[PretrainSettings] = open_data(places / "one.wav", PretrainSettings(mel_bins=32))
    store = data.spectrograms(tmp_path / "run", FeatureSettings(sample_rate=8000))
    assert [Path(file).name for file in store.index["file"].to_pylist()] == ["one.wav"]
    assert (tmp_path / "run" / "failures.csv").is_file()


def test_clip_numbers__are_the_same_for_all_versions(places: Path) -> None:
    store = open_data(places / "pairs", PtSettings()).store()
    names = [name.rpartition("@v")[0] for name in store.index["id"].to_pylist()]
    numbers = store.clip_numbers()
    assert numbers.dtype == np.int64
    assert len(set(numbers.tolist())) == len(set(names))
    assert len(set(zip(names, numbers.tolist(), strict=True))) == len(set(names))
