"""Pairs of views, from sound to disk, through the public verb."""

from __future__ import annotations

import base64
import csv
import errno
import importlib
import io
import json
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import tymbal
from tymbal.audio.decode import read
from tymbal.errors import SettingsError, StoreError
from tymbal.features.librosa import LibrosaMel
from tymbal.files import locked
from tymbal.preparation import build
from tymbal.preparation import build_views as views
from tymbal.preparation import record as space
from tymbal.preparation.plan import Plan, make_plan
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.store.packed.packed_store import PairStore

RATE = 8000
SMALL: dict[str, Any] = {
    "views": 2, "sample_rate": RATE, "window": 0.5, "mel_bins": 16, "n_fft": 256, "hop_length": 128, "workers": 1
}  # fmt: skip


def make_sound(folder: Path, count: int = 40) -> Path:
    time = np.arange(RATE // 2) / RATE
    for number in range(count):
        random = np.random.default_rng(number)
        clip = 0.3 * np.sin(2 * np.pi * random.uniform(200, 3000) * time) + random.normal(0, 0.02, len(time))
        path = folder / ("a" if number % 2 else "b") / f"{number // 2:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip, RATE, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sound(tmp_path_factory.mktemp("data") / "sound")


@pytest.fixture(scope="module")
def store(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "store"
    tymbal.prepare(sound, path, **SMALL)
    return path


def content(folder: Path) -> dict[str, bytes]:
    names = ("**/*.npy", "**/*.pt", "index.parquet", "failures.csv", "metadata*.json")
    files = sorted(path for name in names for path in folder.glob(name))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_pairs__are_a_store_with_a_row_a_version(store: Path) -> None:
    pairs = PairStore.open(store)
    assert (len(pairs), pairs.frames, pairs.mels) == (80, 32, 16)
    batch = pairs.gather([0, 1, 79])
    assert batch.shape == (3, 2, 32, 16)
    assert np.isfinite(batch).all()
    assert not (batch[0, 0] == batch[0, 1]).all()
    assert not (batch[0] == batch[1]).all()
    index = pairs.index.to_pylist()
    assert [row["version"] for row in index[:4]] == [0, 1, 0, 1]
    assert index[0]["id"].removesuffix("@v0") == index[1]["id"].removesuffix("@v1")
    assert {row["split"] for row in index} == {"train", "validation"}
    assert len(pairs.rows("validation")) == 16
    assert pairs.labels == ["a", "b"]
    assert pairs.mean == pytest.approx(pairs.gather(pairs.rows()).astype(np.float64).mean(), abs=1e-6)


def test_defaults__are_those_of_the_recipe(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = tymbal.prepare(sound / "a", views=1, num_waveform_augs=0, num_spectrogram_augs=0)
    assert result.path == Path("data/augmented_spectrograms")
    pairs = result.store
    assert (pairs.frames, pairs.mels, len(pairs)) == (130, 128, 20)
    assert pairs.features == FeatureSettings(filter_bank="librosa", sample_rate=22_050, low_freq=0.0)
    assert len(pairs.rows("validation")) == 4
    waveform = np.zeros(66_150, np.float32)
    clip = read(pairs.index["file"][0].as_py(), sample_rate=22_050, end=None)[0]
    waveform[: len(clip)] = clip
    expected = LibrosaMel(pairs.features)(torch.from_numpy(waveform)).numpy()
    np.testing.assert_allclose(pairs.gather([0])[0, 0], expected, atol=0.01)
    with pytest.raises(SettingsError, match="output is missing"):
        tymbal.prepare(sound)


def test_plain_verbs__refuse_pairs_and_the_other_way_round(store: Path, sound: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds pairs of augmented views"):
        tymbal.Store.open(store)
    plain = tymbal.prepare(sound / "a", tmp_path / "plain", mel_bins=16, sample_rate=RATE, workers=1)
    with pytest.raises(StoreError, match="single spectrograms"):
        PairStore.open(plain.path)


@pytest.mark.parametrize(("write", "mode"), [("store", "spectral"), ("store", "exact"), ("pt", "spectral")])
def test_workers__write_the_same_bytes(
    write: str, mode: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("tymbal.prepare"), "_MUCH_SOUND", 0.0)
    monkeypatch.chdir(tmp_path)
    settings = {**SMALL, "write": write, "view_mode": mode}
    one = tymbal.prepare(sound, "one/out", **settings).path
    two = tymbal.prepare(sound, "two/out", **{**settings, "workers": 2}).path
    first, second = content(one), content(two)
    if write == "pt":
        assert first.pop("metadata.json").replace(b"one/out", b"two/out") == second.pop("metadata.json")
    assert first == second
    assert len(first) == (81 if write == "pt" else 11)


@pytest.mark.parametrize("write", ["store", "pt"])
def test_killed__continues_to_the_same_bytes(
    write: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tymbal.prepare(sound, "whole", write=write, **SMALL).path
    built = views.write_sidecar
    count = 0

    def stop(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt  # after the shard, before its sidecar
        built(*arguments)

    monkeypatch.setattr(views, "write_sidecar", stop)
    with pytest.raises(KeyboardInterrupt):
        tymbal.prepare(sound, "again", write=write, **SMALL)
    assert not (tmp_path / "again" / "store.json").exists()
    assert not (tmp_path / "again" / "metadata.json").exists()
    monkeypatch.setattr(views, "write_sidecar", built)
    again = tymbal.prepare(sound, "again", write=write, **SMALL).path
    first, second = content(whole), content(again)
    first.pop("metadata.json", None), second.pop("metadata.json", None)
    assert first == second
    assert not (again / "work").exists()


def test_settings__that_changed_are_refused_with_the_difference(store: Path, sound: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"views: 2 -> 3"):
        tymbal.prepare(sound, store, **{**SMALL, "views": 3})
    (tmp_path / "other.yaml").write_text("waveform: {gain: {db: [-3, 3]}}\nnum_waveform_augs: 1")
    with pytest.raises(StoreError, match=r"augmentations\.num_waveform_augs: 3 -> 1") as caught:
        tymbal.prepare(sound, store, **SMALL, augmentations=str(tmp_path / "other.yaml"))
    assert "augmentations.waveform.gain.db: [-12.0, 12.0] -> [-3.0, 3.0]" in str(caught.value)


def test_pt__is_the_layout_that_people_have(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = tymbal.prepare(sound, "out", write="pt", **SMALL)
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert set(metadata) == {"train", "val", "config", "tymbal"}
    assert (len(metadata["train"]), len(metadata["val"])) == (64, 16)
    assert metadata["config"] == {
        "sample_rate": RATE,
        "n_mels": 16,
        "duration": 0.5,
        "num_versions": 2,
        "num_waveform_augs": 3,
        "num_spectrogram_augs": 2,
    }
    for entry in metadata["train"] + metadata["val"]:
        content = torch.load(entry["file"], weights_only=True)
        assert set(content) == {"view1", "view2", "audio_name", "version", "original_path"}
        assert content["view1"].shape == content["view2"].shape == tuple(entry["shape"]) == (1, 16, 32)
        assert (content["audio_name"], content["version"]) == (entry["audio_name"], entry["version"])
        assert Path(content["original_path"]).is_file()
        assert Path(entry["file"]).name == f"{entry['audio_name']}_v{entry['version']}.pt"
    assert "a_00_v0.pt" in {Path(entry["file"]).name for entry in metadata["train"] + metadata["val"]}
    # Every stem is there twice, in a and in b: nothing was overwritten.
    assert len(list((tmp_path / "out").glob("*/*.pt"))) == 80
    assert "64 train, 16 val" in result.summary()
    # The views are those of a packed store.
    packed = tymbal.prepare(sound, "store", **SMALL).store
    first = torch.load(metadata["train"][0]["file"], weights_only=True)
    row = packed.index["id"].to_pylist().index(metadata["train"][0]["tymbal"]["id"])
    np.testing.assert_array_equal(packed.gather([row])[0, 1], first["view2"][0].T.half().numpy())


def test_parts__together_are_the_whole(store: Path, sound: Path, tmp_path: Path) -> None:
    for part in ("1/3", "2/3", "3/3"):
        one = tmp_path / part[0]
        result = tymbal.prepare(sound, one, part=part, **SMALL)
        assert f"part {part} is done" in result.summary()
        assert not (one / "store.json").exists()
        shutil.copytree(one, tmp_path / "merged", dirs_exist_ok=True)
    merged = tymbal.prepare(sound, tmp_path / "merged", **SMALL)
    assert content(merged.path) == content(store)
    assert "part 1/3 is done" in tymbal.prepare(sound, tmp_path / "merged", part="1/3", **SMALL).summary()
    with pytest.raises(SettingsError, match="K from 1 to N"):
        tymbal.prepare(sound, tmp_path / "none", part="4/3", **SMALL)


@pytest.mark.parametrize(("count", "parts", "expected"), [(10, 3, [4, 4, 2]), (40, 4, [13, 10, 10, 7])])
def test_parts__of_few_clips_are_some_for_each(count: int, parts: int, expected: list[int], tmp_path: Path) -> None:
    folder = make_sound(tmp_path / "sound", count)
    merged = tmp_path / "merged"
    done = []
    for part in range(1, parts + 1):
        tymbal.prepare(folder, tmp_path / f"{part}", part=f"{part}/{parts}", write="pt", **SMALL)
        files = {path.name.rpartition("_v")[0] for path in (tmp_path / f"{part}").rglob("*.pt")}
        done.append(len(files))
        shutil.copytree(tmp_path / f"{part}", merged, dirs_exist_ok=True)
    assert sorted(done, reverse=True) == sorted(expected, reverse=True)
    assert sum(done) == count
    tymbal.prepare(folder, merged, write="pt", **SMALL)
    tymbal.prepare(folder, tmp_path / "whole", write="pt", **SMALL)
    assert content(merged).keys() == content(tmp_path / "whole").keys()


@pytest.mark.parametrize("write", ["store", "pt"])
def test_prepare__goes_on_with_shards_as_an_earlier_version_planned_them(
    write: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def earlier(*given: Any, coarse: bool = False) -> Plan:
        del coarse
        return make_plan(*given, coarse=True)

    with monkeypatch.context() as before:
        before.setattr(sys.modules["tymbal.prepare"], "make_plan", earlier)
        tymbal.prepare(sound, tmp_path / "whole", write=write, **SMALL)
        tymbal.prepare(sound, tmp_path / "begun", write=write, part="1/2", **SMALL)
    assert len(list((tmp_path / "begun" / "work").glob("0*.json"))) == 1
    tymbal.prepare(sound, tmp_path / "begun", write=write, **SMALL)
    tymbal.prepare(sound, tmp_path / "whole", write=write, **SMALL)  # is complete
    assert content(tmp_path / "begun").keys() == content(tmp_path / "whole").keys()
    shards = len(list((tmp_path / "whole").rglob("shards/*.npy")))
    assert shards == (2 if write == "store" else 0)


def test_parts__are_done_side_by_side_and_the_whole_after_them(sound: Path, tmp_path: Path) -> None:
    work = tmp_path / "out" / "work"
    tymbal.prepare(sound, tmp_path / "out", part="2/3", **SMALL)
    with locked(work, StoreError("is in use"), part="1/3"):
        tymbal.prepare(sound, tmp_path / "out", part="2/3", **SMALL)
        with pytest.raises(StoreError, match="another process"):
            tymbal.prepare(sound, tmp_path / "out", part="1/3", **SMALL)
        with pytest.raises(StoreError, match="another process"):
            tymbal.prepare(sound, tmp_path / "out", **SMALL)
    assert len(tymbal.prepare(sound, tmp_path / "out", **SMALL).store) == 80


def test_a_split_alone__has_its_own_metadata(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tymbal.prepare(sound, "out", write="pt", part="val", **SMALL)
    told = json.loads((tmp_path / "out" / "metadata_val.json").read_text())
    assert len(told["val"]) == 16
    assert "train" not in told
    assert not (tmp_path / "out" / "train").exists()
    tymbal.prepare(sound, "out", write="pt", **SMALL)
    assert [path.name for path in (tmp_path / "out").glob("metadata*")] == ["metadata.json"]


def test_bad_sound__is_left_out_and_named(tmp_path: Path) -> None:
    sound = make_sound(tmp_path / "sound", 6)
    (sound / "a" / "text.wav").write_text("no sound " * 50)
    soundfile.write(sound / "a" / "silent.wav", np.zeros(RATE), RATE)
    result = tymbal.prepare(sound, tmp_path / "out", **SMALL)
    assert len(result.store) == 12
    with (tmp_path / "out" / "failures.csv").open() as file:
        reasons = {Path(row["file"]).name: row["reason"].partition(":")[0] for row in csv.DictReader(file)}
    assert reasons == {"text.wav": "unreadable", "silent.wav": "silent"}


def test_augmentations__are_checked_before_a_file_is_looked_at(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = tmp_path / "wrong.yaml"
    for text, message in (
        ("waveform: {gian: {}}", "Did you mean gain"),
        ("{num_waveform_augs: 1, waveform: {background: {folder: nowhere}}}", "no sound files"),
    ):
        wrong.write_text(text)
        with pytest.raises(SettingsError, match=message):
            tymbal.prepare(sound, tmp_path / "out", augmentations=wrong, **SMALL)
    assert "headers" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_space__is_told_and_refused_before_anything_is_written(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage(2**30, 2**30 - 100_000, 100_000))
    with pytest.raises(StoreError, match=r"disk is too small: 0.2 MB are needed, 0.1 MB are free"):
        tymbal.prepare(sound, tmp_path / "out", **SMALL)
    assert not list((tmp_path / "out").glob("shards/*"))
    assert len(tymbal.prepare(sound, tmp_path / "out", force=True, **SMALL).store) == 80
    assert "going on, as forced" in capsys.readouterr().err.replace("\n", "")


def test_disk_full__leaves_nothing_half_written(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="No space left on device"):
        tymbal.prepare(sound, "out", write="pt", **SMALL)
    assert not list((tmp_path / "out").rglob("*.pt*"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert len(list(tymbal.prepare(sound, "out", write="pt", **SMALL).path.glob("*/*.pt"))) == 80


def test_exact_mode__gives_other_values_of_the_same_draws(store: Path, sound: Path, tmp_path: Path) -> None:
    exact = tymbal.prepare(sound, tmp_path / "exact", view_mode="exact", **SMALL).store
    one, other = (pairs.gather(pairs.rows()).astype(np.float32) for pairs in (PairStore.open(store), exact))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9
    assert not (one == other).all()


def test_sidecar__of_a_lost_file_is_not_believed(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tymbal.prepare(sound, "out", write="pt", part="train", **SMALL)
    lost = next((tmp_path / "out" / "train").iterdir())
    lost.unlink()
    tymbal.prepare(sound, "out", write="pt", **SMALL)
    assert lost.is_file()
    assert build.read_sidecar(tmp_path / "out", tmp_path / "out" / "work", 0) is None


def test_preview__plays_each_view_as_the_exact_mode_makes_it(sound: Path, tmp_path: Path) -> None:
    """In both modes the same is heard; it is as loud beside its clip as it was drawn."""
    only_gain = tmp_path / "gain.yaml"
    only_gain.write_text("{num_waveform_augs: 1, num_spectrogram_augs: 0, waveform: {gain: {db: [-6, -6]}}}")
    heard = {}
    for mode in ("spectral", "exact"):
        settings = {**SMALL, "view_mode": mode, "augmentations": only_gain}
        page = (tymbal.prepare(sound, tmp_path / mode, preview=True, **settings).path / "index.html").read_text()
        codes = re.findall(r"data:audio/flac;base64,([^\"]+)", page)
        heard[mode] = [soundfile.read(io.BytesIO(base64.b64decode(code)))[0] for code in codes]
    np.testing.assert_array_equal(heard["spectral"], heard["exact"])
    clip, view = heard["exact"][:2]
    assert float(np.abs(clip).max()) == pytest.approx(0.9, abs=1e-3)
    np.testing.assert_allclose(view, clip * 10 ** (-6 / 20), atol=1e-4)


@pytest.mark.parametrize("mode", ["spectral", "exact"])
def test_preview__shows_clips_beside_their_views(mode: str, sound: Path, store: Path, tmp_path: Path) -> None:
    result = tymbal.prepare(sound, tmp_path / "out", preview=True, view_mode=mode, **SMALL)
    assert result.path == tmp_path / "out-preview"
    assert not (tmp_path / "out").exists()
    page = (result.path / "index.html").read_text()
    assert page.count("<audio") == 6 * (1 + 2 * 2)
    assert page.count("<img") == 6 * (1 + 2 * 2) + 6 * (1 + 4)  # and those drawn from spectrograms
    assert "semitones" in page
    assert ("made sample by sample" in page) == (mode == "spectral")
    assert sorted(path.name for path in result.path.iterdir()) == ["index.html", "pairs.png"]
    with Image.open(result.path / "pairs.png") as picture:
        assert picture.size == (5 * (2 * 32 + 8) + 8, 24 + 6 * (24 + 2 * 16 + 8))
    assert "index.html" in result.summary()


def test_preview__without_views_shows_those_drawn_from_spectrograms(sound: Path, tmp_path: Path) -> None:
    """They follow the file: where nothing is drawn, a view is the clip."""
    pictures = {}
    for name, strengths in (("still", dict.fromkeys(SpectrogramViews.__dataclass_fields__, 0)), ("drawn", {})):
        file = tmp_path / f"{name}.yaml"
        still = {key: value for key, value in strengths.items() if key not in ("knots", "functions")}
        file.write_text(json.dumps({"spectrogram_views": still}))
        settings = {key: value for key, value in SMALL.items() if key != "views"}
        result = tymbal.prepare(sound, tmp_path / name, preview=True, augmentations=file, **settings)
        page = (result.path / "index.html").read_text()
        assert "<audio" not in page
        pictures[name] = re.findall(r'data:image/png;base64,([^"]*)"', page)
    assert len(pictures["still"]) == len(pictures["drawn"]) == 6 * (1 + 4)
    for place in range(0, 30, 5):
        clip, *views = pictures["still"][place : place + 5]
        assert views == [clip] * 4
        clip, *views = pictures["drawn"][place : place + 5]
        assert len({clip, *views}) == 5
